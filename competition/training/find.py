"""Finds a finished run by what a user types: an experiment's YAML, a run's folder, or its hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from competition.config import Competition, Experiment, MaskfoldError, load_experiment, resolved
from competition.data.records import journal_lines, parsed, read_record
from competition.training.besides import settled
from competition.training.job import FoldResult
from competition.training.runs import RUNS, CvRun, load_run, run_hash

STUDIES = Path("mlruns") / "studies"
TRIALS = "trials.json"  # of a study: what its trials found

# What may change between training and submitting: it is taken from the YAML as it is now.
LATE = ("test", "submission", "root", "on_bad_case")


def find_run(
    word: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda _: None
) -> CvRun:
    """The run that a word names.

    Args:
        word: an experiment's YAML, which means the latest finished run of it; a run's folder; `name/hash`; a hash, or
            its first digits.
        overrides: `key=value` words, e.g. `competition.root=/elsewhere`, `postprocess.tune=true`.
        trust: packages besides the known ones that `target` may name.
        say: takes a line for the user where the YAML has changed since.

    Returns:
        The run, with at least one finished fold.

    Raises:
        MaskfoldError: there is none, the word could mean several, or it names a study or a fold.
    """
    path = Path(word)
    if path.suffix in (".yaml", ".yml") and not path.is_dir():
        return _latest(path, overrides, trust, say)
    if (study := find_study(word)) is not None:
        raise _not_a_run(study)
    folder = path if (path / "experiment.yaml").exists() else _by_hash(word)
    if not (folder / "cases.csv").exists():
        above = folder.resolve().parent
        raise MaskfoldError(
            f"{folder} is no run: it has no cases.csv.",
            f"Name the run's folder, {above}."
            if (above / "cases.csv").exists()
            else "Name a folder under mlruns/runs.",
            status=2,
        )
    run = load_run(folder, trust, overrides)
    if not finished(run):
        raise MaskfoldError(
            f"The run {folder} has no finished fold: {_progress(run)}.",
            "Finish it with the same `maskfold cv` command.",
        )
    return run


def find_study(word: str) -> Path | None:
    """The folder of the study that a word names, by that folder or by its name below `mlruns/studies`; None: of none."""
    for folder in (Path(word), STUDIES / word):
        inside = folder.resolve().parent.name == STUDIES.name and not (folder / "cases.csv").exists()
        if (folder / "experiment.yaml").exists() and (inside or (folder / TRIALS).exists()):
            return folder
    return None


def best_run(
    word: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda _: None
) -> CvRun:
    """The run with the highest cross-validation score among all finished ones of a competition.

    Scores are compared where they can be: by the competition's metric, over all folds.

    Args:
        word: an experiment's YAML, or a run, of the competition; see `find_run`.
        overrides: `key=value` words.
        trust: packages besides the known ones that `target` may name.
        say: takes a line for the user.

    Raises:
        MaskfoldError: no run of the competition has all its folds.
    """
    path = Path(word)
    named = path.suffix in (".yaml", ".yml") and not path.is_dir()
    comp = (load_experiment(path, overrides, trust) if named else find_run(word, overrides, trust, say).exp).competition
    found: list[tuple[float, float, Path]] = []
    for file in sorted(RUNS.glob("*/*/summary.json")):
        if (score := _comparable_score(file, comp)) is not None:
            found.append((score, file.stat().st_mtime, file.parent))
    if not found:
        raise MaskfoldError(
            f"No run of {comp.name} below {RUNS} has a score over all its folds.",
            "Finish one with `maskfold cv`, or name a run without --best.",
        )
    score, _, folder = max(found)
    say(f"the best of {len(found)} finished run{'s' * (len(found) > 1)} of {comp.name}: {comp.metric.name} {score:.4f}")
    return load_run(folder, trust, overrides)


def finished(run: CvRun) -> list[tuple[int, int]]:
    """The (fold, seed) pairs that are finished; fold -1 is the fit on all cases."""
    return [
        (fold, seed)
        for fold in (*run.numbers(), -1)
        for seed in range(len(run.exp.seeds))
        if FoldResult.read(run.member_folder(fold, seed)) is not None
    ]


def _comparable_score(summary: Path, comp: Competition) -> float | None:
    """A run's score, where it is of the competition, by its metric, and over all folds."""
    from competition.data.folds import read_folds

    try:
        plain = parsed(summary.read_bytes())
        own = load_experiment(summary.parent / "experiment.yaml", trust=None).competition
        folds = {int(fold) for fold in read_folds(summary.parent / "folds.csv")["fold"] if fold >= 0}
        if own.name != comp.name or own.metric != comp.metric or plain.get("score") is None:
            return None
        complete = folds <= {result["fold"] for result in plain["folds"]}
        return float(plain["score"]) if complete else None
    except (OSError, ValueError, LookupError, TypeError, MaskfoldError):
        return None


