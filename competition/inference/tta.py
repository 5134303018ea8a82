"""Average predictions over flips and quarter turns of the image (test-time augmentation)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations

import torch

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError


@dataclass(frozen=True)
class TTAView:
    """Transform a batch (B, C, *spatial) by quarter turns of the last two axes, then by flips of spatial axes."""

    flips: tuple[int, ...] = ()
    quarter_turns: int = 0

    def apply(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the transformed batch."""
        rotated = torch.rot90(batch, self.quarter_turns, (-2, -1)) if self.quarter_turns else batch
        return rotated.flip([axis + 2 for axis in self.flips]) if self.flips else rotated

    def undo(self, batch: torch.Tensor) -> torch.Tensor:
        """Apply the inverse transform to a batch."""
        flipped = batch.flip([axis + 2 for axis in self.flips]) if self.flips else batch
        return torch.rot90(flipped, -self.quarter_turns, (-2, -1)) if self.quarter_turns else flipped


def tta_views(exp: Experiment) -> list[TTAView]:
    """Return the views of `inference.tta`; the first is the identity.

    `flip` gives one flipped view for every subset of the axes in `augment.flip`; `auto` uses the axes that training
    flipped. `rotate90` gives the four quarter turns; together with flips, it gives the eight symmetries of the square.

    Raises:
        MaskfoldError: `augment.flip` allows no flips, or quarter turns are set for volumes or a non-square patch.
    """
    tta, dims = exp.inference.tta, exp.network_dimensions
    axes: tuple[int, ...] = ()
    if tta == "auto":
        from competition.augment import flip_axes

        axes = flip_axes(exp.augment, dims)
    elif "flip" in tta:
        allowed = range(dims) if exp.augment.flip is True else exp.augment.flip or ()
        axes = tuple(axis for axis in allowed if axis < dims)
        if not axes:
            raise MaskfoldError(
                "inference.tta: found flip, but augment.flip allows no axis.",
                "Remove flip from inference.tta, or set axes in augment.flip.",
                status=2,
            )
    if "rotate90" not in tta:
        return [TTAView(subset) for subset in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1))]
    if dims != 2 or exp.patch.size[0] != exp.patch.size[1]:
        raise MaskfoldError(
            f"inference.tta: found rotate90, but patch.size {exp.patch.size} is not a square of two values.",
            "Remove rotate90 from inference.tta, or set patch.size to two equal values.",
            status=2,
        )
    # One flip and the quarter turns give all eight symmetries, so a second flip would only repeat them.
    return [TTAView(subset, turns) for subset in ([(), axes[:1]] if axes else [()]) for turns in range(4)]
