"""One trial: the words that Optuna draws, one cross-validation run, its objectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError
from competition.config.study import Study
from competition.data.records import journal_lines
from competition.study.objectives import measure
from competition.study.source import Source
from competition.study.space import suggest
from competition.study.storage import OWNER, owner
from competition.study.watch import Pruned, Watch

if TYPE_CHECKING:
    import optuna

    from competition.training.runs import CvRun

REASON = "reason"  # the attribute of a trial that failed or was pruned


ABSURD = 1e3  # a training loss beyond which the learning rate is to blame, whatever failed in the end


class Repeated(Exception):
    """The sampler drew a trial that is there already; it is given up and counts nowhere."""


class Worker:
    """Optuna's objective.

    Args:
        source: the experiment.
        study: what is searched.
        folder: of the study.
        say: takes lines for the user.
    """

    def __init__(self, source: Source, study: Study, folder: Path, say: Callable[[str], None]) -> None:
        self.source, self.study, self.folder, self.say = source, study, folder, say
        self.release: Callable[[], None] = lambda: None
        self.number: int | None = None  # of the trial that runs, or ran last
        self.repeats = 0  # draws in a row that were trials that are there already

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Runs a trial.

        Raises:
            optuna.TrialPruned: it was stopped.
            Repeated: another trial with its values runs or has ended.
            MaskfoldError: it failed; the reason is an attribute of the trial.
        """
        self.number = trial.number
        trial.set_user_attr(OWNER, owner())
        words = suggest(trial, self.study)
        if (same := _same(trial)) is not None:
            self.repeats += 1
            self.say(f"trial {trial.number} would be trial {same} again; another one is drawn")
            raise Repeated(f"as trial {same}")
        self.repeats = 0
        self.release()  # the trial is taken: the next process may take one
        try:
            return self._run(trial, words)
        except MaskfoldError as error:
            reason = f"{error}{self._loss(trial)}"
            trial.set_user_attr(REASON, reason[:2000])
            self.say(f"trial {trial.number} failed: {reason}")
            raise

    def _run(self, trial: optuna.Trial, words: list[str]) -> tuple[float, ...]:
        import optuna

        from competition.tracking.shipper import Shipper
        from competition.training.cv import prepare_run, run_cv
        from competition.training.lock import alone
        from competition.training.runs import open_run

        self.say(f"trial {trial.number}: {' '.join(words)}")
        trial.set_user_attr("words", words)
        exp = self.source.load(words)
        run = open_run(exp, trials_name(self.source, exp.competition.name))
        trial.set_user_attr("run", str(run.folder))
        run = prepare_run(run, lambda _: None, self.source.trust)
        watch = Watch(run, trial, self.study)
        name = f"trial {trial.number} · {run.folder.name}"
        with alone(run.folder, say=self.say), Shipper(run.folder, exp, name=name, study=self.folder) as shipper:
            try:
                summary = run_cv(run, lambda line: self.say(f"  {line}"), self.source.trust, watch)
                if self.study.pruner == "wilcoxon":
                    watch.look()  # what the last fold said, for the trials to come
                found = measure(run, summary, self.study)
            except Pruned as pruned:
                trial.set_user_attr(REASON, str(pruned))
                _stopped(run, str(pruned))
                shipper.finish("KILLED")
                self.say(f"trial {trial.number} {pruned}")
                raise optuna.TrialPruned(str(pruned)) from None
            except MaskfoldError as error:
                _stopped(run, f"failed: {error}")
                raise
        for name, bound in self.study.constraints.items():
            trial.set_constraint(name, found[name] - bound)
        values = tuple(found[name] for name in self.study.objectives)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        self.say(f"trial {trial.number} complete: {shown}")
        return values

    def _loss(self, trial: optuna.Trial) -> str:
        """What the training loss had become, where that says more than the error."""
        folder = trial.user_attrs.get("run")
        last = [
            losses[-1]
            for path in (Path(folder).glob("*/metrics.jsonl") if folder else ())
            if (losses := [line.metrics["train/loss"] for line in journal_lines(path) if "train/loss" in line.metrics])
        ]
        worst = max(map(abs, last), default=0.0)
        return f" The training loss had become {worst:.3g}." if worst > ABSURD else ""


def is_given_up(trial: Any) -> bool:
    """A trial of a killed process, or a draw of what was there already: it failed without a reason."""
    return trial.state.name == "FAIL" and REASON not in trial.user_attrs


def _same(trial: optuna.Trial) -> int | None:
    """The number of the trial with the same values that runs or has ended."""
    return next(
        (
            other.number
            for other in trial.study.get_trials(deepcopy=False)
            if other.number != trial.number
            and other.state.name != "WAITING"
            and not is_given_up(other)
            and other.params == trial.params
        ),
        None,
    )


def _stopped(run: CvRun, reason: str) -> None:
    """Say in the run's summary, and so in MLflow, why it ended early."""
    from competition.tracking.identity import read_result
    from competition.training.checkpoint import write_json

    path = run.folder / "summary.json"
    write_json(path, {**read_result(path), "metric": run.exp.competition.metric.name, "stopped": reason})


def trials_name(source: Source, competition: str) -> str:
    """The name of the runs of an experiment's trials: `submit FILE` shall not take one for the experiment's own."""
    return f"{competition}-{source.file.stem}-trials"


def words_of(trial: Any) -> list[str]:
    """The `key=value` words of a trial that has begun."""
    return list(trial.user_attrs.get("words", []))
