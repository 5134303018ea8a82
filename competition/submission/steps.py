"""Pure steps on one class's mask, its objects or its probability: pictures and volumes, no input is changed.

Masks may have any shape, axes of size 0 or 1 among them, and any order in memory. "First" means first in C order.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.scoring.instances import components
from competition.submission.watershed import flooded, merged, neighbours

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Box = tuple[slice, ...]


def remove_small(mask: Mask, pixels: int) -> Mask:
    """Connected components (8 or 26 neighbours) of fewer than `pixels` pixels go.

    Args:
        mask: (*spatial) bool.
        pixels: the size from which on a component stays.
    """
    labels = components(_plain(mask))
    large = np.bincount(labels[mask], minlength=1) >= max(1, pixels)
    return np.asarray(large[labels])


def remove_small_objects(labels: Labels, pixels: int) -> Labels:
    """Objects of fewer than `pixels` pixels go; the others are numbered 1…N in their order.

    Args:
        labels: (*spatial) integers, 0 for background.
        pixels: the size from which on an object stays.
    """
    large = np.bincount(labels[labels != 0], minlength=1) >= max(1, pixels)
    return np.asarray(np.where(large, large.cumsum(), 0).astype(np.int32)[labels])


def keep_largest(mask: Mask, k: int) -> Mask:
    """The `k` largest components (8 or 26 neighbours) stay; of two of one size the one that comes first.

    Args:
        mask: (*spatial) bool.
        k: how many.
    """
    labels = components(_plain(mask))  # numbered as they come in C order
    sizes = np.bincount(labels[mask], minlength=1)
    largest = np.argsort(-sizes, kind="stable")[:k]
    largest = largest[sizes[largest] > 0]
    if len(largest) == 1:
        return np.asarray(labels == largest[0])  # faster than a table
    wanted = np.zeros(len(sizes), np.bool_)
    wanted[largest] = True
    return np.asarray(wanted[labels])


def fill_holes(mask: Mask) -> Mask:
    """Background that cannot reach the edge of the picture, going by sides, becomes foreground.

    The same as `scipy.ndimage.binary_fill_holes`. Not by fill_voids: its version 2.1.2 fills, in about one of a hundred
    small noisy volumes, background that lies on the edge; and of volumes this is faster.

    Args:
        mask: (*spatial) bool.
    """
    numbers = _by_sides(~mask)
    outside = np.zeros(int(numbers.max(initial=0)) + 1, np.bool_)
    for axis in range(mask.ndim):
        for end in (slice(None, 1), slice(-1, None)):
            outside[numbers[(slice(None),) * axis + (end,)]] = True
    outside[0] = False  # number of the foreground
    return np.asarray(~outside[numbers])


def fill_object_holes(labels: Labels) -> Labels:
    """A hole becomes part of the object around it, where all pixels that share a side with it are of one object.

    Args:
        labels: (*spatial) integers, 0 for background.
    """
    filled = np.array(labels, np.int32)
    holes = fill_holes(labels != 0) & (labels == 0)
    if not holes.any():
        return filled
    numbers = _by_sides(holes)
    most = np.zeros(int(numbers.max()) + 1, np.int32)
    least = np.full(len(most), np.iinfo(np.int32).max, np.int32)
    for one, other in neighbours(labels.ndim, corners=False):
        for here, there in ((one, other), (other, one)):
            edge = (numbers[here] != 0) & (labels[there] != 0)
            np.maximum.at(most, numbers[here][edge], labels[there][edge])
            np.minimum.at(least, numbers[here][edge], labels[there][edge])
    filled[holes] = np.where(most == least, most, 0)[numbers[holes]]
    return filled


def opened(mask: Mask, radius: int) -> Mask:
    """Binary opening by a disk or ball: where it does not fit in, the mask goes. Beyond its edge a picture repeats it.

    Args:
        mask: (*spatial) bool.
        radius: in pixels, 0 or more.
    """
    return _on_wider(mask, radius, lambda wide: _dilated(~_dilated(~wide, radius), radius))


def closed(mask: Mask, radius: int) -> Mask:
    """Binary closing by a disk or ball: gaps where it does not fit in close. Beyond its edge a picture repeats it.

    Args:
        mask: (*spatial) bool.
        radius: in pixels, 0 or more.
    """
    return _on_wider(mask, radius, lambda wide: ~_dilated(~_dilated(wide, radius), radius))


def triplet(probability: NDArray[Any], high: float, pixels: int, low: float) -> Mask:
    """Empty unless at least `pixels` pixels are above `high`; else what is above `low`.

    The rule of the winners of SIIM-ACR Pneumothorax (2019): https://github.com/sneddy/pneumothorax-segmentation

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
    if masks.size == 0:
        return masks.copy()
    best = np.where(masks, probabilities, -np.inf).argmax(axis=0)
    return np.asarray(masks & (np.arange(len(masks)).reshape(-1, *[1] * best.ndim) == best))


