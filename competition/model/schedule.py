"""How the learning rate changes over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from competition.config.experiment import Schedule as ScheduleConfig

START = 0.01  # share of the rate at the first step of a warm-up: a step at rate 0 would be wasted
ONECYCLE_PEAK = 0.3  # torch's pct_start
ONECYCLE_START = 1 / 25  # torch's div_factor
ONECYCLE_END = 1 / 25 / 1e4  # and final_div_factor


class Schedule:
    """Gives the share of the learning rate at any moment of training.

    All but `plateau` are pure functions of the share of training that is done, so they hold no state and follow a
    budget's clock as well as a count of steps:

    - `cosine`: down to `minimum` along half a cosine (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983);
    - `poly`: minimum + (1 - minimum) (1 - progress) ** power, as in nnU-Net;
    - `onecycle`: as torch's OneCycleLR with cosine annealing: from 1/25 up to 1 at `warmup` (0.3 if that is 0), then
      down to `minimum` (4e-6 if that is 0);
    - `constant`: 1;
    - `plateau`: as torch's ReduceLROnPlateau: times `factor`, never below `minimum`, when the best score has not risen
      by more than 0.01 % in more than `patience` validations.

    `warmup` is a linear rise before each of them (onecycle rises along its cosine).

    Args:
        cfg: the `schedule` section.
        base_lrs: the learning rate of each parameter group.

    Example:
        >>> Schedule(ScheduleConfig(name="cosine"), [1e-3]).rate(0.5)
        0.5
    """

    def __init__(self, cfg: ScheduleConfig, base_lrs: Sequence[float]) -> None:
        self.cfg = cfg
        self.base_lrs = [float(rate) for rate in base_lrs]
        self._plateau = _Plateau(cfg) if cfg.name == "plateau" else None

    def rate(self, progress: float) -> float:
        """What the learning rates are multiplied with.

        Args:
            progress: share of training that is done, in [0, 1].
        """
        cfg = self.cfg
        progress = min(max(progress, 0.0), 1.0)
        if cfg.name == "onecycle":
            return _onecycle(progress, cfg.warmup or ONECYCLE_PEAK, cfg.minimum or ONECYCLE_END)
        if progress < cfg.warmup:
            return (START + (1 - START) * progress / cfg.warmup) * (self._plateau.multiplier if self._plateau else 1.0)
        rest = (progress - cfg.warmup) / (1 - cfg.warmup) if cfg.warmup < 1 else 0.0
        if self._plateau is not None:
            return self._plateau.multiplier
        if cfg.name == "cosine":
            return cfg.minimum + (1 - cfg.minimum) * (1 + math.cos(math.pi * rest)) / 2
        if cfg.name == "poly":
            return float(cfg.minimum + (1 - cfg.minimum) * (1 - rest) ** cfg.power)
        return 1.0

    def rates(self, progress: float) -> list[float]:
        """The learning rate of each parameter group."""
        return [base * self.rate(progress) for base in self.base_lrs]

    def observe(self, score: float) -> None:
        """Take note of a validation's score (higher is better); only `plateau` listens."""
        if self._plateau is not None:
            self._plateau.observe(score)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; empty for all but `plateau`."""
        return self._plateau.state() if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if self._plateau is not None:
            self._plateau.restore(state)


class _Plateau:
    """torch's ReduceLROnPlateau on a rate of 1."""

    def __init__(self, cfg: ScheduleConfig) -> None:
        self._carrier = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._carrier, mode="max", factor=cfg.factor, patience=cfg.patience, min_lr=cfg.minimum
        )

    @property
    def multiplier(self) -> float:
        return float(self._carrier.param_groups[0]["lr"])

    def observe(self, score: float) -> None:
        self._scheduler.step(score)

    def state(self) -> dict[str, Any]:
        return {
            "multiplier": self.multiplier,
            "best": float(self._scheduler.best),
            "bad": int(self._scheduler.num_bad_epochs),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._carrier.param_groups[0]["lr"] = float(state["multiplier"])
        self._scheduler.best, self._scheduler.num_bad_epochs = float(state["best"]), int(state["bad"])


def _onecycle(progress: float, peak: float, end: float) -> float:
    """Smith and Topin 2018, https://arxiv.org/abs/1708.07120, with torch's cosine annealing."""
    if progress < peak:
        return _anneal(ONECYCLE_START, 1.0, progress / peak)
    return _anneal(1.0, end, (progress - peak) / (1 - peak) if peak < 1 else 0.0)


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
