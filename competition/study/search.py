"""The study: trial after trial, each one cross-validation run, until as many are finished as were asked for."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError, resolved
from competition.config.load import write_yaml
from competition.config.study import Study
from competition.study.methods import pruner, sampler
from competition.study.objectives import check_objectives, directions
from competition.study.record import write_trials
from competition.study.source import Source
from competition.study.space import check_space, own_values
from competition.study.storage import GRACE, HEARTBEAT, OWNER, RETRIES, alone, is_dead, open_storage
from competition.study.trial import REASON, Repeated, Worker, is_given_up
from competition.training.find import STUDIES

if TYPE_CHECKING:
    import optuna

FAILURES = 10  # trials in a row that fail, after which something else is wrong
REPEATS = 20  # draws in a row of trials that are there already, after which the space is taken for used up
Say = Callable[[str], None]


@dataclass(frozen=True)
class Search:
    """A study that is open.

    Attributes:
        source: the experiment.
        study: what it searches.
        name: of the study, in Optuna and as a folder below `mlruns/studies`.
        optuna: Optuna's study.
        storage: Optuna's storage.
    """

    source: Source
    study: Study
    name: str
    optuna: optuna.Study
    storage: Any

    @property
    def folder(self) -> Path:
        """Figures, the table of trials, the YAML."""
        return STUDIES / self.name

    @property
    def trials(self) -> list[Any]:
        """Trials that count, in their order: neither those of a process that was killed, which count where they were tried
        again, nor draws of what was there already."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if not is_given_up(trial)]

    @property
    def finished(self) -> list[Any]:
        """Trials that are complete, pruned or failed."""
        return [trial for trial in self.trials if trial.state.is_finished()]


def open_search(source: Source, storage: str | None = None) -> Search:
    """Opens the study of an experiment, or makes it; everything in it is checked first.

    The same experiment with the same space is the same study, so the same command goes on.

    Args:
        source: the experiment.
        storage: see `open_storage`.

    Raises:
        MaskfoldError: the experiment has no `study` section, or a key, a value or an objective does not fit.
    """
    import optuna

    exp = source.load()
    if exp.study is None:
        raise MaskfoldError(
            f"{source.file} has no `study` section.",
            "Write one, e.g. study: {space: {optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}.",
            status=2,
        )
    study = exp.study
    if exp.folds.run == "full":
        raise MaskfoldError(
            "folds.run is full, a fit on all cases, which leaves nothing to judge a trial by.",
            "Name folds, e.g. folds.run=[0,1], or leave it out.",
            status=2,
        )
    check_objectives(source, study, exp.competition.classes)
    check_space(source, study)
    own = own_values(source, exp, study)
    plain = resolved(exp)
    plain["study"] = {key: plain["study"][key] for key in ("space", "objectives", "constraints")}
    for key in ("run", "postprocess"):
        plain.pop(key)
    plain["competition"].pop("root")
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{exp.competition.name}-{source.file.stem}-{digest}"
    opened = open_storage(storage)
    with alone(opened, name):
        made = optuna.create_study(
            study_name=name, storage=opened, load_if_exists=True, directions=directions(study), pruner=pruner(study)
        )
        if not made.get_trials(deepcopy=False):
            made.enqueue_trial(own, user_attrs={"own": True})
    search = Search(source, study, name, made, opened)
    search.folder.mkdir(parents=True, exist_ok=True)
    write_yaml(resolved(exp), search.folder / "experiment.yaml")
    return search


def run_search(search: Search, count: int, say: Say) -> None:
    """Runs trials until `count` are finished in all, whoever ran them.

    Args:
        search: the study, from `open_search`.
        count: complete, pruned and failed trials together.
        say: takes lines for the user.

    Raises:
        MaskfoldError: trial 0, the YAML as it is, fails, or several trials in a row do.
    """
    worker = Worker(search.source, search.study, search.folder, say)
    while _take_one(search, worker, count, say):
        write_trials(search)
        if worker.repeats >= REPEATS:
            say(
                f"{REPEATS} draws in a row were trials that are there already: the space is used up after "
                f"{len(search.finished)} of {count} trials"
            )
            break
        _refuse_failures(search)
    write_trials(search)