def split_distance(mask: Mask, smooth: float, depth: float) -> Labels:
    """Parts touching objects by a watershed of the distance to the background, with one object for each clear peak.

    Every peak of the distance floods its surroundings; then those merge whose lower peak stands less than `depth` above
    the saddle between them. The edge of the picture is no background.

    Args:
        mask: (*spatial) bool.
        smooth: of the distance, which is 0 outside the mask: the standard deviation of a Gaussian in pixels.
        depth: how far, in pixels, a peak stands at least above the saddle to a higher one.

    Returns:
        (*spatial) int32, 1…N; every pixel of the mask is in an object, every component (8 or 26) has at least one.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter

    labels = np.zeros(mask.shape, np.int32)
    if mask.all():
        labels += 1  # no background, no distance
    elif mask.any():
        box = _box(mask)
        part = _plain(mask[box])
        height = _distance(part)
        if smooth > 0:
            height = np.where(part, gaussian_filter(height, smooth, mode="nearest"), np.float32(0))
        # Of a slope's level steps, too, some pixels are among these: their surroundings merge with what is above them.
        peaks = part & (maximum_filter(height, size=3, mode="nearest") == height)
        seeds = components(peaks).astype(np.int32)
        labels[box] = remove_small_objects(merged(flooded(seeds, height, part), seeds, height, depth), 1)
    return labels


def split_seeds(mask: Mask, inside: NDArray[Any], level: float, smallest: int) -> Labels:
    """Parts touching objects by a watershed of the probability of an inside, from seeds where that is high.

    Args:
        mask: (*spatial) bool.
        inside: (*spatial) floats, the probability of being in an object and not on its boundary.
        level: seeds are components (4 or 6 neighbours) of the mask's pixels with `inside` above it.
        smallest: pixels of a seed, at least.

    Returns:
        (*spatial) int32, 1…N; every pixel of the mask is in an object, every component (8 or 26) has at least one.
    """
    labels = np.zeros(mask.shape, np.int32)
    if mask.any():
        box = _box(mask)
        part = _plain(mask[box])
        height = np.ascontiguousarray(inside[box], np.float32)
        seeds = remove_small_objects(_by_sides((inside[box] > level) & part), smallest)
        labels[box] = remove_small_objects(flooded(seeds, height, part), 1)
    return labels


def _plain(mask: Mask) -> Mask:
    """As cc3d needs it: it numbers in the order of memory, and takes nothing that is read-only. Not to be changed."""
    return np.require(mask, np.bool_, ["C", "W"])


def _by_sides(mask: Mask) -> Labels:
    """Components of pixels that share a side, from 1."""
    import cc3d

    numbers = _plain(mask).view(np.uint8)  # never bool: see `components`
    return np.asarray(cc3d.connected_components(numbers, connectivity=4 if mask.ndim == 2 else 6), np.int32)


def _box(mask: Mask) -> Box:
    """The smallest box around a mask that is not empty, one pixel wider within the picture."""
    found = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        found.append(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2))
    return tuple(found)


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Of each pixel to the nearest background, in pixels; there must be some."""
    if mask.ndim == 2:
        import cv2

        return np.asarray(cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(mask), np.float32)


def _on_wider(mask: Mask, radius: int, work: Callable[[Mask], Mask]) -> Mask:
    """Opens or closes, which changes nothing outside the mask's box, as if the picture went on beyond its edge."""
    done = np.zeros(mask.shape, np.bool_)
    if mask.any():
        box = _box(mask)
        wide = np.ascontiguousarray(np.pad(mask[box], 2 * radius, mode="edge"))
        done[box] = work(wide)[tuple(slice(2 * radius, size - 2 * radius) for size in wide.shape)]
    return done


def _dilated(mask: Mask, radius: int) -> Mask:
    """Dilation by a disk or ball, a ball as a pile of disks; beyond the edge there is nothing."""
    import cv2

    planes = np.ascontiguousarray(mask.reshape(-1, *mask.shape[-2:])).view(np.uint8)  # of a picture there is one
    done = np.zeros_like(planes)
    for step in range(min(radius + 1, len(planes))):
        square = radius * radius - step * step
        y, x = np.ogrid[-isqrt(square) : isqrt(square) + 1, -isqrt(square) : isqrt(square) + 1]
        disk = (y * y + x * x <= square).astype(np.uint8)
        wide = np.stack([cv2.dilate(plane, disk) for plane in planes])
        done[step:] |= wide[: len(planes) - step]
        done[: len(planes) - step] |= wide[step:]
    return done.view(np.bool_).reshape(mask.shape)
