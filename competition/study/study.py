"""Open a study, run its trials, write the file `trials.json`, and draw figures."""

from __future__ import annotations

import fcntl
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.loading import resolve_config, write_yaml
from competition.config.study import StudyConfig
from competition.context import Context
from competition.data.cases import data_hash
from competition.errors import MaskfoldError
from competition.io import atomic_write, remove_all_stale_temp
from competition.records import damaged_error, json_digest, read_unedited_record, with_own_digest, write_json
from competition.runs.find import STUDIES_FOLDER, TRIALS_FILE
from competition.runs.identity.hashing import drop_keys_without_effect
from competition.runs.kept_settings import drop_execution_keys
from competition.runs.lock import ensure_lock
from competition.runs.run import read_skipped
from competition.study.space import ExperimentSource, validate_space, values_from_yaml
from competition.study.storage import (
    HEARTBEAT_GRACE,
    HEARTBEAT_INTERVAL,
    PROCESS_ATTRIBUTE,
    REASON_ATTRIBUTE,
    is_process_dead,
    open_storage,
    repeat_trial,
    storage_errors,
    study_lock,
)
from competition.study.trial import (
    CASES_TABLE,
    MINIMISED,
    DuplicateTrial,
    TrialRunner,
    check_objectives,
    check_pruner,
    data_digest,
    is_ignored,
    make_pruner,
    make_sampler,
    objective_directions,
    study_files,
    study_tables,
)
from competition.text import format_count

if TYPE_CHECKING:
    import optuna
    import pandas as pd


HINT = "Run the same `maskfold study` command again, which writes the file again."  # hint for a damaged `trials.json`
# After this many consecutive failures, the study stops, because the values of the trials are probably not the cause.
MAX_FAILURES = 10
FOLDER_PATIENCE = 300.0  # maximum time in seconds to wait while another process writes the study's files
# After this many consecutive samples that repeat existing trials, the search space is taken to be exhausted.
MAX_DUPLICATES = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudySession:
    """Hold an open study.

    Attributes:
        source: the experiment's file and overrides.
        config: section `study` of the experiment.
        name: name of the study in Optuna, and of its folder in `mlruns/studies`.
        optuna_study: Optuna's study.
        storage: Optuna's storage.
        data: hash of the data, see `competition.runs.extra_cases.combined_data_hash`.
        files: digests of the fold file, of weight files and of the user's own code, see `study_files`.
    """

    source: ExperimentSource
    config: StudyConfig
    name: str
    optuna_study: optuna.Study
    storage: Any
    data: str
    files: dict[str, str]

    @property
    def folder(self) -> Path:
        """The folder with the study's figures, trials and YAML."""
        return STUDIES_FOLDER / self.name

    @property
    def trials(self) -> list[Any]:
        """The trials in order. Trials that repeat others, and trials whose process was killed, are left out."""
        return [trial for trial in self.optuna_study.get_trials(deepcopy=False) if not is_ignored(trial)]

    @property
    def finished(self) -> list[Any]:
        """The trials that are complete, pruned or failed."""
        return [trial for trial in self.trials if trial.state.is_finished()]


