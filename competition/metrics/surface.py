"""Compute surface metrics: surface Dice, Hausdorff distance and its 95th percentile, UW-Madison score."""

# This module uses neither monai.metrics, whose surface Dice needs float32 volumes (40 bytes per voxel), nor scipy's
# `directed_hausdorff`, which visits every voxel. The results are equal (tests/metrics/test_metrics.py). The command
# `python benchmarks/libraries.py surface` compares times.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.metric import PooledScore, metric
from competition.metrics.distances import BorderDistances, crop_to_masks, hausdorff_percentile
from competition.metrics.overlap import dice

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

BLOCK = 8  # edge length of the blocks in `_directed_hausdorff`, voxels


@metric("surface_dice", higher_is_better=True)
def surface_dice(mask: Mask, truth: Mask, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Return the surface Dice: the share of both surfaces' area that is within a tolerance of the other surface.

    The definition is from Nikolov et al. 2018, https://arxiv.org/abs/1809.04430, with the surface elements of
    https://github.com/google-deepmind/surface-distance. The result equals MONAI's `compute_surface_dice(…,
    use_subvoxels=True)`. The areas of the surface elements are those of MONAI.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: voxel size along each axis, mm.
        tolerance_mm: maximum distance in mm.

    Returns:
        A score from 0 to 1. If only one mask is empty, the result is 0. If both masks are empty, the result is nan.
    """
    return surface_dices(mask, truth, spacing, [tolerance_mm])[0]


@metric("nsd", higher_is_better=True)
def nsd(mask: Mask, truth: Mask, spacing: Sequence[float], tolerances: Sequence[float] = (1.0, 2.0, 3.0)) -> float:
    """Return the normalised surface Dice at several tolerances: the mean of `surface_dice` over the tolerances.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: voxel size along each axis, mm.
        tolerances: maximum distances in mm.

    Returns:
        A score from 0 to 1. If only one mask is empty, the result is 0. If both masks are empty, the result is nan.
    """
    return float(np.mean(surface_dices(mask, truth, spacing, tolerances)))


def surface_dices(mask: Mask, truth: Mask, spacing: Sequence[float], tolerances: Sequence[float]) -> list[float]:
    """Return the surface Dice for each tolerance; the distances are computed only once.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: voxel size along each axis, mm.
        tolerances: maximum distances in mm.

    Returns:
        One result of `surface_dice` per tolerance.
    """
    from scipy.spatial import cKDTree

    mask, truth = crop_to_masks(mask, truth)
    (points, areas), (true_points, true_areas) = (_surface(array, tuple(spacing)) for array in (mask, truth))
    if not len(points) or not len(true_points):
        return [0.0 if len(points) or len(true_points) else float("nan")] * len(tolerances)
    bound = 1.001 * max(tolerances) + 1e-3  # this bound makes the search in the tree faster
    # Compare in float32 like MONAI, so that a distance of 0.1 + 0.2 is within a tolerance of 0.3.
    to_truth = cKDTree(true_points).query(points, distance_upper_bound=bound)[0].astype(np.float32)
    to_mask = cKDTree(points).query(true_points, distance_upper_bound=bound)[0].astype(np.float32)
    total = areas.sum() + true_areas.sum()
    limits = [np.float32(tolerance) for tolerance in tolerances]
    return [float((areas[to_truth <= limit].sum() + true_areas[to_mask <= limit].sum()) / total) for limit in limits]


@metric("uw_madison", higher_is_better=True, pooled_share=0.4)
def uw_madison(mask: Mask, truth: Mask, coordinates: Literal["voxels", "unit_cube"] = "voxels") -> PooledScore:
    """Return the terms of the UW-Madison GI Tract score: 0.4 mean Dice of slices + 0.6 (1 − 3D Hausdorff distance).

    The host's definition is at
    https://www.kaggle.com/competitions/uw-madison-gi-tract-image-segmentation/overview/evaluation. The Dice is
    averaged over all images, which are slices; a slice that is empty in both mask and truth does not count. The
    Hausdorff distance compares the volumes; each slice has a depth of 1. Pixel locations are "normalized by image
    size".

    Args:
        mask: (*spatial) bool. If there are three axes, the slices lie along the last one.
        truth: bool of the same shape.
        coordinates: normalisation of locations, which the host's page does not specify. `voxels` divides the distance
            in voxels by the volume's diagonal. `unit_cube` divides each coordinate by the length of its axis, and the
            distance by the cube's diagonal √3, as MLE-bench's grader does.

    Returns:
        The mean Dice of the slices (0 to 1), the number of slices, and 1 − distance (0 to 1). If only one mask is
        empty, the Dice and 1 − distance are both 0. If both masks are empty, both are nan.
    """
    slices = (mask, truth) if mask.ndim == 3 else (mask[..., None], truth[..., None])
    tp, predicted, true = (
        np.count_nonzero(array, axis=(0, 1)) for array in (slices[0] & slices[1], slices[0], slices[1])
    )
    dices = np.asarray(dice(tp, predicted - tp, true - tp))
    dices = dices[np.isfinite(dices)]
    if not predicted.any() or not true.any():
        value = 0.0 if len(dices) else float("nan")
        return PooledScore(value, len(dices), value)
    if coordinates == "unit_cube":
        distance = hausdorff(mask, truth, [1 / size for size in mask.shape]) / mask.ndim**0.5
    else:
        distance = hausdorff(mask, truth) / float(np.linalg.norm(mask.shape))
    return PooledScore(float(dices.mean()), len(dices), 1 - distance)


def hausdorff(mask: Mask, truth: Mask, spacing: Sequence[float] | None = None) -> float:
    """Return the Hausdorff distance: the largest distance from a voxel of one mask to the other mask.

    The result equals the maximum of scipy's `directed_hausdorff` in both directions. This function is faster, because
    it does not visit every voxel.

    Args:
        mask: (*spatial) bool with at least one voxel.
        truth: same shape, with at least one voxel.
        spacing: length of a voxel along each axis. None means 1.
    """
    mask, truth = crop_to_masks(mask, truth)
    steps = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, float)
    return max(_directed_hausdorff(mask, truth, steps), _directed_hausdorff(truth, mask, steps))


def hd95(mask: Mask, truth: Mask, spacing: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance: the 95th percentile of border distances, the larger of both directions.

    This function computes the metric `hd95`; see `competition.metrics.distances`.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.
        spacing: voxel size along each axis, mm.

    Returns:
        The distance in mm. If both masks are empty, the result is 0. If only one mask is empty, the result is the
        image's diagonal, which is the largest possible distance.
    """
    return hausdorff_percentile(BorderDistances(mask, truth, spacing))


def _directed_hausdorff(mask: Mask, target: Mask, steps: Points) -> float:
    """Return the largest distance from a voxel of `mask` to the nearest voxel of `target`.

    Only voxels outside of `target` matter, and the nearest voxel of `target` is on its border. The voxels are searched
    in blocks, in descending order of an upper bound of the distance. The search stops when no remaining block can
    contain a farther voxel.

    Args:
        mask: (*spatial) bool.
        target: bool of the same shape.
        steps: length of a voxel along each axis.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    outside = mask & ~target
    if not outside.any():
        return 0.0
    tree = cKDTree(np.argwhere(target & ~binary_erosion(target)) * steps)
    outside = np.pad(outside, [(0, -size % BLOCK) for size in outside.shape])
    sides = [length for size in outside.shape for length in (size // BLOCK, BLOCK)]
    blocks = np.argwhere(outside.reshape(sides).any(axis=tuple(range(1, len(sides), 2)))) * BLOCK
    half = (BLOCK - 1) / 2
    bounds = tree.query((blocks + half) * steps)[0] + half * float(np.linalg.norm(steps))
    corners = np.array(list(itertools.product(range(BLOCK), repeat=outside.ndim)))
    farthest = 0.0
    order = np.argsort(-bounds)
    for batch in np.split(order, range(64, len(order), 64)):
        if bounds[batch[0]] <= farthest:
            break
        voxels = (blocks[batch][:, None] + corners).reshape(-1, outside.ndim)
        voxels = voxels[outside[tuple(voxels.T)]]
        farthest = max(farthest, float(tree.query(voxels * steps)[0].max()))
    return farthest


def _surface(mask: Mask, spacing: tuple[float, ...]) -> tuple[Points, Points]:
    """Return the surface elements of a mask.

    An element lies where the pixels of a 2 × 2 (× 2) neighbourhood are not all equal.

    Returns:
        The positions of the elements (n, axes) in mm, and their areas (n,).
    """
    padded = np.pad(mask, 1).view(np.uint8)
    shape = tuple(size - 1 for size in padded.shape)
    code = np.zeros(shape, np.uint8)
    corners = list(itertools.product((0, 1), repeat=mask.ndim))
    for bit, corner in enumerate(reversed(corners)):  # the last corner is the lowest bit of the code
        window = tuple(slice(first, first + size) for first, size in zip(corner, shape, strict=True))
        code |= padded[window] << bit
    mixed = (code != 0) & (code != 2 ** len(corners) - 1)
    return np.argwhere(mixed) * np.asarray(spacing, float), _element_areas(spacing)[code[mixed]]


@lru_cache(maxsize=16)
def _element_areas(spacing: tuple[float, ...]) -> NDArray[Any]:
    """Return the surface area of each possible 2 × 2 (× 2) neighbourhood, indexed by its code.

    The unit is mm², or mm in 2D. The bits of the code are the pixels of the neighbourhood.
    """
    from monai.metrics.utils import get_code_to_measure_table

    table, _ = get_code_to_measure_table([float(step) for step in spacing])
    return table.cpu().numpy().astype(np.float64)
