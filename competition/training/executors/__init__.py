"""Where folds run. An executor takes jobs and returns when all are finished; what they give back lies on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from competition.config import Experiment
from competition.training.job import Job


class Executor(Protocol):
    """Runs folds, some at a time."""

    def run(self, jobs: Sequence[Job], say: Callable[[str], None], alive: Callable[[], None] = lambda: None) -> None:
        """Run every job to its end.

        Args:
            jobs: the folds.
            say: takes lines for the user.
            alive: called again and again, some times a second; what it raises stops the folds, each with a checkpoint.

        Raises:
            MaskfoldError: a fold failed; the others were stopped with a checkpoint.
        """


def make_executor(exp: Experiment) -> Executor:
    """The executor that `run.executor` names."""
    run = exp.run
    if run.executor == "ray":
        from competition.training.executors.ray import RayExecutor

        return RayExecutor(run)
    from competition.training.executors.local import LocalExecutor

    return LocalExecutor(run.parallel_folds, run.devices)