def open_study(source: ExperimentSource, storage: str | None = None) -> StudySession:
    """Open the study of an experiment, or create it if it does not exist; its configuration is checked first.

    The name of a study contains a digest of the experiment, the search space, the data and the files that the YAML
    names (folds, weights, own code). So the same command resumes the same study.

    In version 0.1, the names did not depend on the data. A study with such a name is resumed only if its trials were
    trained on the present data.

    Args:
        source: the experiment's file and overrides.
        storage: URL of the database, see `open_storage`.

    Raises:
        MaskfoldError: the experiment has no section `study`, or a key, a value or an objective is invalid.
    """
    import optuna

    exp = source.load()
    if exp.study is None:
        raise MaskfoldError(
            f"{source.file} has no section `study`, which `maskfold study` requires.",
            "Add the section, for example study: {space: {optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}.",
            status=2,
        )
    config = exp.study
    if exp.folds.run == "full":
        raise MaskfoldError(
            "folds.run: found full, expected a list of folds, because training on all cases gives no validation score.",
            "Set folds, for example folds.run=[0,1], or omit folds.run.",
            status=2,
        )
    check_objectives(source, config, exp.competition.classes)
    check_pruner(source, config, exp.competition.metric)
    validate_space(source, config)
    yaml_values = values_from_yaml(source, exp, config)
    plain = resolve_config(exp)
    plain["study"] = {key: plain["study"][key] for key in ("space", "objectives", "constraints")}
    for key in ("run", "postprocess"):
        plain.pop(key)
    drop_execution_keys(plain["training"], kept=False)
    plain["competition"].pop("root")
    extras = plain["extra"] or []
    for section in (plain, *(extras if isinstance(extras, list) else [extras])):
        drop_keys_without_effect(section["competition"])
    prefix = f"{exp.competition.name}-{source.file.stem}"
    tables = study_tables(exp)
    data = data_digest(tables)
    files = study_files(exp)
    content = [plain, data, files] if files else [plain, data]
    names = StudyNames(f"{prefix}-{_digest(content)}", f"{prefix}-{_digest(plain)}", tables)
    opened = open_storage(storage)
    with storage_errors(opened), study_lock(opened, names.present):
        name = names.find(opened)
        optuna_study = optuna.create_study(
            study_name=name,
            storage=opened,
            load_if_exists=True,
            directions=objective_directions(config, exp.competition.metric),
            pruner=make_pruner(config),
        )
        if not optuna_study.get_trials(deepcopy=False):
            optuna_study.enqueue_trial(yaml_values, user_attrs={"own": True})
    session = StudySession(source, config, name, optuna_study, opened, data, files)
    session.folder.mkdir(parents=True, exist_ok=True)
    with study_folder_lock(session.folder):
        write_yaml(resolve_config(exp), session.folder / "experiment.yaml")
    return session


def _digest(plain: Any) -> str:
    """Return the first eight hexadecimal digits of a digest of plain data."""
    return json_digest(plain)[:8]


@dataclass(frozen=True)
class StudyNames:
    """Hold the two names that a study may have, depending on the version of Maskfold that created it.

    Attributes:
        present: name that this version uses. It contains a digest of the YAML, the data and the files.
        old: name that version 0.1 used. It contains only a digest of the YAML.
        tables: case tables of the present data, by their file names (without `.csv`) in a run's folder.
    """

    present: str
    old: str
    tables: dict[str, pd.DataFrame]

    def find(self, storage: Any) -> str:
        """Return the name of the study to open.

        This is the old name, if only a study with the old name exists and its data have not changed. Otherwise, it is
        the present name.
        """
        import optuna

        names = set(optuna.get_all_study_names(storage))
        if self.present in names or self.old not in names:
            return self.present
        trials = optuna.load_study(study_name=self.old, storage=storage).get_trials(deepcopy=False)
        changed = next((run for trial in trials if self._has_changed(run := trial.user_attrs.get("run"))), None)
        if changed is None:
            return self.old
        logger.warning(
            "The data have changed since the study %s was started: its run %s was trained on other data. So a new "
            "study begins.",
            self.old,
            changed,
        )
        return self.present

    def _has_changed(self, run: str | None) -> bool:
        """Return whether the case tables of a run differ from the present ones; ignore tables that cannot be read."""
        import pandas as pd

        for name, table in self.tables.items():
            try:
                old = pd.read_csv(Path(str(run)) / f"{name}.csv", dtype=str, keep_default_na=False)
                skipped = set(read_skipped(Path(str(run)))) if name == CASES_TABLE else set()
                kept = table[~table["id"].isin(skipped - set(old["id"]))]
                if data_hash(old) != data_hash(kept):
                    return True
            except (OSError, ValueError, LookupError, MaskfoldError):
                continue
        return False


@contextmanager
def study_folder_lock(folder: Path, patience: float = FOLDER_PATIENCE) -> Iterator[None]:
    """Hold the lock of a study's folder while the `with` block writes files there.

    The lock is needed because several processes may run the study at the same time.

    Args:
        folder: folder of the study.
        patience: maximum time in seconds to wait for another process to release the lock.

    Raises:
        MaskfoldError: another process has held the lock for longer than `patience` seconds.
    """
    with ensure_lock(folder, patience, lambda _: None):
        yield