def _take_one(search: Search, worker: Worker, count: int, say: Say) -> bool:
    """Runs one trial, or waits for one that may be given up; False when there is nothing left to do."""
    revive(search, say)
    with alone(search.storage, search.name) as release:
        trials = search.trials
        done, running = len(search.finished), sum(trial.state.name == "RUNNING" for trial in trials)
        if done + running < count:
            drawn = len(search.optuna.get_trials(deepcopy=False))
            search.optuna.sampler = sampler(search.study, search.source.load().seeds[0], drawn, worker.repeats > 0)
            worker.release = release
            try:
                search.optuna.optimize(worker, n_trials=1, catch=(MaskfoldError, Repeated))
            except KeyboardInterrupt:
                _queue_again(search, worker.number)
                raise
            return True
    if done >= count or running == 0:
        return False
    return _wait(search, say)


def _queue_again(search: Search, number: int | None) -> None:
    """A trial that was interrupted is not lost: the next start of the same command goes on with it."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    for trial in search.optuna.get_trials() if number is not None else []:
        if trial.number == number and trial.state.name == "FAIL":
            RetryHeartbeatStaleTrialCallback()(search.optuna, trial)


def _wait(search: Search, say: Say) -> bool:
    """Whether a trial that runs elsewhere has ended or fallen silent while its signs of life were waited for."""
    from optuna.storages import fail_stale_trials

    say(
        f"{sum(trial.state.name == 'RUNNING' for trial in search.trials)} trials run elsewhere; waiting for their signs of life"
    )
    before = len(search.finished)
    ends = time.monotonic() + GRACE + 2 * HEARTBEAT
    while time.monotonic() < ends:
        fail_stale_trials(search.optuna)
        waiting = any(trial.state.name == "WAITING" for trial in search.trials)
        if waiting or len(search.finished) != before:
            return True
        time.sleep(2.0)
    say("they are alive; this process has nothing left to do")
    return False


def revive(search: Search, say: Say) -> None:
    """Gives up trials whose process was killed on this machine, and queues them again; their folds go on."""
    import optuna
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    for trial in search.optuna.get_trials(deepcopy=True, states=(optuna.trial.TrialState.RUNNING,)):
        if is_dead(trial.user_attrs.get(OWNER)):
            try:
                search.optuna.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except (ValueError, RuntimeError):
                continue  # another process was quicker
            RetryHeartbeatStaleTrialCallback(RETRIES)(search.optuna, trial)
            say(f"trial {trial.number} was killed; it is queued again and goes on where it was")


def best(search: Search, count: int | None = 1) -> Sequence[Any]:
    """The best complete trials that keep the constraints, the best first.

    Args:
        search: the study.
        count: how many; None: all.

    Returns:
        With several objectives, those of the Pareto front, by the first objective.

    Raises:
        MaskfoldError: no trial is complete.
    """
    complete = [trial for trial in search.finished if trial.state.name == "COMPLETE" and allowed(trial)]
    if not complete:
        bounds = " within its constraints" if search.study.constraints else ""
        raise MaskfoldError(f"The study {search.name} has no complete trial{bounds}.", "Run more trials.")
    if len(search.study.objectives) > 1:
        front = {trial.number for trial in search.optuna.best_trials}
        complete = [trial for trial in complete if trial.number in front]
    sign = -1 if directions(search.study)[0] == "maximize" else 1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))[:count]


def allowed(trial: Any) -> bool:
    """Whether a trial keeps every constraint."""
    return all(value <= 0 for value in trial.constraints.values())


def _refuse_failures(search: Search) -> None:
    last = search.finished[-FAILURES:]
    own = [trial for trial in last if trial.user_attrs.get("own") and trial.state.name == "FAIL"]
    if own or (len(last) == FAILURES and all(trial.state.name == "FAIL" for trial in last)):
        reason = (own or last)[-1].user_attrs.get(REASON)
        raise MaskfoldError(
            f"{'Trial 0, the YAML as it is, fails' if own else f'The last {FAILURES} trials failed'}: {reason}",
            "Make the experiment run with `maskfold cv` first.",
        )
