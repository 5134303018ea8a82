"""Metrics on surfaces: how far the border of a mask lies from the border of the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.scoring.dice import dice, overlap

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

BLOCK = 8  # voxels along each side of the blocks that `_farthest` looks at


def surface_dice(mask: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Surface Dice: the share of both surfaces' area that lies within a tolerance of the other surface.

    Nikolov et al. 2018, https://arxiv.org/abs/1809.04430, with the surface elements of
    https://github.com/google-deepmind/surface-distance. The same number as MONAI's
    `compute_surface_dice(…, use_subvoxels=True)`, whose table of areas is used; its float32 volumes would need 40
    bytes a voxel.

    Args:
        mask: (*spatial) bool, two or three axes.
        truth: the same shape.
        spacing: mm along each axis.
        tolerance: mm.

    Returns:
        0 to 1, and 0 where only one of the two is empty; nan where both are.
    """
    from scipy.spatial import cKDTree

    mask, truth = _cropped(mask, truth)
    (points, areas), (true_points, true_areas) = (_surface(side, tuple(spacing)) for side in (mask, truth))
    if not len(points) or not len(true_points):
        return 0.0 if len(points) or len(true_points) else float("nan")
    bound = 1.001 * tolerance + 1e-3  # a tree looks no further than it has to
    there, back = (
        cKDTree(true_points).query(points, distance_upper_bound=bound)[0],
        cKDTree(points).query(true_points, distance_upper_bound=bound)[0],
    )
    # In float32, as MONAI compares, so that a distance of 0.1 + 0.2 is within 0.3.
    limit = np.float32(tolerance)
    near = areas[there.astype(np.float32) <= limit].sum() + true_areas[back.astype(np.float32) <= limit].sum()
    return float(near / (areas.sum() + true_areas.sum()))


def uw_madison(mask: Mask, truth: Mask) -> float:
    """UW-Madison GI Tract: 0.4 Dice + 0.6 (1 − Hausdorff distance / diagonal of the image), in voxels.

    https://www.kaggle.com/competitions/uw-madison-gi-tract-image-segmentation/overview/evaluation: slices have a depth
    of 1, and the distance is normalised by the image's size, so that it is between 0 and 1.

    Args:
        mask: (*spatial) bool.
        truth: the same shape.

    Returns:
        0 to 1, and 0 where only one of the two is empty; nan where both are.
    """
    counts = overlap(mask, truth)
    if counts.tp + counts.fp == 0 or counts.tp + counts.fn == 0:
        return 0.0 if any(counts) else float("nan")
    distance = hausdorff(mask, truth) / float(np.linalg.norm(mask.shape))
    return float(0.4 * dice(*counts) + 0.6 * (1 - distance))


def hausdorff(mask: Mask, truth: Mask) -> float:
    """Hausdorff distance in voxels: the farthest that a voxel of either lies from the nearest voxel of the other.

    The same number as `max` of scipy's `directed_hausdorff` both ways, without a look at every voxel.

    Args:
        mask: (*spatial) bool with at least one voxel.
        truth: the same.
    """
    mask, truth = _cropped(mask, truth)
    return max(_farthest(mask, truth), _farthest(truth, mask))


def hd95(mask: Mask, truth: Mask, spacing: Sequence[float]) -> float:
    """Hausdorff distance without the farthest twentieth: of both directions the larger 95th percentile of the distances
    from the border of the one to the border of the other.

    The same number as MONAI's `compute_hausdorff_distance(…, percentile=95)`. A border voxel is one that shares a side
    with the outside; beyond its edge an image is outside.

    Args:
        mask: (*spatial) bool, two or three axes.
        truth: the same shape.
        spacing: mm along each axis.

    Returns:
        mm; 0 where both are empty, and where only one is the diagonal of the image, the largest distance there can be.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    if not mask.any() or not truth.any():
        same = bool(mask.any() == truth.any())
        return 0.0 if same else float(np.linalg.norm(np.asarray(mask.shape) * np.asarray(spacing)))
    mask, truth = _cropped(mask, truth)
    one, other = (np.argwhere(side & ~binary_erosion(side)) * np.asarray(spacing, float) for side in (mask, truth))
    return max(float(np.percentile(cKDTree(there).query(here)[0], 95)) for here, there in ((one, other), (other, one)))


def _farthest(mask: Mask, other: Mask) -> float:
    """The largest distance from a voxel of `mask` to the nearest voxel of `other`.

    Only voxels outside `other` count, and their nearest voxel lies on its border. A prediction that floods the volume
    leaves many millions of them, so blocks are looked at first: a block whose centre is near cannot hold the farthest.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    outside = mask & ~other
    if not outside.any():
        return 0.0
    tree = cKDTree(np.argwhere(other & ~binary_erosion(other)))
    outside = np.pad(outside, [(0, -size % BLOCK) for size in outside.shape])
    sides = [length for size in outside.shape for length in (size // BLOCK, BLOCK)]
    blocks = np.argwhere(outside.reshape(sides).any(axis=tuple(range(1, len(sides), 2)))) * BLOCK
    middle = (BLOCK - 1) / 2
    bounds = tree.query(blocks + middle)[0] + middle * outside.ndim**0.5
    corners = np.array(list(itertools.product(range(BLOCK), repeat=outside.ndim)))
    farthest = 0.0
    order = np.argsort(-bounds)
    for batch in np.split(order, range(64, len(order), 64)):
        if bounds[batch[0]] <= farthest:
            break
        voxels = (blocks[batch][:, None] + corners).reshape(-1, outside.ndim)
        voxels = voxels[outside[tuple(voxels.T)]]
        farthest = max(farthest, float(tree.query(voxels)[0].max()))
    return farthest


def _cropped(mask: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Both, cut to the smallest box that holds them."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others) | truth.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0))
    return mask[tuple(box)], truth[tuple(box)]


def _surface(mask: Mask, spacing: tuple[float, ...]) -> tuple[Points, Points]:
    """The surface elements of a mask, where 2 × 2 (× 2) neighbours differ: places (n, axes) in mm, and areas (n,)."""
    padded = np.pad(mask, 1).view(np.uint8)
    shape = tuple(size - 1 for size in padded.shape)
    code = np.zeros(shape, np.uint8)
    corners = list(itertools.product((0, 1), repeat=mask.ndim))
    for place, corner in enumerate(reversed(corners)):  # the neighbour farthest along has the lowest bit
        window = tuple(slice(first, first + size) for first, size in zip(corner, shape, strict=True))
        code |= padded[window] << place
    mixed = (code != 0) & (code != 2 ** len(corners) - 1)
    return np.argwhere(mixed) * np.asarray(spacing, float), _element_areas(spacing)[code[mixed]]


@lru_cache(maxsize=16)
def _element_areas(spacing: tuple[float, ...]) -> NDArray[Any]:
    """Area (mm², in pictures length in mm) of the surface within a neighbourhood, by its code."""
    from monai.metrics.utils import get_code_to_measure_table

    table, _ = get_code_to_measure_table([float(step) for step in spacing])
    return table.cpu().numpy().astype(np.float64)
