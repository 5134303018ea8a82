"""The step budget: the fraction done without a clock, a time budget that is kept, a replay that ignores the clock."""

import itertools

import pytest

from competition.training.budget import StepBudget


def test_without_a_budget_the_share_is_step_over_total():
    plan = StepBudget(200)
    assert [plan.fraction_done(step) for step in (0, 50, 200)] == [0.0, 0.25, 1.0]
    assert not plan.is_done(199) and plan.is_done(200)


def test_each_estimate_spreads_what_is_left_over_the_steps_that_are_left():
    plan = StepBudget(100, [[0, 100], [50, 150]])
    assert plan.fraction_done(50) == pytest.approx(0.5)
    assert plan.fraction_done(100) == pytest.approx(0.75)
    assert plan.fraction_done(150) == pytest.approx(1.0)
    assert not plan.is_done(100) and plan.is_done(150)


def test_share_never_falls_or_jumps():
    plan = StepBudget(1000, [[0, 1000], [12, 300], [60, 200], [110, 170]])
    shares = [plan.fraction_done(step) for step in range(171)]
    steps = [b - a for a, b in itertools.pairwise(shares)]
    assert min(steps) > 0 and max(steps) < 0.02
    assert shares[-1] == pytest.approx(1.0)


def simulate(plan: StepBudget, pace: callable, begin: float = 8.0, reserve: float = 5.0) -> tuple[int, float]:
    step, clock = 0, begin
    while not plan.is_done(step):
        clock += pace(step)
        step += 1
        plan.update_from_clock(step, clock, lambda: reserve)
    return step, clock


@pytest.mark.parametrize(
    "pace",
    [
        lambda step: 0.25,
        lambda step: 0.25 + 2.0 * (step < 3),  # a slow start
        lambda step: 0.25 if step < 500 else 0.4,  # another program wakes up
        lambda step: 0.25 + 5.0 * (step % 100 == 99),  # validations
    ],
)
def test_a_budget_is_kept_with_a_finished_schedule(pace):
    plan = StepBudget(10_000, seconds=360.0)
    steps, clock = simulate(plan, pace)
    assert 330 < clock <= 366
    assert plan.fraction_done(steps) == pytest.approx(1.0)


def test_a_replay_follows_the_plan_and_not_the_clock():
    first = StepBudget(10_000, seconds=360.0)
    steps, _ = simulate(first, lambda step: 0.25)
    replay = StepBudget(10_000, first.estimates)
    assert simulate(replay, lambda step: 3.0)[0] == steps
    assert [replay.fraction_done(step) for step in range(steps)] == [first.fraction_done(step) for step in range(steps)]


def test_a_second_process_goes_on_from_the_plan():
    first = StepBudget(10_000, seconds=360.0)
    clock = 8.0
    for step in range(1, 301):
        clock += 0.25
        first.update_from_clock(step, clock, lambda: 5.0)
    second = StepBudget(10_000, first.estimates, 360.0)
    clock += 10.0  # the start of the second process
    step = 300
    while not second.is_done(step):
        clock += 0.25
        step += 1
        second.update_from_clock(step, clock, lambda: 5.0)
    assert 335 < clock <= 366
