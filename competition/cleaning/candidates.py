"""Find the files in `mlruns` that may be deleted, and the reasons; this module deletes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from competition.cleaning.mlflow_records import MODELS_FOLDER, MlflowRecords, read_mlflow
from competition.cleaning.protection import SUBMISSIONS_FOLDER, find_named_runs
from competition.config.experiment import Experiment
from competition.errors import MaskfoldError
from competition.io import find_stale_temp
from competition.records import parse_json_object
from competition.redact import redact
from competition.runs.fold import RESULT_FILE
from competition.runs.lock import is_free
from competition.runs.run import CACHE_FOLDER, CASES_FILE, RUN_NAME, RUNS_FOLDER, Run, load_run
from competition.runs.summary import run_scores
from competition.text import format_count, is_or_are

# Name of a preprocessed case's folder, see `competition.data.cache.cache_key`.
PREPARED_NAME = re.compile("[0-9a-f]{32}")
CASE_RECORD = "case.json"  # file in this folder that contains the id of the case
UPLOADED_FILE = "shipped.json"  # file in a run's folder that contains the ids of its MLflow runs
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Candidate:
    """Describe files that may be deleted together.

    Attributes:
        kind: kind of the files, e.g. `unfinished run`.
        paths: files and folders to delete.
        changed: time of the last change of any of these files, in seconds since 1970.
        reason: why the files may be deleted.
        is_run: whether the first path is the folder of a run. If it is, the run must be locked during the deletion.
    """

    kind: str
    paths: tuple[Path, ...]
    changed: float
    reason: str
    is_run: bool = False

    @property
    def name(self) -> str:
        """The path that tables show: the folder of a run, a single path or, for several paths, their common folder."""
        return str(self.paths[0]) if self.is_run or len(self.paths) == 1 else f"{self.paths[0].parent}"


@dataclass
class CleaningPlan:
    """Hold the files that may be deleted, and the runs that must stay.

    Attributes:
        candidates: the files that may be deleted.
        kept: (folder, reason) of each run that must stay, because something refers to the run (e.g. a submission or
            another run), or because a process works in it.
        notes: notes for the user about files that stay because they cannot be read.
    """

    candidates: list[Candidate] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_candidates(root: Path, older_than: float, keep_best: int | None = None) -> CleaningPlan:
    """Find the deletable files of a project, and the runs that must stay.

    Args:
        root: the folder that contains `mlruns`.
        older_than: minimum age in seconds; files that have changed more recently stay. Temporary files of killed
            processes may be deleted at any age.
        keep_best: number of finished runs with the best scores that stay in each competition; the other finished runs
            may be deleted. None if all finished runs stay.

    Raises:
        MaskfoldError: a submission, the ledger or a study cannot be read, so that the runs to which it refers are
            unknown.
    """
    plan, now = CleaningPlan(), time.time()
    folders = sorted(path for path in (root / RUNS_FOLDER).glob("*/*") if path.is_dir() and path.name[0] != ".")
    runs = _read_runs(folders, plan)
    proposed = [*_unfinished_runs(folders, runs, now - older_than)]
    if keep_best is not None:
        proposed += _finished_runs(runs, now - older_than, keep_best)
    mlflow = _read_mlflow(root, plan, bool(proposed))
    deleted: set[Path] = set()
    reasons: dict[str, str] = {}
    if mlflow is not None and (proposed or mlflow.unneeded):
        gone = [found.run_name for found in mlflow.unneeded]
        reasons = {**mlflow.named_runs, **find_named_runs(root, folders, gone)}
        for candidate in proposed:
            if (reason := _reason_to_stay(candidate.paths[0], reasons, mlflow)) is not None:
                plan.kept.append((candidate.paths[0], reason))
                continue
            deleted.add(candidate.paths[0])
            plan.candidates.append(_with_artifacts(candidate, mlflow))
    plan.candidates += _unneeded_cases(root, folders, runs, deleted, now - older_than, plan)
    if mlflow is not None:
        of_runs = {path for candidate in plan.candidates for path in candidate.paths}
        plan.candidates += [
            found
            for found in _unneeded_artifacts(mlflow, reasons, now - older_than)
            if not of_runs.intersection(found.paths)
        ]
    plan.candidates += _stale_temporary_files(root)
    return plan


def _read_mlflow(root: Path, plan: CleaningPlan, has_runs: bool) -> MlflowRecords | None:
    """Return what MLflow records about the runs of a project; None if MLflow cannot be read.

    If no run could be deleted and `mlruns/artifacts` does not exist, MLflow is not opened, and the records are empty.

    Args:
        root: the folder that contains `mlruns`.
        plan: plan that gets a note if MLflow cannot be read.
        has_runs: whether there are runs that could be deleted.
    """
    if not has_runs and not (root / RUNS_FOLDER.parent / "artifacts").exists():
        return MlflowRecords()
    try:
        return read_mlflow(root)
    except Exception as error:  # noqa: BLE001 - MLflow, its database or the network may raise any exception
        line = (redact(str(error)).strip().splitlines() or [type(error).__name__])[0][:160]
        plan.notes.append(
            f"MLflow cannot be read ({line}), so it is unknown which runs have a registered model; all runs and "
            "artifacts are kept"
        )
        return None


# Runs


def _read_runs(folders: Sequence[Path], plan: CleaningPlan) -> dict[Path, Run]:
    """Return the readable runs by folder; an unreadable run stays, and `plan` gets a note about it."""
    runs = {}
    for folder in folders:
        if (folder / "experiment.yaml").exists():
            try:
                run = load_run(folder, None, check_edits=False)
                run.members()
                runs[folder] = run
            except MaskfoldError as error:
                plan.notes.append(f"{folder} is kept, because it cannot be read: {error.message}")
    return runs


def _unfinished_runs(folders: Sequence[Path], runs: Mapping[Path, Run], before: float) -> Iterator[Candidate]:
    for folder in folders:
        if folder in runs:
            run = runs[folder]
            members = run.members()
            finished = sum(_is_finished(run, member) for member in members)
            # Of a run whose last command selected other members, e.g. `full`, all folds may be finished.
            validated = [member for member in run.possible_members() if member[0] >= 0]
            if finished == len(members) or (validated and all(_is_finished(run, member) for member in validated)):
                continue
            reason = f"only {finished} of its {run.count_members(len(members))} {is_or_are(finished)} finished"
        elif RUN_NAME.fullmatch(folder.name) and not (folder / "experiment.yaml").exists():
            if next(folder.rglob(RESULT_FILE), None) is not None:
                continue
            reason = "the run has no experiment.yaml, because its command ended before the first fold"
        else:
            continue
        if (changed := newest_change([folder])) < before:
            yield Candidate("unfinished run", (folder,), changed, reason, is_run=True)


def _is_finished(run: Run, member: tuple[int, int]) -> bool:
    """Return whether the run has finished the training of the network `member`, a (fold, seed) pair."""
    return (run.member_folder(*member) / RESULT_FILE).exists()


def _finished_runs(runs: Mapping[Path, Run], before: float, keep_best: int) -> Iterator[Candidate]:
    """Yield the finished runs that are not among the best runs of their competition and metric.

    Args:
        runs: all runs, by folder.
        before: time in seconds since 1970; only runs that have not changed since are yielded.
        keep_best: number of best runs of each competition and metric that are not yielded.
    """
    scored: dict[str, list[tuple[float, Path]]] = {}
    for folder, run in runs.items():
        score = _score(run)
        if score is not None and all(_is_finished(run, member) for member in run.members()):
            comp = run.exp.competition
            group = json.dumps([comp.name, comp.metric.model_dump(mode="json")], sort_keys=True)
            scored.setdefault(group, []).append((comp.metric.direction.rank(score), folder))
    for ranked in scored.values():
        for rank, (_, folder) in enumerate(sorted(ranked, reverse=True), start=1):
            if rank > keep_best and (changed := newest_change([folder])) < before:
                reason = f"by score, rank {rank} among the {format_count(len(ranked), 'run')} of the competition"
                yield Candidate("finished run", (folder,), changed, reason, is_run=True)


def _score(run: Run) -> float | None:
    try:
        scores = run_scores(run)
    except (OSError, ValueError, TypeError, MaskfoldError):
        return None
    return None if scores is None else scores.value


def _reason_to_stay(folder: Path, reasons: Mapping[str, str], mlflow: MlflowRecords) -> str | None:
    """Return why a run must not be deleted; None if it may be deleted.

    Args:
        folder: folder of the run.
        reasons: why runs must stay, by the names of their folders.
        mlflow: what MLflow records about the runs.
    """
    if folder.name in reasons:
        return reasons[folder.name]
    for run_id in _mlflow_ids(folder):
        if run_id in mlflow.named_ids:
            return mlflow.named_ids[run_id]
    return None if is_unlocked(folder) else "a process works in this run"


def is_unlocked(folder: Path) -> bool:
    """Return whether no process holds the lock of a run's folder, or of the folder of one of its folds."""
    locked = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    try:
        return all(is_free(path) for path in locked)
    except OSError:  # this user may not open the lock
        return False


