"""Estimate the seconds of training steps and of prediction on this machine, from measurements during the fold."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_STEPS = 4  # the mean covers at least about this many steps
WINDOW_SHARE = 0.15  # share of the remaining time that the mean covers: smooth at first, fast to react at the end
MAX_SLOWDOWN = 3.5  # a step counts as at most this many times the mean, so a pause of the machine hardly changes it
MAX_DRIFT = 4.0  # a validation is estimated to take at most this many times as long as when it was measured


@dataclass
class Pace:
    """Hold the current estimates of the seconds of a step, of an epoch's end and of a validation.

    Attributes:
        window: seconds that the mean over steps covers; longer if fewer than `WINDOW_STEPS` steps fit.
        steps_per_epoch: number of steps over which `epoch_end` is spread.
        step: seconds of a step; 0 until a step was measured.
        epoch_end: seconds of the end of an epoch (checkpoint, pictures) without a validation.
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
        """Set the seconds of a step, as measured by trial steps before the first training step."""
        self.step = self._time = max(step_seconds, 1e-9)
        self._steps = 1.0

    def add_step(self, seconds: float) -> None:
        """Include a step in the mean, in which older steps count less."""
        seconds = max(seconds, 1e-9)
        if self._steps:
            seconds = min(seconds, MAX_SLOWDOWN * self.step)
            decay = math.exp(-seconds / max(self.window, WINDOW_STEPS * self.step))
            self._time, self._steps = decay * self._time, decay * self._steps
        self._time, self._steps = self._time + seconds, self._steps + 1.0
        self.step = self._time / self._steps

    def set_validation(self, seconds: float, writing: float | None = None) -> None:
        """Record the seconds of a validation, and the additional seconds of the final prediction (`writing`)."""
        # A validation that took longer than the last one shows a slower machine before the mean over steps does. When
        # later steps show the same slower pace, they must not raise the estimate of a validation a second time.
        step = self.step
        if self._validation:
            step = max(step, self._validation_step * seconds / self._validation)
        self._validation, self._validation_step = seconds, min(step, MAX_SLOWDOWN * self.step)
        if writing is not None:
            self._writing = writing

    @property
    def validation(self) -> float:
        """Seconds of a validation: the measured seconds times the slowdown of training steps since the measurement."""
        return self._validation * self._drift

    @property
    def final_prediction(self) -> float:
        """Seconds to predict, write and score the validation cases after the last step."""
        return (self._validation + self._writing) * self._drift

    @property
    def _drift(self) -> float:
        if not (self.step and self._validation_step):
            return 1.0
        return min(max(self.step / self._validation_step, 1.0), MAX_DRIFT)

    def steps_within(self, seconds: float, until_validation: int | None, period: int, required: bool) -> int:
        """Return the number of steps that fit into a time, together with the validations between the steps.

        Args:
            seconds: the time, without the time that the fold needs after its last step.
            until_validation: steps until the next validation; 0 if a validation is due now; None without validations.
            period: steps between validations.
            required: whether no validation may be left out, because the result depends on each one; see
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
                # If no further step follows, the required validation is at the same time the last epoch's.
                return steps + (min(fitting, until_validation) if required and until_validation else fitting)
            steps, seconds = steps + until_validation, seconds - before - self.validation
            whole = int((seconds - 2 * self.validation - step) / cost) - 1  # further periods that certainly fit
            if whole > 0:
                steps, seconds = steps + whole * period, seconds - whole * cost
            until_validation = period

    def has_time_to_validate(self, seconds: float, required: bool) -> bool:
        """Return whether enough time for training remains after a validation.

        Enough time means the time of one step if `required`, otherwise the time of the validation.

        Args:
            seconds: the time left, without the time that the fold needs after its last step.
            required: whether the result depends on the validation.
        """
        return seconds >= self.validation + (self.step if required else max(self.step, self.validation))
