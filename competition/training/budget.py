"""Determine the number of training steps: from the YAML or, with a time budget, from the clock.

The learning rate depends on the completed fraction of training. Without a time budget, this fraction is `step / total`.

With `training.budget_minutes`, the total number of steps is estimated before the first step, from trial steps and a
timed validation case (see `competition.training.timing`). While the fold runs, the total is estimated again: at regular
intervals, and as soon as a clearly different number of steps fits into the remaining time.

Each estimate is a pair `[step, total]`: the step after which the total was estimated, and the estimated total number of
steps. From this step on, the remaining fraction of training is spread evenly over the remaining steps. So the completed
fraction never falls, and ends at 1.

The checkpoint and the `experiment.yaml` in the fold's folder store the estimates. With them, a run can be repeated with
the same number of steps and the same learning rates, whatever the clock shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from competition.config.experiment import Experiment
from competition.models.schedules import warmup_share
from competition.training.timing.pace import WINDOW_SHARE, Pace

MIN_STEPS = 4  # minimum number of steps of a fold, even if its budget is shorter
ESTIMATE_SHARE = 8  # after an estimate, the next regular one follows when 1/8 of the remaining steps are taken
# Without a time budget, the seconds per step are only shown to the user; this time (s) replaces the remaining time.
DEFAULT_SECONDS = 300.0
# If the number of steps that fit into the remaining time differs from the estimate by this share, the total is
# estimated again at once.
TOLERANCE = 0.1


class StepBudget:
    """Estimate the number of training steps of a fold, and the completed fraction of its training.

    Args:
        total: number of steps that is assumed at the start; ignored if `estimates` is given.
        estimates: `[step, total]` pairs of an earlier process, or of a run that is repeated; None for a new fold.
        seconds: the time budget in seconds. If None, the clock is not used, and the number of steps follows from
            `estimates` or `total`.
        steps_per_epoch: number of steps of an epoch.
        validate_every: number of epochs between two validations; None if the fold has no validation cases.
        validations_required: whether every planned validation must take place, because the result depends on it. If
            not, validations may be left out to save time.
        warmup: share of the training in which the learning rate rises. Training does not end before this share is
            complete.
    """

    def __init__(
        self,
        total: int,
        estimates: list[list[int]] | None = None,
        seconds: float | None = None,
        *,
        steps_per_epoch: int = 1,
        validate_every: int | None = None,
        validations_required: bool = False,
        warmup: float = 0.0,
    ) -> None:
        self.estimates = [list(pair) for pair in estimates] if estimates else [[0, max(1, total)]]
        self.seconds = seconds
        self.pace = Pace(WINDOW_SHARE * (seconds or DEFAULT_SECONDS), steps_per_epoch)
        self._validation_period = steps_per_epoch * validate_every if validate_every else None
        self._validations_required, self._warmup = validations_required, warmup
        self._last_elapsed: float | None = None
        self._pause = 0.0  # seconds since the last step that were not part of a step

    @classmethod
    def from_experiment(cls, exp: Experiment, steps_per_epoch: int, validates: bool = True) -> StepBudget:
        """Return the step budget for the start of a fold.

        Args:
            exp: the experiment.
            steps_per_epoch: number of steps of an epoch.
            validates: whether the fold has validation cases.
        """
        training = exp.training
        seconds = None if training.budget_minutes is None or training.plan else 60.0 * training.budget_minutes
        return cls(
            training.epochs * steps_per_epoch,
            training.plan,
            seconds,
            steps_per_epoch=steps_per_epoch,
            validate_every=training.validate_every if validates else None,
            validations_required=training.weights == "best" or training.soup > 1 or exp.early_stopping is not None,
            warmup=warmup_share(exp.schedule),
        )

    @property
    def total(self) -> int:
        """The total number of steps, according to the latest estimate."""
        return self.estimates[-1][1]

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

    # The clock

    def start(self, step: int, elapsed: float, reserve: float, validation_due: bool) -> None:
        """Estimate the total number of steps from the speed that was measured before the first step of this process.

        Args:
            step: number of completed steps; 0 for a new fold.
            elapsed: seconds since the fold started, including the time of earlier processes.
            reserve: seconds that the fold needs after its last step.
            validation_due: whether the last completed step ended an epoch that still has to be validated.
        """
        if self.seconds is None:
            return
        self._last_elapsed, self._pause = elapsed, 0.0
        remaining = self._steps_left(step, self.seconds - elapsed - reserve, validation_due)
        if step == 0:
            self.estimates = [[0, remaining]]
        elif step + remaining != self.total:
            self._add_estimate(step, remaining)

    def reset_pace(self) -> None:
        """Exclude the next step from the timing; call this after training has restored an earlier state."""
        self._last_elapsed = None

    def add_epoch_end(self, seconds: float, validation_seconds: float | None) -> None:
        """Record the duration of the work at the end of an epoch, which is not counted as part of the next step.

        Args:
            seconds: duration of this work (validation, checkpoint, pictures).
            validation_seconds: the part of `seconds` that the validation took; None if there was no validation.
        """
        self._pause += seconds
        self.pace.epoch_end = seconds - (validation_seconds or 0.0)
        if validation_seconds is not None:
            self.pace.set_validation(validation_seconds)

    def update_from_clock(self, step: int, elapsed: float, reserve: Callable[[], float]) -> None:
        """Measure the time of the last step and, with a time budget, update the estimated number of steps.

        Args:
            step: number of completed steps. If the epoch is complete, call this function before the work at the end of
                the epoch.
            elapsed: seconds since the fold started, including the time of earlier processes.
            reserve: function that returns the seconds that the fold needs after its last step.
        """
        last, self._last_elapsed = self._last_elapsed, elapsed
        pause, self._pause = self._pause, 0.0
        if last is None:
            return
        if self.seconds is not None:
            self.pace.window = WINDOW_SHARE * max(0.0, self.seconds - elapsed)
        self.pace.add_step(elapsed - last - pause)
        start, total = self.estimates[-1]
        if self.seconds is None or step >= total:
            return
        planned = total - step
        remaining = self._steps_left(step, self.seconds - elapsed - reserve(), validation_due=True)
        is_due = step >= start + max(1, (total - start) // ESTIMATE_SHARE)
        if remaining != planned and (is_due or abs(remaining - planned) > TOLERANCE * planned):
            self._add_estimate(step, remaining)

    def has_time_to_validate(self, elapsed: float, reserve: Callable[[], float]) -> bool:
        """Return whether a validation now would leave enough time for training; always True without a time budget.

        Args:
            elapsed: seconds since the fold started, including the time of earlier processes.
            reserve: function that returns the seconds that the fold needs after its last step.
        """
        if self.seconds is None:
            return True
        return self.pace.has_time_to_validate(self.seconds - elapsed - reserve(), self._validations_required)

    def _steps_left(self, step: int, seconds: float, validation_due: bool) -> int:
        """Return the number of further steps: as many as fit into `seconds`, but at least as many as the fold needs.

        The fold needs the rest of the warm-up, and `MIN_STEPS` steps in all.

        Args:
            step: number of completed steps.
            seconds: time for the remaining steps and the validations between them.
            validation_due: whether an epoch that has ended must be validated before the next step.
        """
        period, until_validation = self._validation_period, None
        if period is not None:
            until_validation = period - step % period
            if validation_due and until_validation == period and step:
                until_validation = 0
        steps = self.pace.steps_within(seconds, until_validation, period or 1, self._validations_required)
        fraction = self.fraction_done(step)
        out_of_warmup = math.ceil((1.0 - fraction) / (1.0 - self._warmup)) if fraction < self._warmup < 1 else 1
        return max(steps, out_of_warmup, MIN_STEPS - step)

    def _add_estimate(self, step: int, remaining: int) -> None:
        if self.estimates[-1][0] == step:
            self.estimates.pop()
        self.estimates.append([step, step + remaining])