def run_study(session: StudySession, count: int, say: Callable[[str], None]) -> None:
    """Run trials until the study has a given number of finished trials, including those of other processes.

    If the search space is exhausted, stop earlier.

    Args:
        session: the study, a result of `open_study`.
        count: total number of finished (complete, pruned or failed) trials at the end.
        say: function that receives messages for the user.

    Raises:
        MaskfoldError: trial 0 (the unchanged YAML) or several consecutive trials fail; the data have changed; or the
            storage fails.
    """
    context = Context(session.source.trust, say)
    worker = TrialRunner(session.source, session.config, session.folder, context, session.data, session.files)
    with storage_errors(session.storage):
        while _run_next(session, worker, count, context):
            write_trials(session)
            if worker.data_error is not None:
                raise worker.data_error
            if worker.duplicates >= MAX_DUPLICATES:
                say(
                    f"{MAX_DUPLICATES} draws in a row repeated values of earlier trials, so the study ends after "
                    f"{len(session.finished)} of {count} trials: it has probably tried all values of the space"
                )
                break
            _check_failures(session)
        write_trials(session)


def _run_next(session: StudySession, worker: TrialRunner, count: int, context: Context) -> bool:
    """Run one trial, or wait for a trial of another process.

    Returns:
        False if this process has nothing left to do.
    """
    requeue_stale_trials(session, context)
    with study_lock(session.storage, session.name) as release_lock:
        trials = session.trials
        done, running = len(session.finished), sum(trial.state.name == "RUNNING" for trial in trials)
        if done + running < count:
            sampled = len(session.optuna_study.get_trials(deepcopy=False))
            seed = session.source.load().seeds[0]
            session.optuna_study.sampler = make_sampler(session.config, seed, sampled, worker.duplicates > 0)
            worker.release_lock = release_lock
            try:
                session.optuna_study.optimize(worker, n_trials=1, catch=(MaskfoldError, DuplicateTrial))
            except KeyboardInterrupt:
                _requeue_interrupted(session, worker.number)
                raise
            return True
    if done >= count or running == 0:
        return False
    return _wait_for_others(session, context)


def _requeue_interrupted(session: StudySession, number: int | None) -> None:
    """Put a trial back into Optuna's queue after the user has interrupted it, so that the same command resumes it.

    Args:
        session: the study.
        number: number of the trial; None if no trial was started.
    """
    for trial in session.optuna_study.get_trials() if number is not None else []:
        if trial.number == number and trial.state.name == "FAIL":
            repeat_trial(session.optuna_study, trial, is_killed=False)


def _wait_for_others(session: StudySession, context: Context) -> bool:
    """Wait until a trial of another process ends, or is put back into the queue because its process has died.

    Returns:
        True after one of these events. False if there is none within the time that it takes to notice a dead process.
    """
    from optuna.storages import fail_stale_trials

    running = sum(trial.state.name == "RUNNING" for trial in session.trials)
    context.say(
        f"this process has no trial to run; it waits for {format_count(running, 'trial')} in other processes, and "
        "repeats a trial if the trial's process dies"
    )
    before = len(session.finished)
    deadline = time.monotonic() + HEARTBEAT_GRACE + 2 * HEARTBEAT_INTERVAL
    while time.monotonic() < deadline:
        fail_stale_trials(session.optuna_study)
        waiting = any(trial.state.name == "WAITING" for trial in session.trials)
        if waiting or len(session.finished) != before:
            return True
        time.sleep(2.0)
    context.say("the trials in other processes still run, and this process has nothing left to do")
    return False


def requeue_stale_trials(session: StudySession, context: Context) -> None:
    """Put trials back into Optuna's queue if their process on this machine was killed.

    Such a trial is resumed later, and its finished folds are not trained again.
    """
    import optuna

    for trial in session.optuna_study.get_trials(deepcopy=True, states=(optuna.trial.TrialState.RUNNING,)):
        if is_process_dead(trial.user_attrs.get(PROCESS_ATTRIBUTE)):
            try:
                session.optuna_study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except (ValueError, RuntimeError):
                continue  # another process was faster
            is_repeated = repeat_trial(session.optuna_study, trial)
            failed = "counts as failed, because its processes were killed too often"
            what = "is repeated, and its folds resume" if is_repeated else failed
            context.say(f"the process of trial {trial.number} was killed; the trial {what}")


