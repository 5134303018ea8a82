"""Pure steps on one class's mask, its objects or its probability: pictures and volumes, no input is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.scoring.instances import components

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


def remove_small(mask: Mask, pixels: int) -> Mask:
    """Connected components (8 or 26 neighbours) of fewer than `pixels` pixels go.

    Args:
        mask: (*spatial) bool.
        pixels: the size from which on a component stays.
    """
    labels = components(mask)
    return np.asarray(_large(labels, pixels)[labels])


def remove_small_objects(labels: Labels, pixels: int) -> Labels:
    """Objects of fewer than `pixels` pixels go; the others are numbered 1…N in their order.

    Args:
        labels: (*spatial) integers, 0 for background.
        pixels: the size from which on an object stays.
    """
    large = _large(labels, pixels)
    return np.asarray(np.where(large, large.cumsum(), 0).astype(np.int32)[labels])


def keep_largest(mask: Mask, k: int) -> Mask:
    """The `k` largest components stay; of two of one size the one that comes first.

    Args:
        mask: (*spatial) bool.
        k: how many.
    """
    labels = components(mask)
    sizes = np.bincount(labels.ravel(), minlength=1)
    sizes[0] = 0
    largest = np.argsort(-sizes, kind="stable")[:k]
    wanted = np.zeros(len(sizes), np.bool_)
    wanted[largest[sizes[largest] > 0]] = True
    return np.asarray(wanted[labels])


def fill_holes(mask: Mask) -> Mask:
    """Background that cannot reach the edge of the picture, by sides, becomes foreground.

    The same as `scipy.ndimage.binary_fill_holes`, by fill_voids.

    Args:
        mask: (*spatial) bool.
    """
    import fill_voids

    if mask.size == 0:
        return mask.copy()
    return np.asarray(fill_voids.fill(np.ascontiguousarray(mask), in_place=False), np.bool_)


def fill_object_holes(labels: Labels) -> Labels:
    """A hole that touches one object only becomes part of it.

    Args:
        labels: (*spatial) integers, 0 for background.
    """
    import cc3d
    from scipy.ndimage import maximum_filter, minimum_filter

    filled = labels.copy()
    holes = fill_holes(labels != 0) & (labels == 0)
    if not holes.any():
        return filled
    numbers = cc3d.connected_components(holes.view(np.uint8), connectivity=4 if labels.ndim == 2 else 6)
    largest = np.iinfo(labels.dtype).max
    high = maximum_filter(labels, size=3)
    low = minimum_filter(np.where(labels == 0, largest, labels), size=3)
    count = int(numbers.max())
    most, least = np.zeros(count + 1, labels.dtype), np.full(count + 1, largest, labels.dtype)
    np.maximum.at(most, numbers[holes], high[holes])
    np.minimum.at(least, numbers[holes], low[holes])
    owner = np.where(most == least, most, 0)
    filled[holes] = owner[numbers[holes]]
    return filled


def opened(mask: Mask, radius: int) -> Mask:
    """Binary opening by a disk or ball; beyond its edge the picture goes on as at the edge.

    Args:
        mask: (*spatial) bool.
        radius: in pixels.
    """
    return _on_wider(mask, radius, lambda wide: _dilated(_eroded(wide, radius), radius)) & mask


def closed(mask: Mask, radius: int) -> Mask:
    """Binary closing by a disk or ball; beyond its edge the picture goes on as at the edge.

    Args:
        mask: (*spatial) bool.
        radius: in pixels.
    """
    return _on_wider(mask, radius, lambda wide: _eroded(_dilated(wide, radius), radius)) | mask


def triplet(probability: NDArray[Any], high: float, pixels: int, low: float) -> Mask:
    """Empty unless at least `pixels` pixels are above `high`; else what is above `low`.

    The rule of the winners of SIIM-ACR Pneumothorax (2019).

    Args:
        probability: (*spatial) floats.
        high: of the pixels that decide whether there is anything.
        pixels: how many of them there have to be.
        low: of the pixels that are taken then.
    """
    if np.count_nonzero(probability > high) < pixels:
        return np.zeros(probability.shape, np.bool_)
    return np.asarray(probability > low)


def forbid_overlap(masks: Mask, probabilities: NDArray[Any]) -> Mask:
    """A pixel of several masks stays in the most probable one, of equals in the first.

    Args:
        masks: (K, *spatial) bool.
        probabilities: (K, *spatial) floats.
    """
    best = np.where(masks, probabilities, -1).argmax(axis=0)
    return np.asarray(masks & (np.arange(len(masks)).reshape(-1, *[1] * best.ndim) == best))


def split_distance(mask: Mask, smooth: float, depth: float) -> Labels:
    """Parts touching objects where the distance to the background has several peaks.

    Args:
        mask: (*spatial) bool.
        smooth: of the distance, the standard deviation of a Gaussian in pixels.
        depth: how far, in pixels, a peak stands above the saddle to a higher one.

    Returns:
        (*spatial) int32; every pixel of the mask is in an object, every component has one at least.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    from skimage.morphology import h_maxima

    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    if mask.all():
        return np.ones(mask.shape, np.int32)
    padded = np.pad(mask, 1, mode="edge")  # the edge of the picture is not the edge of an object
    inner = tuple(slice(1, -1) for _ in mask.shape)
    distance = distance_transform_edt(padded)[inner].astype(np.float32)
    distance = np.where(mask, gaussian_filter(distance, smooth) if smooth > 0 else distance, 0)
    peaks = h_maxima(distance, depth).astype(np.bool_) & mask
    return _watershed(components(peaks).astype(np.int32), distance, mask)


