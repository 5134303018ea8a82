"""Hold the counters of a fold's training, which its checkpoint stores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from competition.config.experiment import EarlyStoppingConfig
from competition.errors import MaskfoldError
from competition.runs.fold import PLAIN_WEIGHTS


@dataclass
class TrainerState:
    """Hold the counters of a fold's training; the checkpoint stores them under the same names."""

    step: int = 0  # finished optimiser steps
    seconds: float = 0.0  # seconds since the fold started, including earlier processes
    epoch_seconds: float = 0.0  # seconds of the current epoch so far
    sums: dict[str, float] = field(default_factory=dict)  # loss and its terms, summed over the current epoch
    best: float = -math.inf  # best validation score so far; before the first validation -inf, or inf if lower is better
    stale: int = 0  # number of validations since the one with the best score
    stopped: str = ""  # reason why training ended
    ended: int = 0  # number of steps at the end of the last epoch that was validated and logged
    skipped: int = 0  # steps that were skipped because of non-finite values, see `NonFiniteGuard`
    lost: int = 0  # skipped steps of the current epoch
    restored: int = 0  # restores after non-finite values; each halves the learning rate
    halved: int = 0  # number of times that the micro-batch size was halved, see `OutOfMemoryGuard`

    @classmethod
    def from_checkpoint(cls, values: dict[str, Any]) -> TrainerState:
        """Return the counters that a checkpoint contains.

        A checkpoint of an older version may lack counters; they get their defaults.
        """
        return cls(**{"ended": values["step"], **values})

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of a step to the sums of the epoch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss

    def skip_step(self) -> None:
        """Count a step that is skipped; training continues with the samples and learning rate of the next step."""
        self.step, self.skipped, self.lost = self.step + 1, self.skipped + 1, self.lost + 1

    def metrics(self) -> dict[str, float]:
        """Return the numbers of skipped steps and of restored checkpoints as metrics, leaving out those that are 0."""
        counts = {"train/skipped": float(self.skipped), "train/restored": float(self.restored)}
        return {name: count for name, count in counts.items() if count}

    def early_stop_reason(self, stopping: EarlyStoppingConfig, dice: list[float]) -> str:
        """Return the reason to stop the training after a validation; an empty text if there is none.

        Args:
            stopping: section `early_stopping` of the experiment.
            dice: mean Dice of each class in this validation.
        """
        reason = ""
        if stopping.patience is not None and self.stale >= stopping.patience:
            reason = f"no better score in {self.stale} validations"
        threshold = stopping.all_classes_at_least
        if threshold is not None and min(dice) >= threshold:
            reason = f"every class reached a Dice of {threshold}"
        return reason


def format_epoch(epoch: int, step: int, metrics: dict[str, float]) -> str:
    """Return the line about an epoch for the log: step, loss, learning rate, scores if validated, and duration."""
    parts = [
        f"epoch {epoch}",
        f"step {step}",
        f"loss {metrics.get('train/loss', math.nan):.4f}",
        f"lr {metrics['lr']:.2e}",
    ]
    if "val/score" in metrics:
        parts += [f"score {metrics['val/score']:.4f}", f"Dice {metrics['val/dice']:.4f}"]
    return " · ".join([*parts, f"{metrics['time/epoch_seconds']:.1f} s"])


def check_finished(state: TrainerState, folder: Path, path: Path) -> None:
    """Check that a fold whose checkpoint contains no tensors has finished training and has its weights.

    Args:
        state: the counters in the checkpoint.
        folder: folder of the fold.
        path: path of the checkpoint, for the message.

    Raises:
        MaskfoldError: the training has not ended, or the file of weights is missing.
    """
    if not state.stopped:
        problem = "the training of this fold has not ended"
    elif not (folder / PLAIN_WEIGHTS).exists():
        problem = f"{folder / PLAIN_WEIGHTS} is missing"
    else:
        return
    raise MaskfoldError(
        f"The checkpoint {path} contains no network. Only the checkpoint of a finished fold may lack "
        f"the network, but {problem}.",
        "Restore the checkpoint or the missing weights from a backup. To train this fold from the beginning, delete "
        f"{folder}.",
    )
