"""Schedules equal their formulas, and torch's own where torch has one."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from competition.config.experiment import SCHEDULES
from competition.config.experiment import ScheduleConfig as Config
from competition.config.metric import Direction
from competition.models.schedules import LRSchedule, with_warmup


def sgd(rate: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def test_cosine_and_poly() -> None:
    cosine = LRSchedule(Config(name="cosine", minimum=0.1), [1.0])
    assert (
        cosine.multiplier(0) == 1.0
        and cosine.multiplier(1) == pytest.approx(0.1)
        and cosine.multiplier(0.5) == pytest.approx(0.55)
    )
    poly = LRSchedule(Config(name="poly", power=0.9), [1.0])
    assert poly.multiplier(0) == 1.0 and poly.multiplier(1) == 0.0 and poly.multiplier(0.5) == pytest.approx(0.5**0.9)


def test_cosine_is_torch_s() -> None:
    ours, optimizer = LRSchedule(Config(name="cosine"), [1.0]), sgd()
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert ours.multiplier(step / 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["cosine", "poly", "constant", "plateau"])
def test_warm_up_rises_in_a_straight_line(name: str) -> None:
    schedule = LRSchedule(Config(name=name, warmup=0.2), [1.0])
    rates = [schedule.multiplier(share / 100) for share in range(21)]
    steps = [after - before for before, after in itertools.pairwise(rates)]
    assert rates[0] == pytest.approx(0.01) and rates[-1] == 1.0 and steps == pytest.approx([steps[0]] * 20)
    if name in ("cosine", "poly"):
        assert schedule.multiplier(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("peak", [0.0, 0.25])
def test_onecycle_is_torch_s(peak: float) -> None:
    total, optimizer = 101, sgd()
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=peak or 0.3, cycle_momentum=False
    )
    ours = LRSchedule(Config(name="onecycle", warmup=peak), [1.0])
    top = (peak or 0.3) * total - 1  # torch's peak falls on this step, ours on the share itself
    for step in range(total):
        share = (step / top if step <= top else 1.0) * (peak or 0.3)
        if step > top:
            share += (1 - (peak or 0.3)) * (step - top) / (total - 1 - top)
        assert ours.multiplier(share) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step() if step + 1 < total else None
    assert ours.multiplier(0) == pytest.approx(1 / 25) and ours.multiplier(1) == pytest.approx(4e-6)


def test_onecycle_ends_at_its_minimum() -> None:
    assert LRSchedule(Config(name="onecycle", minimum=0.05), [1.0]).multiplier(1) == pytest.approx(0.05)


@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_torch_s_and_resumes(seed: int) -> None:
    draw = random.Random(seed)
    cfg = Config(name="plateau", factor=0.5, patience=2, minimum=0.01)
    optimizer = sgd(1e-3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2, min_lr=1e-5)
    ours = LRSchedule(cfg, [1e-3])
    for place in range(60):
        score = 0.0 if place < 3 else math.nan if place == 7 else draw.choice([0.5, 0.5 + 1e-6, 0.6, draw.random()])
        ours.observe(score)
        theirs.step(score)
        assert ours.learning_rates(0.5) == pytest.approx([optimizer.param_groups[0]["lr"]])
        state = ours.state_dict()
        assert all(type(value) in (int, float) for value in state.values())
        ours = LRSchedule(cfg, [1e-3])
        ours.load_state_dict(state)
    assert ours.multiplier(0.5) == pytest.approx(0.01)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("step", [0.0, 1e-6, -1e-6])
def test_plateau_lowers_the_rate_for_a_score_that_stays_negative(direction: Direction, step: float) -> None:
    """The score of a sum with a negative weight may be negative."""
    schedule = LRSchedule(Config(name="plateau", factor=0.5, patience=2), [1.0], direction)
    for place in range(4):
        schedule.observe(-0.5 + step * place)
    assert schedule.multiplier(0.5) == 0.5
    for place in range(1, 9):
        schedule.observe(-0.5 + 0.01 * place * direction.value)  # improvements
    assert schedule.multiplier(0.5) == 0.5


def test_only_plateau_uses_scores() -> None:
    schedule = LRSchedule(Config(name="constant"), [0.1, 0.2])
    for _ in range(30):
        schedule.observe(0.0)
    assert schedule.learning_rates(0.7) == [0.1, 0.2] and schedule.state_dict() == {}


@pytest.mark.parametrize("name", ["cosine", "poly", "onecycle", "constant"])
def test_rates_stay_in_bounds(name: str) -> None:
    for warmup in (0.0, 0.3, 1.0):
        schedule = LRSchedule(Config(name=name, warmup=warmup, minimum=0.02), [1.0])
        assert all(0 < schedule.multiplier(share / 50) <= 1 for share in range(-1, 52))


def test_a_registered_schedule_is_a_name_of_the_yaml() -> None:
    with SCHEDULES.temporary("linear", with_warmup(lambda share_done, cfg: 1 - share_done)):
        schedule = LRSchedule(Config(name="linear", warmup=0.2), [1.0])
        assert [schedule.multiplier(share) for share in (0.2, 0.6, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="linear"):
        Config(name="linear")
