"""Estimate how long a training step, the end of an epoch and a validation take, from measurements during the fold."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The seconds of a step are a moving average over the last steps.
WINDOW_STEPS = 4  # the average covers at least about this many steps
# Share of the remaining time that the average covers. So it is smooth at first, and reacts fast at the end.
WINDOW_SHARE = 0.15
# A longer step enters the average with this many times the average, so that a pause of the machine hardly changes it.
MAX_SLOWDOWN = 3.5
MAX_DRIFT = 4.0  # a validation is estimated to take at most this many times as long as when it was measured


@dataclass
class Pace:
    """Hold the present estimates of the seconds of a step, of the end of an epoch, and of a validation.

    Attributes:
        window: seconds that the moving average over steps covers. If fewer than `WINDOW_STEPS` steps fit into this
            time, the average covers more.
        steps_per_epoch: number of steps of an epoch, over which `epoch_end` is distributed.
        step: estimated seconds of a step; 0 until a step was measured.
        epoch_end: seconds of the work at the end of an epoch (checkpoint, pictures), without a validation.
    """

    window: float
    steps_per_epoch: int = 1
    step: float = 0.0
    epoch_end: float = 0.0
    _time: float = 0.0  # weighted sum of the steps' seconds; earlier steps have lower weights
    _steps: float = 0.0  # sum of these weights
    _validation: float = 0.0
    _writing: float = 0.0  # seconds that the final prediction takes in addition to a validation
    _validation_step: float = 0.0  # seconds of a step when the validation was measured

    def start(self, step_seconds: float) -> None:
        """Set the seconds of a step from the trial steps, which are measured before the first training step."""
        self.step = self._time = max(step_seconds, 1e-9)
        self._steps = 1.0

    def add_step(self, seconds: float) -> None:
        """Include the seconds of a new step in the moving average."""
        seconds = max(seconds, 1e-9)
        if self._steps:
            seconds = min(seconds, MAX_SLOWDOWN * self.step)
            decay = math.exp(-seconds / max(self.window, WINDOW_STEPS * self.step))
            self._time, self._steps = decay * self._time, decay * self._steps
        self._time, self._steps = self._time + seconds, self._steps + 1.0
        self.step = self._time / self._steps

    def set_validation(self, seconds: float, writing: float | None = None) -> None:
        """Record the measured seconds of a validation.

        Args:
            seconds: duration of the validation.
            writing: seconds that the final prediction takes in addition to a validation; None if this was not measured
                now.
        """
        # A validation that took longer than the last one shows that the machine has become slower, before the average
        # over steps shows it. Later steps will show the same, and must not raise the estimate of a validation again.
        step = self.step
        if self._validation:
            step = max(step, self._validation_step * seconds / self._validation)
        self._validation, self._validation_step = seconds, min(step, MAX_SLOWDOWN * self.step)
        if writing is not None:
            self._writing = writing

    @property
    def validation(self) -> float:
        """Estimated seconds of a validation: the measured seconds, times the slowdown of training steps since then."""
        return self._validation * self._drift

    @property
    def final_prediction(self) -> float:
        """Estimated seconds to predict, write and score the validation cases after the last step."""
        return (self._validation + self._writing) * self._drift

    @property
    def _drift(self) -> float:
        if not (self.step and self._validation_step):
            return 1.0
        return min(max(self.step / self._validation_step, 1.0), MAX_DRIFT)

    def steps_within(self, seconds: float, until_validation: int | None, period: int, required: bool) -> int:
        """Return the number of steps that fit into `seconds`, together with the validations between these steps.

        Args:
            seconds: the time left, without the time that the fold needs after its last step.
            until_validation: number of steps until the next validation; 0 if a validation is due now; None if the fold
                has no validations.
            period: number of steps between two validations.
            required: whether every validation must take place, because the result depends on it; see
                `has_time_to_validate`.
        """
        if not self.step:
            return 1
        step = self.step + self.epoch_end / self.steps_per_epoch
        if until_validation is None:
            return max(0, int(seconds / step + 0.3))
        steps, cost = 0, period * step + self.validation
        while True:
            before = until_validation * step
            if not self.has_time_to_validate(seconds - before, required):
                fitting = max(0, int(seconds / step + 0.3))
                # A required validation may be left out only if no step follows it, because the last epoch is validated
                # anyway. So stop at the step of this validation.
                return steps + (min(fitting, until_validation) if required and until_validation else fitting)
            steps, seconds = steps + until_validation, seconds - before - self.validation
            whole = int((seconds - 2 * self.validation - step) / cost) - 1  # number of further periods that surely fit
            if whole > 0:
                steps, seconds = steps + whole * period, seconds - whole * cost
            until_validation = period

    def has_time_to_validate(self, seconds: float, required: bool) -> bool:
        """Return whether enough time for training would remain after a validation.

        After a required validation, there must be time for one step. After any other validation, there must be at least
        as much time for training as the validation has taken.

        Args:
            seconds: the time left, without the time that the fold needs after its last step.
            required: whether the result depends on the validation.
        """
        return seconds >= self.validation + (self.step if required else max(self.step, self.validation))