def best_trials(session: StudySession, count: int | None = 1) -> Sequence[Any]:
    """Return the best complete trials that satisfy the constraints, sorted by the first objective, the best first.

    With several objectives, only the trials of the Pareto front are returned.

    Args:
        session: the study.
        count: maximum number of trials; None for all.

    Raises:
        MaskfoldError: no trial is complete and satisfies the constraints.
    """
    complete = [trial for trial in session.finished if trial.state.name == "COMPLETE" and satisfies_constraints(trial)]
    if not complete:
        bounds = " within its constraints" if session.config.constraints else ""
        raise MaskfoldError(
            f"The study {session.name} has no complete trial{bounds}, so there is no best trial.",
            "Repeat `maskfold study`. If all its trials have ended, also set a higher --trials.",
        )
    if len(session.config.objectives) > 1:
        front = {trial.number for trial in session.optuna_study.best_trials}
        complete = [trial for trial in complete if trial.number in front]
    sign = -1 if session.optuna_study.directions[0].name == "MAXIMIZE" else 1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))[:count]


def satisfies_constraints(trial: Any) -> bool:
    """Return whether a trial satisfies all constraints of the study."""
    return all(value <= 0 for value in trial.constraints.values())


def _check_failures(session: StudySession) -> None:
    """Raise a MaskfoldError if trial 0 has failed, or if the last `MAX_FAILURES` trials have failed."""
    last = session.finished[-MAX_FAILURES:]
    trial_0 = [trial for trial in last if trial.user_attrs.get("own") and trial.state.name == "FAIL"]
    if trial_0 or (len(last) == MAX_FAILURES and all(trial.state.name == "FAIL" for trial in last)):
        reason = (trial_0 or last)[-1].user_attrs.get(REASON_ATTRIBUTE)
        subject = "Trial 0, the unchanged YAML, failed" if trial_0 else f"The last {MAX_FAILURES} trials failed"
        raise MaskfoldError(
            f"{subject}: {reason}", "Correct the experiment until `maskfold cv` works for it. Then repeat the command."
        )


# The file `trials.json`


def write_trials(session: StudySession) -> list[dict[str, Any]]:
    """Write all trials to `trials.json`, with the objectives and the best trials.

    Returns:
        The trials as plain data, one dictionary for each trial:

        - `number`: number of the trial.
        - `state`: Optuna's state in lower case, e.g. `complete`.
        - `values`: value of each objective; None if the trial is not complete.
        - `minutes`: duration; None if the trial has not ended.
        - `params`: sampled values by key, as Optuna stores them.
        - `reason`: why the trial failed, was pruned, or violates a constraint; None otherwise.
        - `run`: folder of its run.
        - `own`: whether it is trial 0, the unchanged YAML.
    """
    with study_folder_lock(session.folder):  # lock the folder, so that an older list does not replace a newer one
        return _write_trials(session)


def _write_trials(session: StudySession) -> list[dict[str, Any]]:
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "values": trial.values,
            "minutes": (trial.duration.total_seconds() / 60) if trial.duration else None,
            "params": trial.params,
            "reason": trial.user_attrs.get(REASON_ATTRIBUTE) or _violations(session, trial),
            "run": trial.user_attrs.get("run"),
            "own": bool(trial.user_attrs.get("own")),
        }
        for trial in session.trials
    ]
    any_complete = any(trial.state.name == "COMPLETE" and satisfies_constraints(trial) for trial in session.finished)
    several = len(session.config.objectives) > 1
    numbers = [trial.number for trial in best_trials(session, None if several else 1)] if any_complete else []
    content = {"objectives": session.config.objectives, "best": numbers, "trials": rows}
    write_json(session.folder / TRIALS_FILE, with_own_digest(content, TRIALS_FILE))
    return rows


def read_trials(folder: Path) -> dict[str, Any]:
    """Return the content of a study's `trials.json`.

    Args:
        folder: folder of the study.

    Returns:
        A dictionary with `objectives` (names), `best` (numbers of the best trials) and `trials`, see `write_trials`.

    Raises:
        MaskfoldError: no trial has ended yet, or the file is damaged or was edited.
    """
    path = folder / TRIALS_FILE
    try:
        record = read_unedited_record(path, TRIALS_FILE, HINT)
    except FileNotFoundError:
        raise MaskfoldError(
            f"No trial of the study {folder} has ended yet, so there is nothing to show.",
            "Wait until `maskfold study` has finished a trial. When `maskfold study` ends, it also writes the HTML "
            "report of the study.",
        ) from None
    try:
        if not all({"number", "state", "values", "params"} <= trial.keys() for trial in record["trials"]):
            raise ValueError("a trial lacks its number, state, values or params")
        record["objectives"] = [str(name) for name in record["objectives"]]
        record.setdefault("best", _best(record))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged_error(path, error, HINT) from error
    return record


