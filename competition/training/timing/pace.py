"""How fast this machine trains and predicts, from measurements that are renewed while a fold runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_STEPS = 4  # the mean covers at least about this many steps
WINDOW_SHARE = 0.15  # of the time that is left, which the mean covers: it is smooth at first, and quick at the end
MAX_SLOWDOWN = 3.5  # one step counts at most this many times the mean: a pause of the machine is no new pace
MAX_DRIFT = 4.0  # a validation is expected to take at most this many times what it took when it was measured


@dataclass
class Pace:
    """The seconds of a step, of an epoch's end and of a validation, as of now.

    Attributes:
        window: seconds that the mean over steps covers; more if these are fewer than `WINDOW_STEPS` steps.
        steps_per_epoch: spreads `epoch_end` over the steps.
        step: seconds of a step; 0 until one was measured.
        epoch_end: seconds of the end of an epoch (checkpoint, pictures) without a validation.
    """

    window: float
    steps_per_epoch: int = 1
    step: float = 0.0
    epoch_end: float = 0.0
    _time: float = 0.0  # of the steps so far, earlier ones weigh less
    _steps: float = 0.0  # their number, weighed alike
    _validation: float = 0.0
    _writing: float = 0.0  # what the final prediction takes beyond a validation
    _validation_step: float = 0.0  # seconds of a step when the validation was measured

    def start(self, step_seconds: float) -> None:
        """Set the seconds of a step from timed steps, before the first one that counts."""
        self.step = self._time = max(step_seconds, 1e-9)
        self._steps = 1.0

    def add_step(self, seconds: float) -> None:
        """Include a step in the mean; the older a step, the less it counts."""
        seconds = max(seconds, 1e-9)
        if self._steps:
            seconds = min(seconds, MAX_SLOWDOWN * self.step)
            decay = math.exp(-seconds / max(self.window, WINDOW_STEPS * self.step))
            self._time, self._steps = decay * self._time, decay * self._steps
        self._time, self._steps = self._time + seconds, self._steps + 1.0
        self.step = self._time / self._steps

    def set_validation(self, seconds: float, writing: float | None = None) -> None:
        """Set the seconds of a validation, and those that the final prediction takes in addition."""
        # A validation that took longer than the last one shows that the machine is slower, before the mean over steps
        # does. Later steps of that pace are then no reason to expect an even slower validation.
        step = self.step
        if self._validation:
            step = max(step, self._validation_step * seconds / self._validation)
        self._validation, self._validation_step = seconds, min(step, MAX_SLOWDOWN * self.step)
        if writing is not None:
            self._writing = writing

    @property
    def validation(self) -> float:
        """Seconds of a validation: as measured, times how much slower the steps have become since."""
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
        """Return how many steps fit into some seconds, with the validations between them.

        Args:
            seconds: without those that the fold needs after its last step.
            until_validation: steps until the next validation, 0 if one is due now; None without validations.
            period: steps between validations.
            required: the result depends on each validation, so none is left out; see `has_time_to_validate`.
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
                # A required validation is that of the last epoch if no further step follows it.
                return steps + (min(fitting, until_validation) if required and until_validation else fitting)
            steps, seconds = steps + until_validation, seconds - before - self.validation
            whole = int((seconds - 2 * self.validation - step) / cost) - 1  # further periods that certainly fit
            if whole > 0:
                steps, seconds = steps + whole * period, seconds - whole * cost
            until_validation = period

    def has_time_to_validate(self, seconds: float, required: bool) -> bool:
        """Return whether a validation leaves time for steps after it: one if it is required, else as much as it takes.

        Args:
            seconds: without those that the fold needs after its last step.
            required: the result depends on the validation.
        """
        return seconds >= self.validation + (self.step if required else max(self.step, self.validation))
