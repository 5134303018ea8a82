"""A clock that only the steps and predictions of a fold advance."""

from __future__ import annotations

import pytest

from competition.training import evaluator, trainer
from competition.training.evaluator import Evaluator
from competition.training.timing import progress
from competition.training.trainer import Trainer


class FakeClock:
    """Replace the clock of folds that run in this process.

    Args:
        patch: pytest's fixture, which undoes the replacement after the test.
        step: seconds by which a micro-batch advances the clock.
        case: seconds by which the prediction of a case advances the clock.
    """

    def __init__(self, patch: pytest.MonkeyPatch, step: float, case: float) -> None:
        self.now, self.step, self.case = 1.0, step, case
        for module in (trainer, evaluator, progress):
            patch.setattr(module, "time", self)
        backward, predict = Trainer._backward, Evaluator.predict

        def slow_backward(trainer, batches):
            self.now += self.step
            return backward(trainer, batches)

        def slow_predict(evaluator, network, row):
            self.now += self.case
            return predict(evaluator, network, row)

        patch.setattr(Trainer, "_backward", slow_backward)
        patch.setattr(Evaluator, "predict", slow_predict)

    def monotonic(self) -> float:
        return self.now

    def slow_down(self) -> None:
        """Let steps and predictions take three times as long from now on."""
        self.step, self.case = 3 * self.step, 3 * self.case
