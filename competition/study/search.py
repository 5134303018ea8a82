"""The study: trial after trial, each one cross-validation run, until as many are finished as were asked for."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import MaskfoldError, resolved
from competition.config.load import write_yaml
from competition.config.study import Study
from competition.study.objectives import check_objectives, directions
from competition.study.space import Source, check_space, own_values
from competition.study.storage import GRACE, HEARTBEAT, OWNER, RETRIES, alone, is_dead, open_storage
from competition.study.trial import REASON, Worker

if TYPE_CHECKING:
    import optuna

STUDIES = Path("mlruns") / "studies"
FAILURES = 10  # trials in a row that fail, after which something else is wrong
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
        """Trials that count, in their order: those of a process that was killed are counted where they were tried again."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if not _given_up(trial)]

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
        raise MaskfoldError(f"{source.file} has no `study` section.",
                            "Write one, e.g. study: {space: {optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}.",
                            status=2)
    study = exp.study
    check_objectives(study, exp.competition.classes)
    check_space(source, study)
    own = own_values(exp, study)
    plain = resolved(exp)
    plain["study"] = {key: plain["study"][key] for key in ("space", "objectives", "constraints")}
    for key in ("run", "postprocess"):
        plain.pop(key)
    plain["competition"].pop("root")
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{exp.competition.name}-{source.file.stem}-{digest}"
    opened = open_storage(storage)
    with alone(opened, name):
        made = optuna.create_study(study_name=name, storage=opened, load_if_exists=True, directions=directions(study),
                                   pruner=pruner(study))
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
        _refuse_failures(search)
    write_trials(search)


def _take_one(search: Search, worker: Worker, count: int, say: Say) -> bool:
    """Runs one trial, or waits for one that may be given up; False when there is nothing left to do."""
    revive(search, say)
    with alone(search.storage, search.name) as release:
        trials = search.trials
        done, running = len(search.finished), sum(trial.state.name == "RUNNING" for trial in trials)
        if done + running < count:
            search.optuna.sampler = sampler(search.study, search.source.load().seeds[0], len(trials))
            worker.release = release
            try:
                search.optuna.optimize(worker, n_trials=1, catch=(MaskfoldError,))
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

    say(f"{sum(trial.state.name == 'RUNNING' for trial in search.trials)} trials run elsewhere; waiting for their signs of life")
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


def sampler(study: Study, seed: int, number: int) -> Any:
    """The sampler for one trial; its seed follows from the number of trials, so that a resumed study repeats nothing."""
    from optuna import samplers

    limits = (lambda trial: trial.user_attrs.get("constraints", [])) if study.constraints else None
    child = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if study.sampler == "random":
        return samplers.RandomSampler(seed=child)
    if study.sampler == "gp":
        return samplers.GPSampler(seed=child, n_startup_trials=study.startup_trials, constraints_func=limits)
    return samplers.TPESampler(seed=child, n_startup_trials=study.startup_trials, multivariate=True, group=True,
                               constraints_func=limits)


def pruner(study: Study) -> Any:
    """The pruner."""
    from optuna import pruners

    if study.pruner == "wilcoxon":
        return pruners.WilcoxonPruner(p_threshold=study.p_value, n_startup_steps=8)
    if study.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=study.startup_trials)
    if study.pruner == "hyperband":
        return pruners.HyperbandPruner()
    return pruners.NopPruner()


def best(search: Search, count: int = 1) -> Sequence[Any]:
    """The best complete trials, the best first; of several objectives, the Pareto front.

    Raises:
        MaskfoldError: no trial is complete.
    """
    complete = [trial for trial in search.finished if trial.state.name == "COMPLETE" and _allowed(trial)]
    if not complete:
        raise MaskfoldError(f"The study {search.name} has no complete trial.", "Run more trials.")
    if len(search.study.objectives) > 1:
        front = {trial.number for trial in search.optuna.best_trials}
        return [trial for trial in complete if trial.number in front]
    sign = -1 if directions(search.study)[0] == "maximize" else 1
    return sorted(complete, key=lambda trial: (sign * trial.value, trial.number))[:count]


def write_trials(search: Search) -> list[dict[str, Any]]:
    """Every trial as plain data, also as `trials.json` in the study's folder."""
    from competition.training.checkpoint import write_json

    rows = [{"number": trial.number, "state": trial.state.name.lower(), "values": trial.values,
             "minutes": (trial.duration.total_seconds() / 60) if trial.duration else None,
             "params": trial.params, "reason": trial.user_attrs.get(REASON), "run": trial.user_attrs.get("run")}
            for trial in search.trials]
    write_json(search.folder / "trials.json", {"objectives": search.study.objectives, "trials": rows})
    return rows


def _given_up(trial: Any) -> bool:
    """A trial of a killed process: it failed without a reason."""
    return trial.state.name == "FAIL" and REASON not in trial.user_attrs


def _allowed(trial: Any) -> bool:
    return all(value <= 0 for value in trial.user_attrs.get("constraints", []))


def _refuse_failures(search: Search) -> None:
    last = search.finished[-FAILURES:]
    own = [trial for trial in last if trial.user_attrs.get("own") and trial.state.name == "FAIL"]
    if own or (len(last) == FAILURES and all(trial.state.name == "FAIL" for trial in last)):
        reason = (own or last)[-1].user_attrs.get(REASON)
        raise MaskfoldError(f"{'Trial 0, the YAML as it is, fails' if own else f'The last {FAILURES} trials failed'}: "
                            f"{reason}", "Make the experiment run with `maskfold cv` first.")
