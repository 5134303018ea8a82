"""One trial: the words that Optuna draws, one cross-validation run, its objectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError
from competition.config.study import Study
from competition.study.objectives import measure
from competition.study.space import Source, suggest
from competition.study.storage import OWNER, owner
from competition.study.watch import Pruned, Watch

if TYPE_CHECKING:
    import optuna

REASON = "reason"  # the attribute of a trial that failed or was pruned


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

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Runs a trial.

        Raises:
            optuna.TrialPruned: it was stopped.
            MaskfoldError: it failed; the reason is an attribute of the trial.
        """
        self.number = trial.number
        trial.set_user_attr(OWNER, owner())
        words = suggest(trial, self.study)
        self.release()  # the trial is taken: the next process may take one
        try:
            return self._run(trial, words)
        except MaskfoldError as error:
            trial.set_user_attr(REASON, f"{error}"[:2000])
            self.say(f"trial {trial.number} failed: {error}")
            raise

    def _run(self, trial: optuna.Trial, words: list[str]) -> tuple[float, ...]:
        import optuna

        from competition.tracking.shipper import Shipper
        from competition.training.checkpoint import write_json
        from competition.training.cv import prepare_run, run_cv
        from competition.training.runs import open_run

        self.say(f"trial {trial.number}: {' '.join(words)}")
        trial.set_user_attr("words", words)
        exp = self.source.load(words)
        run = open_run(exp, trials_name(self.source, exp.competition.name))
        trial.set_user_attr("run", str(run.folder))
        prepare_run(run, lambda _: None, self.source.trust)
        watch = Watch(run, trial, self.study)
        with Shipper(run.folder, exp, name=f"trial {trial.number} · {run.folder.name}", study=self.folder) as shipper:
            try:
                summary = run_cv(run, lambda line: self.say(f"  {line}"), self.source.trust, watch)
                if self.study.pruner == "wilcoxon":
                    watch.look()  # what the last fold said, for the trials to come
            except Pruned as pruned:
                trial.set_user_attr(REASON, str(pruned))
                write_json(run.folder / "summary.json", {"metric": exp.competition.metric.name, "stopped": str(pruned)})
                shipper.finish("KILLED")
                self.say(f"trial {trial.number} {pruned}")
                raise optuna.TrialPruned(str(pruned)) from None
        found = measure(run, summary, self.study)
        trial.set_user_attr("constraints", [found[name] - bound for name, bound in self.study.constraints.items()])
        values = tuple(found[name] for name in self.study.objectives)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        self.say(f"trial {trial.number} complete: {shown}")
        return values


def trials_name(source: Source, competition: str) -> str:
    """The name of the runs of an experiment's trials: `submit FILE` shall not take one for the experiment's own."""
    return f"{competition}-{source.file.stem}-trials"


def words_of(trial: Any) -> list[str]:
    """The `key=value` words of a trial that has begun."""
    return list(trial.user_attrs.get("words", []))
