"""Find finished runs by the YAML of their experiment, by their folder, or by their hash."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.records import read_metrics_lines, read_unedited_record
from competition.runs.fold import MEMBER_FOLDER, RESULT_FILE
from competition.runs.identity.contents import changed_code
from competition.runs.identity.hashing import hashed_settings
from competition.runs.imported import is_imported, refuse_imported
from competition.runs.run import CASES_FILE, RUNS_FOLDER, Run, check_not_edited, load_run
from competition.text import is_or_are, name_some

STUDIES_FOLDER = Path("mlruns") / "studies"
TRIALS_FILE = "trials.json"  # file with the results of the trials in a study's folder
# Keys of `competition` that may change after training; commands that predict use their values in the current YAML.
SUBMIT_TIME_KEYS = ("test", "submission", "root", "on_bad_case")


def find_run(
    name: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda _: None
) -> Run:
    """Find a run that has at least one finished fold.

    Args:
        name: one of: the path of an experiment's YAML, which means the experiment's latest run whose folds are all
            finished; a run's folder; `experiment/hash`; a hash or its first digits; the name of an experiment with a
            single run.
        overrides: `key=value` strings that replace values of the YAML, e.g. `competition.root=/elsewhere`.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
        say: function that receives a note if the YAML or the user's own code has changed since the run was started.

    Returns:
        The run, with at least one finished fold.

    Raises:
        MaskfoldError: no run or several runs match, the run has no finished fold, `name` names a study or a fold, or
            the run's folder was edited.
    """
    run = _find_run(name, overrides, trust, say)
    for what in changed_code(run.folder, run.exp):
        say(
            f"note: {what} changed after the run {run.folder.name} was started, so this command may give other results "
            "than the run"
        )
    return run


def _find_run(name: str, overrides: Sequence[str], trust: tuple[str, ...], say: Callable[[str], None]) -> Run:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and not path.is_dir():
        return _latest_run(path, overrides, trust, say)
    if (study := find_study(name)) is not None:
        raise _study_error(study)
    folder = path if (path / "experiment.yaml").exists() else _find_by_hash(name)
    if not (folder / CASES_FILE).exists():
        parent = folder.resolve().parent
        is_fold = (parent / CASES_FILE).exists()
        raise MaskfoldError(
            f"{folder} is not a run, because it has no {CASES_FILE}.",
            f"Give the folder of the run, {parent}." if is_fold else "Give a folder below mlruns/runs.",
            status=2,
        )
    run = load_run(folder, trust, overrides)
    _note_other_settings(run, overrides, say)
    if not run.finished_members():
        raise MaskfoldError(
            f"The run {folder} has no finished fold: {_progress(run)}.",
            "Finish the run: repeat its `maskfold cv` command.",
        )
    return run


def _note_other_settings(run: Run, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    """Tell the user which `key=value` arguments replace settings with which the networks of a run were trained."""
    if not overrides:
        return
    with suppress(MaskfoldError):  # an older version wrote the YAML, and it is valid only with the overrides
        trained = with_current_settings(load_experiment(run.folder / "experiment.yaml", (), None), run.exp)
        if differences := _differences(trained, run.exp):
            say(
                f"note: the run {run.folder.name} was trained with other values of these keys: {differences}; this "
                "command uses the values that you gave as key=value arguments"
            )


def find_study(name: str) -> Path | None:
    """Return the folder of a study; None if there is no such study.

    Args:
        name: path of the study's folder, or name of a folder in `mlruns/studies`.
    """
    for folder in (Path(name), STUDIES_FOLDER / name):
        inside = folder.resolve().parent.name == STUDIES_FOLDER.name and not (folder / CASES_FILE).exists()
        if (folder / "experiment.yaml").exists() and (inside or (folder / TRIALS_FILE).exists()):
            return folder
    return None


def resolve_source_runs(exp: Experiment) -> Experiment:
    """Return the experiment with the names of runs in `pseudo.from` and `first_stage` replaced by their folders.

    Raises:
        MaskfoldError: `pseudo.from` or `first_stage` names a run that is not finished or does not exist, or an imported
            run; or `pseudo.from` names a run twice.
    """
    if exp.first_stage is not None:
        exp = exp.model_copy(update={"first_stage": _run_folder(exp.first_stage, "first_stage", "be a first stage")})
    if exp.pseudo is None:
        return exp
    folders = [_run_folder(name, "pseudo.from", "teach") for name in exp.pseudo.teacher_names]
    if duplicates := [folder for folder in folders if folders.count(folder) > 1]:
        raise MaskfoldError(
            f"pseudo.from names the run {duplicates[0]} twice, expected once.", "Name it once.", status=2
        )
    teachers = folders[0] if isinstance(exp.pseudo.teachers, str) else folders
    return exp.model_copy(update={"pseudo": exp.pseudo.model_copy(update={"teachers": teachers})})


def _run_folder(name: str, key: str, purpose: str) -> str:
    """Return the folder of the finished run that a key of the YAML names.

    Args:
        name: name of the run, the value of the key, in a form that `find_run` accepts.
        key: key of the YAML, with which the error message begins.
        purpose: what the run is needed for, e.g. `teach`; part of the error message if the run was imported.
    """
    try:
        run = find_run(name, trust=None)  # type: ignore[arg-type]
        refuse_imported([run], purpose)
    except MaskfoldError as error:
        raise MaskfoldError(f"{key}: {error.message}", error.hint, status=error.status) from error
    return str(run.folder)


def with_current_settings(trained: Experiment, yaml: Experiment) -> Experiment:
    """Return the experiment of a finished run, with some of its settings replaced by those of the current YAML.

    The replaced settings do not affect the run's networks: the test images, the submission, the data's folder, the
    treatment of unreadable cases, post-processing and the section `run`.

    Args:
        trained: the experiment as it is stored with the run.
        yaml: the experiment in the current YAML.
    """
    from competition.data.rle.tables import keep_table_format

    comp = trained.competition.model_copy(update={key: getattr(yaml.competition, key) for key in SUBMIT_TIME_KEYS})
    comp = keep_table_format(comp, trained.competition)
    return trained.model_copy(update={"competition": comp, "postprocess": yaml.postprocess, "run": yaml.run})


def _latest_run(file: Path, overrides: Sequence[str], trust: tuple[str, ...], say: Callable[[str], None]) -> Run:
    exp = load_experiment(file, overrides, trust)
    with suppress(MaskfoldError):  # a finished run does not need its teachers, so they may be deleted
        exp = resolve_source_runs(exp)
    base = RUNS_FOLDER / f"{exp.competition.name}-{file.stem}"
    run = _latest_finished(base, trust)
    if run is None:
        raise _unfinished_error(file, base, trust)
    check_not_edited(run)
    run_exp = with_current_settings(run.exp, exp)
    if hashed_settings(run_exp, 2) != hashed_settings(exp, 2):
        say(
            f"note: these keys of the YAML have changed since the run {run.folder.name} was started: "
            f"{_differences(run_exp, exp)}; this command uses the values in the run's own experiment.yaml"
        )
    if changes := _changed_cases(run, exp.competition):
        say(
            f"note: the training cases have changed since the run {run.folder.name} was started ({changes}); this "
            "command uses the run's own cases. To train on the present cases, repeat `maskfold cv`"
        )
    return Run(run.folder, run_exp, run.cases, run.folds, run.name)


def _changed_cases(run: Run, comp: Competition) -> str:
    """Describe how the list of training cases, their weights or their groups have changed since a run was started.

    The contents of images and masks are not compared. The result is empty if nothing has changed, or if the training
    data cannot be found: a finished run may be used without them.

    Args:
        run: the run.
        comp: the competition in the current YAML.
    """
    from competition.data.case_files import find_images, find_masks
    from competition.data.selection import WEIGHT, SkippedCases, case_weights
    from competition.data.splits import group_values

    skipped = SkippedCases(comp)
    try:
        ids = sorted(find_masks(comp, find_images(comp, "train", skipped), skipped))
        weights = case_weights(comp, {*ids, *skipped.reasons, *skipped.excluded})
        groups = group_values(comp, ids, "group") or ids
    except MaskfoldError:
        return ""
    present = {case: (weights.get(case, "1"), group) for case, group in zip(ids, groups, strict=True)}
    texts = run.cases[WEIGHT] if WEIGHT in run.cases.columns else ["1"] * len(run.cases)
    former = dict(zip(run.cases["id"], zip(texts, run.cases["group"], strict=True), strict=True))
    changes = {
        "added": [case for case in present if case not in former and case not in dict(run.skipped)],
        "removed or excluded": [case for case in former if case not in present],
        "another weight or group": [case for case in present if former.get(case, present[case]) != present[case]],
    }
    return "; ".join(f"{what}: {name_some(cases)}" for what, cases in changes.items() if cases)


def _latest_finished(base: Path, trust: tuple[str, ...]) -> Run | None:
    """Return the complete run that finished most recently; None if no run has finished all its folds.

    Reading a run takes time. So runs are read in the order of their latest results, newest first. The search ends when
    no other run can have finished later than the latest one so far, usually after one or two runs. Imported runs are
    skipped.

    Args:
        base: folder of the experiment's runs.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
    """
    latest: tuple[float, Run] | None = None
    folders = [yaml.parent for yaml in sorted(base.glob("*/experiment.yaml"))]
    times = {folder: time for folder in folders if (time := _latest_result(folder)) is not None}
    # The newest folder comes first. The sort is stable, so folders with equal times stay in the order of their names.
    for folder, time in sorted(times.items(), key=lambda pair: -pair[1]):
        if latest is not None and time <= latest[0]:
            break
        run = load_run(folder, trust, check_edits=False)
        if is_imported(run.exp):  # the run was not trained with this YAML
            continue
        results = [run.member_folder(*member) / RESULT_FILE for member in run.members()]
        if results and all(result.exists() for result in results):
            finished = max(result.stat().st_mtime for result in results)
            if latest is None or finished > latest[0]:
                latest = (finished, run)
    return None if latest is None else latest[1]


def _latest_result(folder: Path) -> float | None:
    """Return the time of the latest fold result in a run's folder, in seconds since 1970; None if there is none."""
    times = []
    with os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if MEMBER_FOLDER.fullmatch(entry.name)]:
            with suppress(OSError):
                times.append((folder / name / RESULT_FILE).stat().st_mtime)
    return max(times, default=None)


