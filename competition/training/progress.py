"""Where a fold's training stands, and how it is told in a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from competition.config.experiment import EarlyStopping


@dataclass
class Progress:
    """Where training stands: plain numbers, so that it goes into a checkpoint as it is."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # since the fold began, earlier processes included
    epoch_seconds: float = 0.0  # of that, in the running epoch
    sums: dict[str, float] = field(default_factory=dict)  # loss and its parts, added up over the running epoch
    best: float = -math.inf  # best validation score
    stale: int = 0  # validations since
    stopped: str = ""  # why training ended
    ended: int = 0  # steps at the end of the last epoch that was validated and told
    skipped: int = 0  # steps left out for numbers that are none, see `nan`
    lost: int = 0  # of these, in the running epoch
    restored: int = 0  # times that training went back for such a step; the rate is halved each time
    halved: int = 0  # times that micro-batches were halved, see `memory`

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """As a checkpoint says, also one from before there were all of these numbers."""
        return cls(**{"ended": state["step"], **state})

    def add(self, sums: dict[str, float]) -> None:
        """Take in what a step has found."""
        for name, number in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def skip(self) -> None:
        """A step is left out: its samples and its place in the schedule are gone, and nothing else."""
        self.step, self.skipped, self.lost = self.step + 1, self.skipped + 1, self.lost + 1

    def metrics(self) -> dict[str, float]:
        """What did not go as planned; nothing where all did."""
        found = {"train/skipped": float(self.skipped), "train/restored": float(self.restored)}
        return {name: value for name, value in found.items() if value}

    def enough(self, stopping: EarlyStopping, dice: list[float]) -> str:
        """Why to stop after a validation that gave each class this Dice; empty while there is no reason."""
        reason = ""
        if stopping.patience is not None and self.stale >= stopping.patience:
            reason = f"no better score in {self.stale} validations"
        least = stopping.all_classes_at_least
        return f"every class reached a Dice of {least}" if least is not None and min(dice) >= least else reason


def line(epoch: int, step: int, metrics: dict[str, float]) -> str:
    """An epoch in the log."""
    words = [
        f"epoch {epoch}",
        f"step {step}",
        f"loss {metrics.get('train/loss', math.nan):.4f}",
        f"lr {metrics['lr']:.2e}",
    ]
    if "val/score" in metrics:
        words += [f"score {metrics['val/score']:.4f}", f"Dice {metrics['val/dice']:.4f}"]
    return " · ".join([*words, f"{metrics['time/epoch_seconds']:.1f} s"])