def split_seeds(mask: Mask, inside: NDArray[Any], level: float, smallest: int) -> Labels:
    """Parts touching objects by seeds: where their insides are probable.

    Args:
        mask: (*spatial) bool.
        inside: (*spatial) floats, the probability of being in an object and not on its boundary.
        level: seeds are where `inside` is above it.
        smallest: pixels of a seed.

    Returns:
        (*spatial) int32; every pixel of the mask is in an object, every component has one at least.
    """
    import cc3d

    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    certain = np.ascontiguousarray((inside > level) & mask)
    seeds = cc3d.connected_components(certain.view(np.uint8), connectivity=4 if mask.ndim == 2 else 6).astype(np.int32)
    return _watershed(remove_small_objects(seeds, smallest), np.asarray(inside, np.float32), mask)


def _watershed(seeds: Labels, height: NDArray[Any], mask: Mask) -> Labels:
    """Floods the mask from the seeds, high places first; components without a seed become one object each."""
    from skimage.segmentation import watershed

    whole = components(mask).astype(np.int32)
    seeded = np.zeros(int(whole.max()) + 1, np.bool_)
    seeded[whole[seeds != 0]] = True
    several = seeded[whole] & mask
    labels = np.zeros(mask.shape, np.int32)
    if several.any():
        labels = watershed(-height, seeds, mask=several, connectivity=mask.ndim).astype(np.int32)
    alone = mask & ~several
    labels[alone] = whole[alone] + int(labels.max())
    return remove_small_objects(labels, 1)


def _large(labels: NDArray[Any], pixels: int) -> Mask:
    """For each label, whether its object has at least `pixels` pixels; False for background."""
    sizes = np.bincount(labels.ravel(), minlength=1)
    large = sizes >= max(1, pixels)
    large[0] = False
    return np.asarray(large)


def _on_wider(mask: Mask, radius: int, work: Any) -> Mask:
    if mask.size == 0:
        return mask.copy()
    inner = tuple(slice(2 * radius, -2 * radius) for _ in mask.shape)
    return np.asarray(work(np.pad(mask, 2 * radius, mode="edge"))[inner])


def _eroded(mask: Mask, radius: int) -> Mask:
    return ~_dilated(~mask, radius)


def _dilated(mask: Mask, radius: int) -> Mask:
    if mask.ndim == 2:
        import cv2

        y, x = np.ogrid[-radius:radius + 1, -radius:radius + 1]
        disk = (x * x + y * y <= radius * radius).astype(np.uint8)
        return cv2.dilate(np.ascontiguousarray(mask).view(np.uint8), disk, borderValue=0).astype(np.bool_)
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return mask.copy()
    return np.asarray(distance_transform_edt(~mask) <= radius)