def _find_by_hash(name: str) -> Path:
    runs = [yaml.parent for yaml in RUNS_FOLDER.glob("*/*/experiment.yaml")]
    matches = sorted(run for run in runs if str(run.relative_to(RUNS_FOLDER)) == name or run.name == name)
    if not matches and len(name) >= 4:
        matches = sorted(run for run in runs if run.name.startswith(name))
    if not matches:  # the name may be that of an experiment with a single run, e.g. of an imported run
        matches = sorted(run for run in runs if run.parent.name == name)
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise MaskfoldError(
            f"There is no run `{name}`: found neither a folder with an experiment.yaml nor a run of this "
            f"name below {RUNS_FOLDER}.",
            "Give an experiment's YAML, a run's folder or a run's hash. `maskfold cv` prints folder and hash.",
            status=2,
        )
    raise MaskfoldError(
        f"`{name}` matches {len(matches)} runs, expected one: {', '.join(map(str, matches[:3]))}.",
        "Give more characters of the hash, or the run's folder.",
        status=2,
    )


def _unfinished_error(file: Path, base: Path, trust: tuple[str, ...]) -> MaskfoldError:
    """Return the error for an experiment without a finished run.

    The message states the progress of the latest unfinished run. The hint names the command that finishes it, and the
    latest study of the experiment, if there is one.

    Args:
        file: the experiment's YAML.
        base: folder of the experiment's runs.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
    """
    problem, hint = f"There is no finished run of {file} below {base}", f"Train a run with `maskfold cv {file}`"
    if saved := sorted(base.glob("*/experiment.yaml")):
        yaml = max(saved, key=lambda path: path.stat().st_mtime)
        latest = load_run(yaml.parent, trust, check_edits=False)
        problem += f". In the latest run, {latest.folder.name}, {_progress(latest)}"
        hint = f"Finish this run: repeat its command `maskfold cv {file}` with the same key=value arguments"
        if latest.finished_members():
            hint += f", or give the run by its hash, {latest.folder.name}"
    studies = sorted(
        (
            folder
            for folder in STUDIES_FOLDER.glob(f"{base.name}-*")
            if re.fullmatch("[0-9a-f]{8}", folder.name.removeprefix(f"{base.name}-"))
        ),
        key=lambda folder: folder.stat().st_mtime,
    )
    if studies:
        hint += f"; for the report of the experiment's study, run `maskfold report {studies[-1]}`"
    return MaskfoldError(f"{problem}.", f"{hint}.")


