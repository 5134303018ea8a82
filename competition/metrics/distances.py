"""Compute distances between the borders of two masks: HD95 and the average symmetric surface distance."""

# This module does not use monai.metrics, which computes a distance transform of the whole crop. The distance transform
# takes several times as long as the search in a tree of border voxels, which this module uses. The results are equal
# (tests/metrics/test_distances.py).

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.metric import metric

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


class BorderDistances:
    """Compute the distances between the borders of mask and truth, once for all metrics that use them.

    A border voxel shares a face (in 2D, an edge) with the background. Voxels outside of the image are background too.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: voxel size along each axis, mm.
    """

    def __init__(self, mask: Mask, truth: Mask, spacing: Sequence[float]) -> None:
        self.mask, self.truth, self.spacing = mask, truth, np.asarray(spacing, np.float64)

    @property
    def undefined(self) -> float | None:
        """Distance that metrics use if a mask is empty, in mm; None if neither mask is empty.

        The distance is 0 if both masks are empty, and the image's diagonal if only one mask is empty.
        """
        empty = [not self.mask.any(), not self.truth.any()]
        if not any(empty):
            return None
        return 0.0 if all(empty) else float(np.linalg.norm(np.multiply(self.mask.shape, self.spacing)))

    @cached_property
    def both_ways(self) -> tuple[Floats, Floats]:
        """Distances of the mask's border voxels to the truth's border, and of the truth's border voxels to the mask's.

        Each of the two arrays has one value per border voxel, in mm.
        """
        from scipy.ndimage import binary_erosion
        from scipy.spatial import cKDTree

        masks = crop_to_masks(self.mask, self.truth)
        borders = [np.argwhere(array & ~binary_erosion(array)) * self.spacing for array in masks]
        to_truth: Floats = cKDTree(borders[1]).query(borders[0])[0]
        to_mask: Floats = cKDTree(borders[0]).query(borders[1])[0]
        return to_truth, to_mask


@metric("hd95", higher_is_better=False)
def hausdorff_percentile(distances: BorderDistances, percentile: float = 95.0) -> float:
    """Return a percentile of the border distances; the larger percentile of the two directions is used.

    The result equals MONAI's `compute_hausdorff_distance(…, percentile=95)`.

    Args:
        distances: distances between the borders.
        percentile: percentile from 0 to 100. With 100, the result is the Hausdorff distance of the borders.

    Returns:
        The distance in mm. If both masks are empty, the result is 0. If only one mask is empty, the result is the
        image's diagonal, which is the largest possible distance.
    """
    if (fixed := distances.undefined) is not None:
        return fixed
    return max(float(np.percentile(values, percentile)) for values in distances.both_ways)


@metric("assd", higher_is_better=False)
def assd(distances: BorderDistances) -> float:
    """Return the average symmetric surface distance: the mean of the border distances in both directions.

    The result equals MONAI's `compute_average_surface_distance(…, symmetric=True)`.

    Args:
        distances: distances between the borders.

    Returns:
        The distance in mm. If both masks are empty, the result is 0. If only one mask is empty, the result is the
        image's diagonal.
    """
    if (fixed := distances.undefined) is not None:
        return fixed
    return float(np.concatenate(distances.both_ways).mean())


def crop_to_masks(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Crop two arrays of the same shape to the smallest box that contains the nonzero elements of both."""
    box = []
    for axis in range(mask.ndim):
        other_axes = tuple(i for i in range(mask.ndim) if i != axis)
        filled = np.flatnonzero(mask.any(axis=other_axes) | truth.any(axis=other_axes))
        box.append(slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0))
    return mask[tuple(box)], truth[tuple(box)]
