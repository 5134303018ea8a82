"""Define the learning-rate schedules, as functions of the completed share of training.

A schedule depends only on this share. So it works with a time budget as well as with a fixed number of steps. The
schedule `plateau` is the only exception: its factor depends on the validation scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from competition.config.experiment import SCHEDULES, ScheduleConfig
from competition.config.metric import Direction

WARMUP_START = 0.01  # factor at the first step of a warm-up; with the factor 0, the step would have no effect
ONECYCLE_PEAK = 0.3  # torch's pct_start
ONECYCLE_START = 1 / 25  # torch's div_factor
ONECYCLE_END = 1 / 25 / 1e4  # torch's final_div_factor
MIN_IMPROVEMENT = 1e-4  # torch's threshold of `plateau`, as a share of the best score

Schedule = Callable[[float, ScheduleConfig], float]


def with_warmup(schedule: Schedule) -> Schedule:
    """Return a schedule that consists of a linear warm-up and then the given schedule.

    The setting `warmup` is the share of training that the warm-up takes. During the warm-up, the factor rises from
    `WARMUP_START` to 1.
    """

    @wraps(schedule)
    def from_the_start(share_done: float, cfg: ScheduleConfig) -> float:
        if share_done < cfg.warmup:
            return WARMUP_START + (1 - WARMUP_START) * share_done / cfg.warmup
        return schedule((share_done - cfg.warmup) / (1 - cfg.warmup) if cfg.warmup < 1 else 0.0, cfg)

    return from_the_start


def warmup_share(cfg: ScheduleConfig) -> float:
    """Return the share of training in which the learning rate rises.

    This share is the setting `warmup`. If `warmup` is 0, `onecycle` uses its default share instead.
    """
    return cfg.warmup or (ONECYCLE_PEAK if cfg.name == "onecycle" else 0.0)


@SCHEDULES.register("plateau")
@with_warmup
def plateau(share_done: float, cfg: ScheduleConfig) -> float:
    """Return 1, because `LRSchedule` computes the real factor from validation scores."""
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
    """Return the factor minimum + (1 - minimum) * (1 - share_done) ** power, as in nnU-Net."""
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


# The schedulers of torch and timm need the number of steps when they are created. With `training.budget_minutes`, this
# number is estimated again during training, so our rate depends on the completed share of training.


class LRSchedule:
    """Compute the factor of the learning rate as a function of training progress.

    All schedules except `plateau` are functions of the completed share of training, and have no state.

    `plateau` is torch's ReduceLROnPlateau. A validation is an improvement if its score is better than the best score
    by more than 0.01 %. After more than `patience` validations in a row without an improvement, the learning rate is
    multiplied by the setting `factor`. The learning rate never falls below `minimum` times its first value.

    Args:
        cfg: section `schedule` of the experiment.
        base_lrs: learning rate of each parameter group.
        direction: whether higher or lower validation scores are better.

    Example:
        >>> LRSchedule(ScheduleConfig(name="cosine"), [1e-3]).multiplier(0.5)
        0.5
    """

    def __init__(self, cfg: ScheduleConfig, base_lrs: Sequence[float], direction: Direction = Direction.HIGHER) -> None:
        self.cfg = cfg
        self.base_lrs = [float(rate) for rate in base_lrs]
        self._schedule = SCHEDULES.get(cfg.name)
        self._plateau = _Plateau(cfg, direction) if cfg.name == "plateau" else None

    def multiplier(self, progress: float) -> float:
        """Return the factor by which all learning rates are multiplied.

        Args:
            progress: completed share of training, in [0, 1].
        """
        factor = self._schedule(min(max(progress, 0.0), 1.0), self.cfg)
        return factor if self._plateau is None else factor * self._plateau.multiplier

    def learning_rates(self, progress: float) -> list[float]:
        """Return the learning rate of each parameter group.

        Args:
            progress: completed share of training, in [0, 1].
        """
        return [base * self.multiplier(progress) for base in self.base_lrs]

    def observe(self, score: float) -> None:
        """Record a validation score; only `plateau` uses it."""
        if self._plateau is not None:
            self._plateau.observe(score)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state as plain numbers.

        The state is empty for all schedules except `plateau`.
        """
        return self._plateau.state_dict() if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)


class _Plateau:
    """Compute the factor of the schedule `plateau` with torch's ReduceLROnPlateau.

    The scheduler starts with a learning rate of 1, so its present rate is the factor.
    """

    def __init__(self, cfg: ScheduleConfig, direction: Direction) -> None:
        import torch  # the other schedules need no torch

        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer,
            mode="max" if direction is Direction.HIGHER else "min",
            factor=cfg.factor,
            patience=cfg.patience,
            min_lr=cfg.minimum,
        )

    @property
    def multiplier(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, score: float) -> None:
        # torch multiplies the best score by 1 + threshold (or 1 - threshold). For a negative score, such as that of a
        # sum with a negative weight, this would make an equal or slightly worse score count as an improvement.
        self._scheduler.threshold = math.copysign(MIN_IMPROVEMENT, self._scheduler.best)
        self._scheduler.step(score)

    def state_dict(self) -> dict[str, Any]:
        return {
            "multiplier": self.multiplier,
            "best": float(self._scheduler.best),
            "bad": int(self._scheduler.num_bad_epochs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.param_groups[0]["lr"] = float(state["multiplier"])
        self._scheduler.best, self._scheduler.num_bad_epochs = float(state["best"]), int(state["bad"])
