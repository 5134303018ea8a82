"""The number of training steps: fixed by the YAML, or estimated from the clock under a time budget.

The learning-rate schedule depends on the completed fraction of training. Without a time budget this fraction is `step /
total`. With `training.budget_minutes`, the total is estimated repeatedly while the fold runs. Each estimate is a pair
`[step, total]`: from that step on, the remaining fraction is spread evenly over the remaining steps. The estimates are
stored in the checkpoint and in the fold's YAML, so that a repeated run uses them instead of the clock.
"""

from __future__ import annotations

from collections.abc import Callable

from competition.config.experiment import Experiment

FIRST_ESTIMATE = 12  # steps before the first estimate; the first few steps are slower than the others
WARMUP_STEPS = 4  # first steps of each process, which are not timed


class StepBudget:
    """The step budget of a fold.

    Args:
        total: number of steps, as known at the start.
        estimates: `[step, total]` pairs of an earlier process, or of a run that is repeated.
        seconds: time budget; None: ignore the clock and use `estimates` (or `total`).
    """

    def __init__(self, total: int, estimates: list[list[int]] | None = None, seconds: float | None = None) -> None:
        self.estimates = [list(pair) for pair in estimates] if estimates else [[0, max(1, total)]]
        self.seconds = seconds
        self._timed_steps = 0
        self._pace_start = (0, 0.0)  # step and elapsed seconds at which the measurement of the pace starts

    @classmethod
    def from_experiment(cls, exp: Experiment, steps_per_epoch: int) -> StepBudget:
        """Return the step budget at the start of a fold."""
        training = exp.training
        seconds = None if training.budget_minutes is None or training.plan else 60.0 * training.budget_minutes
        return cls(training.epochs * steps_per_epoch, training.plan, seconds)

    def fraction_done(self, step: int) -> float:
        """Return the fraction of training that is complete before `step`, in [0, 1]."""
        fraction = 0.0
        for index, (start, total) in enumerate(self.estimates):
            if start >= step and index:
                break
            next_start = self.estimates[index + 1][0] if index + 1 < len(self.estimates) else step
            end = min(step, next_start)
            fraction += (1.0 - fraction) * (end - start) / max(1, total - start)
        return min(1.0, fraction)

    def is_done(self, step: int) -> bool:
        """Return whether training is complete after `step` steps."""
        return step >= self._total_at(step)

    def _total_at(self, step: int) -> int:
        return next(total for start, total in reversed(self.estimates) if start <= step)

    def reset_pace(self) -> None:
        """Restart the measurement of the pace, after training restored an earlier step."""
        self._timed_steps = 0

    def update_from_clock(self, step: int, elapsed: float, reserve: Callable[[], float]) -> None:
        """Add an estimate if there is a time budget and enough steps have passed since the last estimate.

        Args:
            step: number of finished steps.
            elapsed: seconds since the fold started, including earlier processes.
            reserve: function that returns the seconds that the fold needs after the last step.
        """
        if self.seconds is None:
            return
        self._timed_steps += 1
        if self._timed_steps == WARMUP_STEPS:
            self._pace_start = (step, elapsed)
        start, total = self.estimates[-1]
        due = start + (FIRST_ESTIMATE if len(self.estimates) == 1 else max(FIRST_ESTIMATE, (total - start) // 8))
        if step < due or step >= total or self._timed_steps <= WARMUP_STEPS:
            return
        start_step, start_elapsed = self._pace_start
        # This time includes validations, as that of later steps will.
        seconds_per_step = (elapsed - start_elapsed) / (step - start_step)
        remaining = max(1, int((self.seconds - elapsed - reserve()) / max(seconds_per_step, 1e-9)))
        self.estimates.append([step, step + remaining])
