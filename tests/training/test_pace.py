"""A time budget is kept and used: simulated folds on a clock that only they advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from competition.config.experiment import SCHEDULES, ScheduleConfig
from competition.training.budget import MIN_STEPS, StepBudget
from competition.training.timing.pace import Pace


@dataclass
class Simulation:
    """A fold whose steps and validations take what `step` and `validation` say, times `slowness(clock)`."""

    minutes: float
    step: float
    validation: float
    steps_per_epoch: int = 25
    validate_every: int = 2
    warmup: float = 0.0
    required: bool = False
    begin: float = 8.0
    slowness: Callable[[float], float] = lambda clock: 1.0
    timed_wrong: float = 1.0  # what the timed steps took, relative to those of the fold

    def run(self) -> Simulation:
        self.clock, self.taken, self.validated = self.begin, 0, 0
        self.budget = StepBudget(
            10**6,
            seconds=60.0 * self.minutes,
            steps_per_epoch=self.steps_per_epoch,
            validate_every=self.validate_every,
            validations_required=self.required,
            warmup=self.warmup,
        )
        timed = self.step * self.timed_wrong
        self.clock += timed + self.validation / 10
        self.budget.pace.start(timed)
        self.budget.pace.set_validation(self.validation, 0.1 * self.validation)
        self.budget.start(0, self.clock, self.reserve(), False)
        self.expected = self.budget.total
        self.fractions = []
        while not self.budget.is_done(self.taken):
            self.fractions.append(self.budget.fraction_done(self.taken))
            self.advance(self.step)
            self.taken += 1
            self.budget.update_from_clock(self.taken, self.clock, self.reserve)
            last = self.budget.is_done(self.taken)
            if self.taken % self.steps_per_epoch == 0 or last:
                self.end_epoch(last)
        self.advance(1.1 * self.validation + 1.0)
        return self

    def end_epoch(self, last: bool) -> None:
        start, seconds = self.clock, None
        due = self.taken // self.steps_per_epoch % self.validate_every == 0
        if self.required if last else due and self.budget.has_time_to_validate(self.clock, self.reserve):
            self.advance(self.validation)
            seconds, self.validated = self.clock - start, self.validated + 1
        self.budget.add_epoch_end(self.clock - start, seconds)

    def reserve(self) -> float:
        return 1.15 * (self.budget.pace.final_prediction + self.required * self.budget.pace.validation) + 2.0

    def advance(self, seconds: float) -> None:
        self.clock += seconds * self.slowness(self.clock)

    def assert_kept(self, slowest: float = 1.0) -> None:
        seconds = 60.0 * self.minutes
        allowed = max(0.03 * seconds, 20.0, slowest * self.step)
        assert abs(self.clock - seconds) <= allowed, (self.clock, seconds, self.taken)
        assert self.budget.fraction_done(self.taken) == pytest.approx(1.0)
        assert self.fractions == sorted(self.fractions)


@pytest.mark.parametrize("minutes", [1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("step", [0.02, 0.4, 3.0, 30.0])
@pytest.mark.parametrize("validation", [0.0, 2.0, 15.0])
def test_a_fold_ends_on_time_with_a_finished_schedule(minutes, step, validation):
    if (MIN_STEPS + 1) * step + 2.5 * validation + 15 > 60 * minutes:
        pytest.skip("the budget is too short for four steps")
    fold = Simulation(minutes, step, validation).run()
    fold.assert_kept()
    assert abs(fold.taken - fold.expected) <= max(1, 0.02 * fold.taken)  # known from the start


@pytest.mark.parametrize(("minutes", "step"), [(8.0, 0.4), (8.0, 3.0), (20.0, 30.0)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("validation", [0.0, 15.0])
def test_a_machine_that_slows_down_to_a_third_ends_on_time(minutes, step, share, validation):
    slow_from = share * 60 * minutes
    fold = Simulation(minutes, step, validation, slowness=lambda clock: 3.0 if clock > slow_from else 1.0).run()
    fold.assert_kept(slowest=3.0)


@pytest.mark.parametrize("slowness", [3.0, 1 / 3])
def test_timed_steps_that_were_far_off_are_corrected(slowness):
    fold = Simulation(3.0, 0.4, 5.0, timed_wrong=slowness).run()
    fold.assert_kept()


def test_a_pause_of_the_machine_does_not_end_the_schedule_early():
    pauses = iter([1.0] * 200 + [100.0] + [1.0] * 100_000)
    fold = Simulation(8.0, 0.5, 5.0, slowness=lambda clock: next(pauses)).run()
    fold.assert_kept()
    gaps = [after - before for before, after in zip(fold.fractions, fold.fractions[1:], strict=False)]
    assert max(gaps) < 3 / fold.expected


@pytest.mark.parametrize("warmup", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("step", [0.4, 30.0, 500.0])
def test_a_fold_takes_a_few_steps_and_leaves_its_warmup(warmup, step):
    fold = Simulation(1.0, step, 5.0, warmup=warmup, slowness=lambda clock: 3.0 if clock > 12 else 1.0).run()
    assert fold.taken >= MIN_STEPS and fold.fractions[-1] >= warmup - 1e-9
    assert fold.budget.fraction_done(fold.taken) == pytest.approx(1.0)


def test_a_required_validation_is_not_left_out():
    fold = Simulation(3.0, 0.5, 20.0, steps_per_epoch=20, required=True).run()
    optional = Simulation(3.0, 0.5, 20.0, steps_per_epoch=20).run()
    optional.assert_kept()
    assert fold.validated == 1 + (fold.taken - 1) // 40  # each, and that of the last epoch
    assert optional.validated <= fold.validated and fold.clock <= 200


@pytest.mark.parametrize("name", ["cosine", "poly", "onecycle"])
def test_the_rates_are_those_of_the_same_steps_without_a_budget(name):
    cfg = ScheduleConfig(name=name, warmup=0.1)
    fold = Simulation(4.0, 6.0, 20.0, warmup=0.1, steps_per_epoch=12).run()
    rate = SCHEDULES.get(name)
    plain = StepBudget(fold.taken)
    pairs = [(rate(fold.fractions[k], cfg), rate(plain.fraction_done(k), cfg)) for k in range(fold.taken)]
    assert 20 < fold.taken < 40
    assert max(abs(one - other) for one, other in pairs) < 0.1
    assert sum(one for one, _ in pairs) == pytest.approx(sum(other for _, other in pairs), rel=0.03)


def test_steps_that_fit_are_those_of_a_walk_through_all_validations():
    pace = Pace(10.0)
    pace.start(0.5)
    pace.set_validation(7.0)
    for seconds in (3.0, 40.0, 111.0, 5000.3):
        for until in (0, 1, 30):
            left, steps, due = seconds, 0, until
            while True:
                if due == 0 and pace.has_time_to_validate(left, False):
                    left, due = left - 7.0, 30
                elif left + 0.15 < 0.5:
                    break
                else:
                    left, steps, due = left - 0.5, steps + 1, max(0, due - 1) if due else 30 if left >= 7.5 else 0
            assert abs(pace.steps_within(seconds, until, 30, False) - steps) <= 1
