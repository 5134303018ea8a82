"""Compute the constant-mask baseline: the best score that the same mask for all cases can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CELLS = {2: 64, 3: 20}  # number of spatial axes -> cells of the coarse grid along each axis
SHARES = np.concatenate([[0.0], np.linspace(0.1, 0.9, 17)])  # candidates for the minimum share of a foreground cell


@dataclass(frozen=True)
class CoarseTruth:
    """Hold the truth of a case on a coarse grid with the same number of cells for every case.

    Attributes:
        foreground: (K, cells), number of pixels of each class in each cell.
        pixels: (K, cells), number of pixels in each cell that are not ignored.
    """

    foreground: Array
    pixels: Array

    @classmethod
    def from_masks(cls, masks: Array, valid: Array) -> CoarseTruth:
        """Count the pixels in each cell.

        Args:
            masks: (K, *spatial) bool, pixels of each class.
            valid: (*spatial) bool, pixels that are not ignored.
        """
        return cls(_count(masks), _count(np.broadcast_to(valid, masks.shape)))


def constant_mask_dice(truths: Sequence[CoarseTruth]) -> Array:
    """Return the Dice of the best constant mask of each class, on each case.

    The mask for a case is computed from all other cases. It covers each cell of the coarse grid in which the class
    fills, on average over these other cases, at least a certain share of the pixels. A share of 0 gives a mask of all
    pixels. For each class, all cases use the same share: the one with the best mean Dice. The result is slightly
    optimistic, because the share is selected on the cases that are scored.

    Args:
        truths: coarse truth of each case.

    Returns:
        Dice (cases, K); nan for a class that the case does not have.
    """
    if not truths:
        return np.empty((0, 0))
    foreground = np.stack([truth.foreground for truth in truths]).astype(np.float32)
    pixels = np.stack([truth.pixels for truth in truths]).astype(np.float32)
    frequency = np.divide(foreground, pixels, out=np.zeros_like(foreground), where=pixels > 0)
    others = frequency.sum(axis=0)
    sizes = foreground.sum(axis=2)
    best = np.full(sizes.shape, np.nan)
    best_mean = np.full(sizes.shape[1], -1.0)
    for share in SHARES if len(truths) > 1 else SHARES[:1]:
        dice = np.full(sizes.shape, np.nan)
        for case in range(len(truths)):
            mask = (others - frequency[case]) / max(1, len(truths) - 1) >= share - 1e-6
            overlap = (mask * foreground[case]).sum(axis=1)
            total = (mask * pixels[case]).sum(axis=1) + sizes[case]
            has_class = sizes[case] > 0
            dice[case, has_class] = 2 * overlap[has_class] / total[has_class]
        counts = np.isfinite(dice).sum(axis=0)
        means = np.divide(np.nansum(dice, axis=0), counts, out=np.zeros(len(counts)), where=counts > 0)
        better = means > best_mean
        best[:, better], best_mean[better] = dice[:, better], means[better]
    return best


def _count(masks: Array) -> Array:
    """Count the True pixels of masks (K, *spatial) in each cell of the coarse grid; return (K, cells).

    If an axis has fewer pixels than cells, its pixels are repeated, so that all cases have the same number of cells.
    """
    counts, cells = masks, CELLS[masks.ndim - 1]
    for axis in range(1, masks.ndim):
        length = masks.shape[axis]
        if length >= cells:
            counts = np.add.reduceat(counts, np.arange(cells) * length // cells, axis=axis, dtype=np.int64)
        else:
            counts = np.take(counts, np.arange(cells) * length // cells, axis=axis).astype(np.int64)
    return counts.reshape(len(masks), -1)