def _best(record: dict[str, Any]) -> list[int]:
    """Return a list with the number of the best trial, from the content of an old `trials.json` without the key `best`.

    Such files have no constraints. Objectives in `MINIMISED` are better if they are lower, all others if they are
    higher. With several objectives, or without a complete trial, the list is empty.
    """
    complete = [trial for trial in record["trials"] if trial["state"] == "complete"]
    if not complete or len(record["objectives"]) > 1:
        return []
    sign = 1 if record["objectives"][0] in MINIMISED else -1
    return [min(complete, key=lambda trial: sign * trial["values"][0])["number"]]


def _violations(session: StudySession, trial: Any) -> str | None:
    """Return the constraints that a complete trial violates, as text; None for any other trial."""
    if trial.state.name != "COMPLETE":
        return None
    bounds = session.config.constraints
    violated = [
        f"{name} is {excess + bounds[name]:.4g}, above {bounds[name]:g}"
        for name, excess in trial.constraints.items()
        if excess > 0 and name in bounds
    ]
    return ", ".join(violated) or None


# Figures and tracking


def draw_figures(session: StudySession) -> list[Path]:
    """Draw Optuna's figures of a study: history, importance of the keys, parallel coordinates and slices.

    With two or three objectives, the Pareto front is drawn too.

    Returns:
        The files, which are in the study's folder. Figures for which there are too few trials are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as figures

    remove_all_stale_temp(session.folder)
    objectives, optuna_study = session.config.objectives, session.optuna_study
    several = len(objectives) > 1
    drawn: list[Path] = []
    for index, objective in enumerate(objectives):
        options: dict[str, Any] = {"target_name": objective}
        if several:
            options["target"] = lambda trial, index=index: trial.values[index]
        suffix = f"_{objective}" if several else ""
        for name, plot in (
            ("history", figures.plot_optimization_history),
            ("importance", figures.plot_param_importances),
            ("parallel", figures.plot_parallel_coordinate),
            ("slice", figures.plot_slice),
        ):
            _save(session, f"{name}{suffix}", partial(plot, optuna_study, **options), drawn, plt)
    if several and len(objectives) <= 3:
        _save(session, "pareto", lambda: figures.plot_pareto_front(optuna_study, target_names=objectives), drawn, plt)
    return drawn


def _save(session: StudySession, name: str, draw_axes: Any, drawn: list[Path], plt: Any) -> None:
    """Draw one figure, save it in the study's folder, and append its path to `drawn`.

    If there are too few trials for the figure, do nothing.

    Args:
        session: the study.
        name: name of the file without extension.
        draw_axes: function that draws the figure and returns its axes.
        drawn: list of the files that were drawn.
        plt: the module `matplotlib.pyplot`.
    """
    path = session.folder / f"{name}.png"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = draw_axes()
            first_axes = axes.flat[0] if hasattr(axes, "flat") else axes
            figure = first_axes.figure
            width = max(8.0, 3.2 * len(session.config.space)) if name.startswith(("slice", "parallel")) else 8.0
            figure.set_size_inches(width, 5.0)
            if name.startswith("history"):
                first_axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # trial numbers
            complete = sum(trial.state.name == "COMPLETE" for trial in session.finished)
            figure.text(0.99, -0.02, f"{complete} complete trials", ha="right", va="top", fontsize="small")
            atomic_write(path, partial(figure.savefig, format="png", dpi=110, bbox_inches="tight"))
        drawn.append(path)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        logger.info("The figure %s is not drawn: %s", name, error)
    finally:
        plt.close("all")


@contextmanager
def track_study(session: StudySession) -> Iterator[None]:
    """Upload the folder of a study to MLflow in the background, while the `with` block runs.

    If several processes run the study at the same time, only the first one uploads.
    """
    from competition.tracking.sync import MlflowSync

    with open(session.folder / "shipper.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield
            return
        with MlflowSync(session.folder, session.source.load(), kind="study", name=f"study {session.name}"):
            yield
