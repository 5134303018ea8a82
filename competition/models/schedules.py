"""Define the learning-rate schedules, as functions of the completed share of training.

A schedule depends only on this share. So it works with a time budget as well as with a fixed number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

from competition.config.experiment import SCHEDULES, ScheduleConfig

WARMUP_START = 0.01  # factor at the first step of a warm-up; with the factor 0, the step would have no effect
ONECYCLE_PEAK = 0.3  # torch's pct_start
ONECYCLE_START = 1 / 25  # torch's div_factor
ONECYCLE_END = 1 / 25 / 1e4  # torch's final_div_factor

Schedule = Callable[[float, ScheduleConfig], float]


def with_warmup(schedule: Schedule) -> Schedule:
    """Return a schedule that consists of a linear warm-up and then the given schedule.

    During the warm-up, which is the first share `warmup` of training, the factor rises from `WARMUP_START` to 1.
    """

    @wraps(schedule)
    def from_the_start(share_done: float, cfg: ScheduleConfig) -> float:
        if share_done < cfg.warmup:
            return WARMUP_START + (1 - WARMUP_START) * share_done / cfg.warmup
        return schedule((share_done - cfg.warmup) / (1 - cfg.warmup) if cfg.warmup < 1 else 0.0, cfg)

    return from_the_start


def warmup_share(cfg: ScheduleConfig) -> float:
    """Return the share of training in which the learning rate rises.

    If `warmup` is not set, the schedule `onecycle` uses a default share, and all other schedules use 0.
    """
    return cfg.warmup or (ONECYCLE_PEAK if cfg.name == "onecycle" else 0.0)


@SCHEDULES.register("plateau")
@with_warmup
def plateau(share_done: float, cfg: ScheduleConfig) -> float:
    """Return 1, because `competition.models.optim.LRSchedule` computes the real factor from validation scores."""
    return 1.0


@SCHEDULES.register("cosine")
@with_warmup
def cosine(share_done: float, cfg: ScheduleConfig) -> float:
    """Return a factor that falls from 1 to `minimum` along half a cosine.

    Reference: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.
    """
    return cfg.minimum + (1 - cfg.minimum) * (1 + math.cos(math.pi * share_done)) / 2


@SCHEDULES.register("poly")
@with_warmup
def poly(share_done: float, cfg: ScheduleConfig) -> float:
    """Return the factor minimum + (1 - minimum) (1 - share_done) ** power, as in nnU-Net."""
    return float(cfg.minimum + (1 - cfg.minimum) * (1 - share_done) ** cfg.power)


@SCHEDULES.register("onecycle")
def onecycle(share_done: float, cfg: ScheduleConfig) -> float:
    """Return the factor of the one-cycle schedule (Smith and Topin 2018, https://arxiv.org/abs/1708.07120).

    The factor follows torch's OneCycleLR with cosine annealing. It rises from 1/25 to 1 in the first share `warmup` of
    training (0.3 if `warmup` is 0). Then it falls to `minimum` (4e-6 if `minimum` is 0).
    """
    peak, end = cfg.warmup or ONECYCLE_PEAK, cfg.minimum or ONECYCLE_END
    if share_done < peak:
        return _anneal(ONECYCLE_START, 1.0, share_done / peak)
    return _anneal(1.0, end, (share_done - peak) / (1 - peak) if peak < 1 else 0.0)


@SCHEDULES.register("constant")
@with_warmup
def constant(share_done: float, cfg: ScheduleConfig) -> float:
    """Return the factor 1."""
    return 1.0


def _anneal(start: float, end: float, share_done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share_done)) / 2