def _progress(run: Run) -> str:
    """Return the progress of a run as text: the number of finished folds, and the last epoch of unfinished folds."""
    members = run.members()
    done = [member for member in members if run.result(*member) is not None]
    text = f"{len(done)} of {run.count_members(len(members))} {is_or_are(len(done))} finished"
    total = f" of {run.exp.training.epochs}" if run.exp.training.budget_minutes is None else ""
    for folder in (run.member_folder(*member) for member in members if member not in done):
        if lines := read_metrics_lines(folder / "metrics.jsonl"):
            text += f", {folder.name} is at epoch {lines[-1].epoch:.0f}{total}"
    return text


def _study_error(study: Path) -> MaskfoldError:
    """Return the error for a study that was named instead of a run; its hint names the run of the best trial."""
    try:
        record = read_unedited_record(study / TRIALS_FILE, TRIALS_FILE)
        run = next(trial["run"] for trial in record["trials"] if trial["number"] == record["best"][0])
        hint = f"Give the run of one of its trials, for example {run}, the run of the best trial {record['best'][0]}."
    except (OSError, MaskfoldError, LookupError, TypeError, StopIteration):
        hint = f"Give the run of one of its trials. `maskfold report {study}` lists them."
    return MaskfoldError(f"{study} is a study, expected a run.", hint, status=2)


def _differences(first: Experiment, second: Experiment) -> str:
    """Return the keys in which two experiments differ, as text: the first five keys, and the number of further keys."""
    first_values, second_values = (_leaves(hashed_settings(exp, 2)) for exp in (first, second))
    keys = [
        key for key in dict.fromkeys([*first_values, *second_values]) if first_values.get(key) != second_values.get(key)
    ]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """Return the values in nested mappings by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {
        name: value
        for part, inner in tree.items()
        for name, value in _leaves(inner, f"{key}.{part}" if key else str(part)).items()
    }
