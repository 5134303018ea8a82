"""Test-time augmentation: the flips and quarter turns whose predictions are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations

import torch

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment


@dataclass(frozen=True)
class View:
    """One way to look at a batch (B, C, *spatial): quarter turns of its last two axes, then flips of spatial axes."""

    flips: tuple[int, ...] = ()
    turns: int = 0

    def of(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch seen this way."""
        turned = torch.rot90(batch, self.turns, (-2, -1)) if self.turns else batch
        return turned.flip([axis + 2 for axis in self.flips]) if self.flips else turned

    def undo(self, batch: torch.Tensor) -> torch.Tensor:
        """The inverse of `of`."""
        flipped = batch.flip([axis + 2 for axis in self.flips]) if self.flips else batch
        return torch.rot90(flipped, -self.turns, (-2, -1)) if self.turns else flipped


def views(exp: Experiment) -> list[View]:
    """The views that `inference.tta` asks for; the first changes nothing.

    flip: every subset of the axes that `augment.flip` allows. auto: of the axes that training flipped. rotate90: four
    quarter turns; with flips the eight symmetries of the square.

    Raises:
        MaskfoldError: flips that `augment.flip` forbids, or quarter turns of volumes or of a patch that is no square.
    """
    wanted, dims = exp.inference.tta, exp.network_dimensions
    axes: tuple[int, ...] = ()
    if wanted == "auto":
        from competition.augment import flips

        axes = flips(exp.augment, dims)
    elif "flip" in wanted:
        allowed = range(dims) if exp.augment.flip is True else exp.augment.flip or ()
        axes = tuple(axis for axis in allowed if axis < dims)
        if not axes:
            raise MaskfoldError(
                "`inference.tta` wants flips and `augment.flip` allows none.",
                "Remove `flip` from `inference.tta`, or name axes in `augment.flip`.",
                status=2,
            )
    if "rotate90" not in wanted:
        return [View(subset) for subset in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1))]
    if dims != 2 or exp.patch.size[0] != exp.patch.size[1]:
        raise MaskfoldError(
            f"`inference.tta: rotate90` cannot turn patches of size {exp.patch.size}.",
            "Remove `rotate90`, or make `patch.size` a square of two numbers.",
            status=2,
        )
    # One flip and the turns give all eight symmetries, so that a second flip would only repeat them.
    return [View(subset, turns) for subset in ([(), axes[:1]] if axes else [()]) for turns in range(4)]
