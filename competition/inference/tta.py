"""Average predictions over flips and quarter turns of the image (test-time augmentation)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations

import torch

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError


@dataclass(frozen=True)
class TTAView:
    """Describe a view of test-time augmentation: quarter turns of the last two axes, followed by flips.

    Attributes:
        flips: spatial axes to flip, counted from 0.
        quarter_turns: number of turns by 90° in the plane of the last two axes.
    """

    flips: tuple[int, ...] = ()
    quarter_turns: int = 0

    def apply(self, batch: torch.Tensor) -> torch.Tensor:
        """Turn and flip a batch (B, C, *spatial) as this view describes."""
        rotated = torch.rot90(batch, self.quarter_turns, (-2, -1)) if self.quarter_turns else batch
        return rotated.flip([axis + 2 for axis in self.flips]) if self.flips else rotated

    def undo(self, batch: torch.Tensor) -> torch.Tensor:
        """Undo the turns and flips of this view in a batch (B, C, *spatial), e.g. in the predictions for the view."""
        flipped = batch.flip([axis + 2 for axis in self.flips]) if self.flips else batch
        return torch.rot90(flipped, -self.quarter_turns, (-2, -1)) if self.quarter_turns else flipped


def count_passes(exp: Experiment) -> int:
    """Return how often each network predicts a case: once per test-time view (2.5D: per view and axis of slices)."""
    return sum(len(tta_views(exp, axis)) for axis in exp.patch.axes)


def tta_views(exp: Experiment, axis: int | None = None) -> list[TTAView]:
    """Return the views for test-time augmentation that `inference.tta` selects; the first one is the identity.

    - `flip` gives one view for every subset of the axes in `augment.flip`.
    - `auto` does the same for the axes that training actually flipped.
    - `rotate90` gives the four quarter turns. Together with `flip`, it gives the eight symmetries of the square.

    Args:
        exp: the experiment.
        axis: for 2.5D networks, the axis of the volume along which the slices lie; None for the first of `patch.axes`.

    Raises:
        MaskfoldError: `augment.flip` allows no flips, or quarter turns are set for volumes or a non-square patch.
    """
    from competition.augment import augment_in_plane, flip_axes

    tta, dims = exp.inference.tta, exp.network_dimensions
    axes: tuple[int, ...] = ()
    augment = augment_in_plane(exp, exp.patch.axes[0] if axis is None else axis) if tta else exp.augment
    if tta == "auto":
        axes = flip_axes(augment, dims)
    elif "flip" in tta:
        allowed = range(dims) if augment.flip is True else augment.flip or ()
        axes = tuple(axis for axis in allowed if axis < dims)
        if not axes and (len(exp.patch.axes) == 1 or not exp.augment.flip):
            raise MaskfoldError(
                "inference.tta: found flip, but augment.flip allows no axis.",
                "Remove flip from inference.tta, or allow axes in augment.flip.",
                status=2,
            )
    if "rotate90" not in tta:
        return [TTAView(subset) for subset in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1))]
    if dims != 2 or exp.patch.size[0] != exp.patch.size[1]:
        raise MaskfoldError(
            "inference.tta: found rotate90, which requires a patch.size of two equal values, but "
            f"patch.size is {exp.patch.size}.",
            "Remove rotate90 from inference.tta, or set patch.size to two equal values.",
            status=2,
        )
    # One flip and the quarter turns give all eight symmetries, so a second flip would only repeat them.
    return [TTAView(subset, turns) for subset in ([(), axes[:1]] if axes else [()]) for turns in range(4)]