def _latest(file: Path, overrides: Sequence[str], trust: tuple[str, ...], say: Callable[[str], None]) -> CvRun:
    exp = load_experiment(file, overrides, trust)
    with suppress(MaskfoldError):  # a teacher may be gone: a finished run needs it no more
        exp = settled(exp)
    base = RUNS / f"{exp.competition.name}-{file.stem}"
    found: list[tuple[float, CvRun]] = []
    begun: list[CvRun] = []
    for yaml in sorted(base.glob("*/experiment.yaml")):
        run = load_run(yaml.parent, trust)
        places = [run.member_folder(*member) / "result.json" for member in run.members()]
        if places and all(place.exists() for place in places):
            found.append((max(place.stat().st_mtime for place in places), run))
        else:
            begun.append(run)
    if not found:
        raise _unfinished(file, base, begun)
    run = max(found, key=lambda pair: pair[0])[1]
    now = current(run.exp, exp)
    if run_hash(now, "") != run_hash(exp, ""):
        say(
            f"note: {_differences(now, exp)} differ from the run {run.folder.name}, which predicts as it was trained: its own "
            "experiment.yaml counts"
        )
    return CvRun(run.folder, now, run.cases, run.folds, run.name)


def _unfinished(file: Path, base: Path, begun: list[CvRun]) -> MaskfoldError:
    """Says how far the runs of an experiment are, and where its studies lie."""
    wrong, cure = f"No finished run of {file} is below {base}", f"Run `maskfold cv {file}` first"
    if begun:
        latest = max(begun, key=lambda run: (run.folder / "experiment.yaml").stat().st_mtime)
        wrong += f": of {latest.folder.name} {_progress(latest)}"
        cure = f"Finish it with the same `maskfold cv {file}`"
        if finished(latest):
            cure += f", or name it by its hash, {latest.folder.name}"
    studies = sorted(
        (
            folder
            for folder in STUDIES.glob(f"{base.name}-*")
            if re.fullmatch("[0-9a-f]{8}", folder.name.removeprefix(f"{base.name}-"))
        ),
        key=lambda folder: folder.stat().st_mtime,
    )
    if studies:
        cure += f"; the page of its study is made by `maskfold report {studies[-1]}`"
    return MaskfoldError(f"{wrong}.", f"{cure}.")


def _progress(run: CvRun) -> str:
    """How far a run is, in words: folds that are finished, and the last epoch of those that have begun."""
    members = run.members()
    done = [member for member in members if FoldResult.read(run.member_folder(*member)) is not None]
    text = f"{len(done)} of {len(members)} folds {'is' if len(done) == 1 else 'are'} finished"
    for folder in (run.member_folder(*member) for member in members if member not in done):
        if lines := journal_lines(folder / "metrics.jsonl"):
            text += f", {folder.name} has done epoch {lines[-1].epoch:.0f} of {run.exp.training.epochs}"
    return text


def _not_a_run(study: Path) -> MaskfoldError:
    """Names the run of the best trial, where there is one."""
    try:
        record = read_record(study / TRIALS)
        run = next(trial["run"] for trial in record["trials"] if trial["number"] == record["best"][0])
        cure = f"Name a trial's run, e.g. that of the best trial {record['best'][0]}: {run}."
    except (OSError, MaskfoldError, LookupError, TypeError, StopIteration):
        cure = f"Name the run of one of its trials; `maskfold report {study}` lists them."
    return MaskfoldError(f"{study} is a study, not a run.", cure, status=2)


def current(trained: Experiment, now: Experiment) -> Experiment:
    """What was trained, with the test images, the submission, the post-processing and `run:` as the YAML says now."""
    comp = trained.competition.model_copy(update={key: getattr(now.competition, key) for key in LATE})
    return trained.model_copy(update={"competition": comp, "postprocess": now.postprocess, "run": now.run})


def _differences(one: Experiment, other: Experiment) -> str:
    """The keys in which two experiments differ, a few of them."""
    pair = [_leaves(resolved(exp)) for exp in (one, other)]
    skipped = (
        "run.",
        "study",
        "postprocess",
        "competition.root",
        "folds.run",
        "training.on_nan",
        "training.on_oom",
        "prepare.cache_gib",
    )
    keys = [
        key
        for key in dict.fromkeys([*pair[0], *pair[1]])
        if pair[0].get(key) != pair[1].get(key) and not key.startswith(skipped)
    ]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {
        name: value
        for part, inner in tree.items()
        for name, value in _leaves(inner, f"{key}.{part}" if key else str(part)).items()
    }


def _by_hash(word: str) -> Path:
    found = sorted(
        yaml.parent
        for yaml in RUNS.glob("*/*/experiment.yaml")
        if str(yaml.parent.relative_to(RUNS)) == word or yaml.parent.name == word
    )
    found = found or sorted(
        yaml.parent for yaml in RUNS.glob("*/*/experiment.yaml") if len(word) >= 4 and yaml.parent.name.startswith(word)
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise MaskfoldError(
            f"`{word}` is no run: neither a folder with an experiment.yaml, nor a run below {RUNS}.",
            "Name an experiment's YAML, a run's folder or its hash; `maskfold cv` prints it.",
            status=2,
        )
    raise MaskfoldError(f"`{word}` could mean {' or '.join(map(str, found[:3]))}.", "Type more of it.", status=2)
