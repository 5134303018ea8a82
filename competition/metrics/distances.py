"""Compute distances between the borders of two masks: HD95 and the average symmetric surface distance."""

# This module does not use monai.metrics, which computes a distance transform of the whole crop. That takes several
# times as long as this module's search in a tree of border voxels. The values are equal
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

    A border voxel shares a face (2D: an edge) with the background. Voxels beyond the image's edge count as background.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: mm along each axis.
    """

    def __init__(self, mask: Mask, truth: Mask, spacing: Sequence[float]) -> None:
        self.mask, self.truth, self.spacing = mask, truth, np.asarray(spacing, np.float64)

    @property
    def undefined(self) -> float | None:
        """Distance for empty masks: the image's diagonal if one mask is empty, 0 if both are; None if neither is."""
        empty = [not self.mask.any(), not self.truth.any()]
        if not any(empty):
            return None
        return 0.0 if all(empty) else float(np.linalg.norm(np.multiply(self.mask.shape, self.spacing)))

    @cached_property
    def both_ways(self) -> tuple[Floats, Floats]:
        """Distance in mm of each border voxel of the mask to the truth's border, and in the other direction."""
        from scipy.ndimage import binary_erosion
        from scipy.spatial import cKDTree

        masks = crop_to_masks(self.mask, self.truth)
        borders = [np.argwhere(array & ~binary_erosion(array)) * self.spacing for array in masks]
        to_truth: Floats = cKDTree(borders[1]).query(borders[0])[0]
        to_mask: Floats = cKDTree(borders[0]).query(borders[1])[0]
        return to_truth, to_mask


@metric("hd95", higher_is_better=False)
def hausdorff_percentile(distances: BorderDistances, percentile: float = 95.0) -> float:
    """Return a percentile of the border distances, the larger value of the two directions.

    The value equals that of MONAI's `compute_hausdorff_distance(…, percentile=95)`.

    Args:
        distances: distances between the borders.
        percentile: 0 to 100; 100 is the Hausdorff distance of the borders.

    Returns:
        The distance in mm; 0 if both masks are empty; the image's diagonal (the largest possible distance) if only one
        mask is empty.
    """
    if (fixed := distances.undefined) is not None:
        return fixed
    return max(float(np.percentile(values, percentile)) for values in distances.both_ways)


@metric("assd", higher_is_better=False)
def assd(distances: BorderDistances) -> float:
    """Return the average symmetric surface distance: the mean over the border distances in both directions.

    The value equals that of MONAI's `compute_average_surface_distance(…, symmetric=True)`.

    Args:
        distances: distances between the borders.

    Returns:
        The distance in mm; 0 if both masks are empty; the image's diagonal if only one mask is empty.
    """
    if (fixed := distances.undefined) is not None:
        return fixed
    return float(np.concatenate(distances.both_ways).mean())


def crop_to_masks(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Crop two arrays of one shape to the smallest box that contains the nonzero elements of both."""
    box = []
    for axis in range(mask.ndim):
        other_axes = tuple(i for i in range(mask.ndim) if i != axis)
        filled = np.flatnonzero(mask.any(axis=other_axes) | truth.any(axis=other_axes))
        box.append(slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0))
    return mask[tuple(box)], truth[tuple(box)]