def _mlflow_ids(folder: Path, key: str = "run_id") -> list[str]:
    """Return ids that MLflow has given to a run and its folds, as the run's folder records them.

    Args:
        folder: folder of the run.
        key: `run_id` for the MLflow runs of the run and its folds; `model` for the logged models of the folds.
    """
    try:
        entries = parse_json_object((folder / UPLOADED_FILE).read_bytes())["folders"].values()
        return [str(entry[key]) for entry in entries if entry.get(key)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _with_artifacts(candidate: Candidate, mlflow: MlflowRecords) -> Candidate:
    """Add the artifacts that a run has in MLflow to the paths of its candidate, and return the new candidate.

    The metrics and parameters of the run stay in MLflow.
    """
    if mlflow.artifacts is None:
        return candidate
    run = candidate.paths[0]
    folders = [mlflow.artifacts / run_id for run_id in _mlflow_ids(run)]
    folders += [mlflow.artifacts / MODELS_FOLDER / model for model in _mlflow_ids(run, "model")]
    paths = (*candidate.paths, *(folder for folder in folders if folder.is_dir()))
    return Candidate(candidate.kind, paths, candidate.changed, candidate.reason, candidate.is_run)


def _unneeded_artifacts(mlflow: MlflowRecords, reasons: Mapping[str, str], before: float) -> Iterator[Candidate]:
    for found in mlflow.unneeded:
        is_named = found.run_name in reasons or found.run_id in mlflow.named_ids
        if not is_named and (changed := newest_change([found.folder])) < before:
            yield Candidate("MLflow artifacts", (found.folder,), changed, found.reason)


# Prepared cases


def _unneeded_cases(
    root: Path, folders: Sequence[Path], runs: Mapping[Path, Run], deleted: set[Path], before: float, plan: CleaningPlan
) -> Iterator[Candidate]:
    """Yield the preprocessed cases that none of the remaining runs needs.

    If a run needs a deleted case later, the case is preprocessed again.

    The name of a preprocessed case's folder is a hash of everything on which the case depends. For two kinds of cases,
    this hash cannot be computed here. The hash of a pseudo-labelled case depends on the networks that predict its
    labels. The hash of a case with the channels of a first stage depends on the predictions of the first stage. Such a
    case stays in two situations: a remaining run has an additional training case with the same id, or a remaining run
    has a first stage and a case with the same id.

    Args:
        root: the folder that contains `mlruns`.
        folders: folders of all runs.
        runs: the runs that can be read, by folder.
        deleted: folders of the runs that will be deleted.
        before: time in seconds since 1970; only cases that have not changed since are yielded.
        plan: plan that gets a note if a run cannot be read, so that all cases stay.
    """
    cache = root / CACHE_FOLDER
    if not cache.is_dir():
        return
    old = {
        entry.name: (Path(entry.path), entry.stat().st_mtime)
        for entry in os.scandir(cache)
        if PREPARED_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    }
    old = {name: found for name, found in old.items() if found[1] < before}
    if not old:
        return
    if unread := [path for path in folders if path not in runs and (path / "experiment.yaml").exists()]:
        plan.notes.append(
            f"all prepared cases are kept, because {unread[0]} cannot be read and may need some of these cases"
        )
        return
    needed, kept_ids = _needed_cases([run for folder, run in runs.items() if folder not in deleted])
    unneeded = {name: found for name, found in old.items() if name not in needed and _case_id(found[0]) not in kept_ids}
    if unneeded:
        paths = tuple(path for path, _ in sorted(unneeded.values()))
        changed = max(time for _, time in unneeded.values())
        reason = "none of the remaining runs was trained on these cases" if runs else "there is no run"
        yield Candidate(format_count(len(paths), "prepared case"), paths, changed, reason)


def _needed_cases(runs: Sequence[Run]) -> tuple[set[str], set[str]]:
    """Return which preprocessed cases runs need.

    Returns:
        The names of the folders of preprocessed cases; and the ids of cases for which further folders are needed, whose
        names cannot be computed here (see `_unneeded_cases`).
    """
    from competition.data.cache import cache_key
    from competition.data.cases import case_rows

    needed: dict[str, set[str]] = {}
    kept_ids: set[str] = set()
    for run in runs:
        for table in (*run.extra_tables.values(), *([run.cases] if run.exp.first_stage is not None else [])):
            kept_ids |= {str(case) for case in table["id"]}
        if (settings := _cache_settings(run.exp, run.folder)) not in needed:  # many runs share their cases
            needed[settings] = {cache_key(row, run.exp) for row in case_rows(run.cases)}
    return set().union(*needed.values()), kept_ids


def _cache_settings(exp: Experiment, folder: Path) -> str:
    parts = [exp.prepare.model_dump(mode="json"), exp.competition.model_dump(mode="json", exclude={"metric", "test"})]
    digest = hashlib.sha256((folder / CASES_FILE).read_bytes())
    return digest.hexdigest() + json.dumps(parts, sort_keys=True, default=str)


def _case_id(folder: Path) -> str | None:
    try:
        return str(parse_json_object((folder / CASE_RECORD).read_bytes()).get("id"))
    except (OSError, ValueError):
        return None


# Files of killed processes


def _stale_temporary_files(root: Path) -> Iterator[Candidate]:
    mlruns = root / RUNS_FOLDER.parent
    places: list[tuple[Path, bool]] = [
        (mlruns, False),
        # The many subfolders of this folder contain no temporary files, so they are not searched.
        (root / CACHE_FOLDER, False),
        *((mlruns / name, True) for name in (RUNS_FOLDER.name, "studies", "artifacts")),
        (root / SUBMISSIONS_FOLDER, True),
        (root / "reports", True),
    ]
    found = [path for folder, deep in places for path in find_stale_temp(folder, deep)]
    found += [path for path in find_stale_temp(Path(gettempdir()), deep=False) if path.name.startswith(".maskfold")]
    for path in found:
        yield Candidate(
            "temporary files", (path,), newest_change([path]), "temporary file of a process that was killed"
        )


# Time


def newest_change(paths: Sequence[Path]) -> float:
    """Return the time of the latest change of these files and of the files in these folders, in seconds since 1970.

    Lock files are ignored.
    """
    times = [0.0]
    for path in _walk(paths, lambda name: name != "lock"):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:  # another process has just deleted the file
            continue
    return max(times)


def _walk(paths: Sequence[Path], accept: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the given files, and all accepted files in the given folders.

    If a folder contains no accepted file, the folder itself is yielded.

    Args:
        paths: the files and folders.
        accept: function that returns whether to yield a file in a folder, from its name.
    """
    for path in paths:
        if not path.is_dir() or path.is_symlink():
            yield path
            continue
        is_empty = True
        for parent, _, names in os.walk(path):
            for name in filter(accept, names):
                is_empty = False
                yield Path(parent, name)
        if is_empty:
            yield path


def parse_age(text: str) -> float:
    """Convert an age in hours, days or weeks, e.g. `12h`, `30d` or `2w`, to seconds.

    Raises:
        MaskfoldError: the text is not an age (status 2).
    """
    units: dict[str, Any] = {"h": SECONDS_PER_DAY / 24, "d": SECONDS_PER_DAY, "w": 7 * SECONDS_PER_DAY}
    if (match := re.fullmatch(r"(\d{1,6})([hdw])", text.strip())) is None:
        raise MaskfoldError(
            f"--older-than: found `{text}`, expected a whole number and h (hours), d (days) or w (weeks).",
            "Write for example --older-than 12h, --older-than 30d or --older-than 8w.",
            status=2,
        )
    return int(match[1]) * float(units[match[2]])
