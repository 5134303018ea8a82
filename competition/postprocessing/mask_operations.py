"""Change the mask or the objects of one class, in 2D images and volumes.

All functions return new arrays. Masks may have any shape, including axes of length 0 or 1, and any memory order. Where
a docstring says "first", it means first in C order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.metrics.instances import connected_components

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Heights = NDArray[np.float32]
Box = tuple[slice, ...]


# Components and holes


def remove_small(mask: Mask, pixels: int) -> Mask:
    """Remove connected components (8 neighbours in 2D, 26 in 3D) of fewer than `pixels` pixels.

    Args:
        mask: (*spatial) bool.
        pixels: minimum number of pixels of a component that stays.
    """
    labels = connected_components(_as_cc3d_input(mask))
    large = np.bincount(labels[mask], minlength=1) >= max(1, pixels)
    return np.asarray(large[labels])


def remove_small_objects(labels: Labels, pixels: int) -> Labels:
    """Remove objects of fewer than `pixels` pixels, and number the N remaining objects from 1 to N in the same order.

    Args:
        labels: (*spatial) integers, 0 for background.
        pixels: minimum number of pixels of an object that stays.
    """
    large = np.bincount(labels[labels != 0], minlength=1) >= max(1, pixels)
    return np.asarray(np.where(large, large.cumsum(), 0).astype(np.int32)[labels])


def remove_uncertain(labels: Labels, probability: NDArray[Any], minimum: float) -> Labels:
    """Remove the objects whose mean probability is below a minimum.

    Args:
        labels: (*spatial) int32, 0 for background.
        probability: (*spatial) floats.
        minimum: minimum mean probability of an object that stays.

    Returns:
        (*spatial) int32; the remaining objects keep their numbers.
    """
    inside = labels != 0
    numbers = labels[inside]
    sums = np.bincount(numbers, probability[inside].astype(np.float64), minlength=1)
    certain = sums >= minimum * np.bincount(numbers, minlength=1)
    return np.asarray(np.where(certain[labels], labels, 0))


def keep_largest(mask: Mask, k: int) -> Mask:
    """Keep the `k` largest connected components (8 neighbours in 2D, 26 in 3D), and remove all others.

    Of several components with the same size, the first in C order is kept.

    Args:
        mask: (*spatial) bool.
        k: number of components to keep.
    """
    labels = connected_components(_as_cc3d_input(mask))  # numbered in C order
    sizes = np.bincount(labels[mask], minlength=1)
    largest = np.argsort(-sizes, kind="stable")[:k]
    largest = largest[sizes[largest] > 0]
    if len(largest) == 1:
        return np.asarray(labels == largest[0])  # faster than a lookup table
    keep = np.zeros(len(sizes), np.bool_)
    keep[largest] = True
    return np.asarray(keep[labels])


def fill_holes(mask: Mask) -> Mask:
    """Fill holes: background from which no path across pixel sides leads to the image border.

    `scipy.ndimage.binary_fill_holes` gives the same result. The package fill_voids is not used, because its version
    2.1.2 fills background that touches the border in about one of a hundred small noisy volumes.

    Args:
        mask: (*spatial) bool, two or three axes.
    """
    filled = np.zeros(mask.shape, np.bool_)
    if mask.any():
        box = _tight_box(mask)
        part = mask[box]
        # Add a frame of background, one pixel wide, around the box. It connects all background that reaches the border
        # of the box. All other background is in holes.
        background = np.ones([size + 2 for size in part.shape], np.uint8)
        inner = (slice(1, -1),) * mask.ndim
        background[inner] = ~part
        filled[box] = ~_connected_to_first(background)[inner]
    return filled


def _connected_to_first(values: NDArray[np.uint8]) -> Mask:
    """Return a bool mask of the pixels of value 1 that a path across pixel sides connects to the first pixel.

    Args:
        values: (*spatial) array of 0 and 1, whose first pixel is 1. A 2D array may be changed.
    """
    if values.ndim == 2:
        import cv2

        cv2.floodFill(values, None, (0, 0), 2, flags=4)
        return np.asarray(values == 2)
    import cc3d

    # `binary_image` saves a third of the time. Its results are wrong with 26 neighbours (see `connected_components`),
    # but correct with 6.
    numbers = cc3d.connected_components(values, connectivity=6, binary_image=True)
    return np.asarray(numbers == numbers.flat[0])


def fill_object_holes(labels: Labels) -> Labels:
    """Fill each hole with the object around it.

    A hole that touches several objects (across pixel sides) is not filled.

    Args:
        labels: (*spatial) integers, 0 for background.

    Returns:
        (*spatial) int32.
    """
    filled = np.array(labels, np.int32)
    holes = fill_holes(labels != 0) & (labels == 0)
    if not holes.any():
        return filled
    numbers = _side_connected(holes)
    highest = np.zeros(int(numbers.max()) + 1, np.int32)
    lowest = np.full(len(highest), np.iinfo(np.int32).max, np.int32)
    for first, second in neighbour_pairs(labels.ndim, corners=False):
        for here, there in ((first, second), (second, first)):
            edge = (numbers[here] != 0) & (labels[there] != 0)
            np.maximum.at(highest, numbers[here][edge], labels[there][edge])
            np.minimum.at(lowest, numbers[here][edge], labels[there][edge])
    filled[holes] = np.where(highest == lowest, highest, 0)[numbers[holes]]
    return filled


# Morphology and thresholds


def binary_opening(mask: Mask, radius: int) -> Mask:
    """Open a mask (erosion, then dilation) with a disk in 2D or a ball in 3D.

    Beyond the image border, the border pixels are repeated.

    Args:
        mask: (*spatial) bool.
        radius: radius in pixels, 0 or more.
    """
    return _with_padding(mask, radius, lambda wide: _dilate(~_dilate(~wide, radius), radius))


def binary_closing(mask: Mask, radius: int) -> Mask:
    """Close a mask (dilation, then erosion) with a disk in 2D or a ball in 3D.

    Beyond the image border, the border pixels are repeated.

    Args:
        mask: (*spatial) bool.
        radius: radius in pixels, 0 or more.
    """
    return _with_padding(mask, radius, lambda wide: ~_dilate(~_dilate(wide, radius), radius))


def double_threshold(probability: NDArray[Any], high: float, pixels: int, low: float) -> Mask:
    """Return the pixels above `low`, but only if at least `pixels` pixels are above `high`; otherwise an empty mask.

    The winners of SIIM-ACR Pneumothorax (2019) used this rule: https://github.com/sneddy/pneumothorax-segmentation

    Args:
        probability: (*spatial) floats.
        high: threshold of the pixels that decide whether the class is present.
        pixels: minimum number of these pixels.
        low: threshold of the mask.
    """
    if np.count_nonzero(probability > high) < pixels:
        return np.zeros(probability.shape, np.bool_)
    return np.asarray(probability > low)


def forbid_overlap(masks: Mask, probabilities: NDArray[Any]) -> Mask:
    """Assign each pixel that is in several masks to the most probable of their classes.

    Of equally probable classes, the first gets the pixel.

    Args:
        masks: (K, *spatial) bool for K classes.
        probabilities: (K, *spatial) floats.

    Returns:
        (K, *spatial) bool; no pixel is in several masks.
    """
    if masks.size == 0:
        return masks.copy()
    best = np.where(masks, probabilities, -np.inf).argmax(axis=0)
    return np.asarray(masks & (np.arange(len(masks)).reshape(-1, *[1] * best.ndim) == best))


# Splitting of touching objects


def split_distance(mask: Mask, smooth: float, depth: float) -> Labels:
    """Split touching objects by a watershed of the distance to the background; each clear peak becomes an object.

    First, each peak of the distance becomes a region. Then two regions are merged if the lower of their two peaks is
    less than `depth` above the saddle between them. The image border is not treated as background.

    Args:
        mask: (*spatial) bool.
        smooth: standard deviation in pixels of the Gaussian that smooths the distance; 0 for no smoothing. Outside the
            mask, the distance stays 0.
        depth: minimum height, in pixels, of a peak above the saddle to a higher peak.

    Returns:
        (*spatial) int32 label image: 0 for background, N objects from 1 to N. Every pixel of the mask is in an object.
        Each connected component (8 neighbours in 2D, 26 in 3D) has at least one object.
    """
    from scipy.ndimage import gaussian_filter

    labels = np.zeros(mask.shape, np.int32)
    if mask.all():
        labels += 1  # without background there is no distance
    elif mask.any():
        box = _bounding_box(mask)
        part = _as_cc3d_input(mask[box])
        height = background_distance(part)
        if smooth > 0:
            height = np.where(part, gaussian_filter(height, smooth, mode="nearest"), np.float32(0))
        labels[box] = _split_by_height(part, height, depth)
    return labels


def _split_by_height(mask: Mask, height: Heights, depth: float) -> Labels:
    """Split a mask by a watershed of `height`, with one object per clear peak.

    Args:
        mask: (*spatial) bool, writable and in C order, as `_as_cc3d_input` returns it.
        height: (*spatial) float32.
        depth: minimum height of a peak above the saddle to a higher peak.

    Returns:
        (*spatial) int32 label image: 0 for background, N objects from 1 to N.
    """
    from scipy.ndimage import maximum_filter

    # This also finds plateaus on slopes, which are not peaks. `merge_by_saddle` merges their regions with higher
    # regions.
    peaks = mask & (maximum_filter(height, size=3, mode="nearest") == height)
    seeds = connected_components(peaks).astype(np.int32)
    return remove_small_objects(merge_by_saddle(seeded_watershed(seeds, height, mask), seeds, height, depth), 1)


def split_seeds(mask: Mask, interior: NDArray[Any], level: float, smallest: int) -> Labels:
    """Split touching objects by a watershed of the interior probability, from seeds where this probability is high.

    A seed is a connected component (4 neighbours in 2D, 6 in 3D) of pixels in the mask whose interior probability is
    above `level`.

    Args:
        mask: (*spatial) bool.
        interior: (*spatial) floats, the probability that a pixel is in an object, but not on the object's boundary.
        level: minimum interior probability of the pixels of a seed.
        smallest: minimum size of a seed in pixels.

    Returns:
        (*spatial) int32 label image: 0 for background, N objects from 1 to N. Every pixel of the mask is in an object.
        Each connected component (8 neighbours in 2D, 26 in 3D) has at least one object.
    """
    labels = np.zeros(mask.shape, np.int32)
    if mask.any():
        box = _bounding_box(mask)
        part = _as_cc3d_input(mask[box])
        height = np.ascontiguousarray(interior[box], np.float32)
        seeds = remove_small_objects(_side_connected((interior[box] > level) & part), smallest)
        labels[box] = remove_small_objects(seeded_watershed(seeds, height, part), 1)
    return labels


def split_inner_peaks(mask: Mask, interior: NDArray[Any], level: float, depth: float, smooth: float) -> Labels:
    """Split touching objects by a watershed, with one object per clear peak of the sum of probability and distance.

    The inner part of the objects consists of the pixels of the mask whose `interior` is above `level`. The height of a
    pixel is its `interior` plus the square root of its distance to the pixels outside the inner part. Because of the
    square root, a common `depth` suits small and large objects. Peaks are merged as in `split_distance`.

    Two objects are separated if the network is sure of their common border, which lowers `interior`; or if the inner
    part is narrow between them, which lowers the distance. The two clues are added, so together they may separate
    objects that neither of them would separate alone.

    Args:
        mask: (*spatial) bool.
        interior: (*spatial) floats, the probability that a pixel is in an object, but not on the object's boundary.
        level: probability above which a pixel belongs to the inner part.
        depth: minimum height of a peak above the saddle to a higher peak. An increase of `interior` from 0 to 1 is a
            height of 1.
        smooth: standard deviation in pixels of the Gaussian that smooths the distance; 0 for no smoothing.

    Returns:
        (*spatial) int32 label image: 0 for background, N objects from 1 to N. Every pixel of the mask is in an object.
        Each connected component (8 neighbours in 2D, 26 in 3D) has at least one object.
    """
    from scipy.ndimage import gaussian_filter

    labels = np.zeros(mask.shape, np.int32)
    if mask.any():
        box = _bounding_box(mask)
        part = _as_cc3d_input(mask[box])
        probability = np.ascontiguousarray(interior[box], np.float32)
        inner = _as_cc3d_input((probability > level) & part)
        height = np.where(part, probability, np.float32(0))
        if not inner.all():  # if there are no pixels outside the inner part, there is no distance to them
            distance = background_distance(inner)
            if smooth > 0:
                distance = gaussian_filter(distance, smooth, mode="nearest")
            height += np.where(part, np.sqrt(distance), np.float32(0))
        labels[box] = _split_by_height(part, height, depth)
    return labels


def seeded_watershed(seeds: Labels, height: Heights, mask: Mask) -> Labels:
    """Grow objects from seeds by a watershed, until they meet.

    A connected component of the mask (8 neighbours in 2D, 26 in 3D) without a seed becomes one object.

    Args:
        seeds: (*spatial) int32 numbers of the seeds, 0 elsewhere. Each seed must be connected and lie in the mask.
        height: (*spatial) float32; objects grow from high to low values.
        mask: (*spatial) bool, in C order.

    Returns:
        (*spatial) int32 label image, 0 outside the mask. Some numbers may be unused.
    """
    from skimage.segmentation import watershed

    connected = connected_components(mask)
    owner = np.zeros(int(seeds.max(initial=0)) + 1, np.int64)  # the component of each seed
    owner[seeds[mask]] = connected[mask]
    owner[0] = 0
    count = np.bincount(owner[1:], minlength=int(connected.max(initial=0)) + 1)
    number = (len(owner) + np.arange(len(count))).astype(np.int32)  # numbers that no seed has
    number[0] = 0
    labels = number[connected]
    several_seeds = (count > 1)[connected]  # flood only these components, because flooding is slow
    if several_seeds.any():
        flood = watershed(-height, np.where(several_seeds, seeds, 0), mask=several_seeds, connectivity=mask.ndim)
        np.copyto(labels, flood, where=several_seeds)
    return np.asarray(labels)


def merge_by_saddle(labels: Labels, seeds: Labels, height: Heights, depth: float) -> Labels:
    """Merge neighbouring regions of a watershed if the lower of their two peaks is not clearly above their saddle.

    The saddle of two regions is the highest point of their common border. Saddles are processed from the highest to the
    lowest. Each side of a saddle consists of a region and all regions that higher saddles connect to it, merged or not.
    The two peaks are the highest peak of each side.

    The result resembles a watershed from the peaks of `skimage.morphology.h_maxima`, but takes less time. `h_maxima`
    also separates two peaks of equal height if the saddle is high, so it cuts rings into pieces.

    Args:
        labels: (*spatial) int32, the result of a watershed from seeds at all peaks of `height`.
        seeds: (*spatial) int32 numbers of these seeds; `height` must be constant in each seed.
        height: (*spatial) float32.
        depth: minimum height of the lower peak above the saddle, 0 or more, in the unit of `height`. If the lower peak
            is less than `depth` above the saddle, the two regions are merged.

    Returns:
        (*spatial) int32. A merged region has the number of one of its regions.
    """
    peak = np.zeros(int(labels.max(initial=0)) + 1, np.float32)
    peak[labels[seeds != 0]] = height[seeds != 0]
    connected, objects = list(range(len(peak))), list(range(len(peak)))  # disjoint-set forests of parents
    for saddle, first, second in _saddles(labels, height):
        high, low = _root(connected, first), _root(connected, second)
        if high == low:
            continue
        if peak[high] < peak[low]:
            high, low = low, high
        rise = peak[low] - saddle
        if rise < depth or rise == 0:  # `low` is the highest peak of its set, so the whole set stays one object
            objects[_root(objects, second)] = _root(objects, first)
        connected[low] = high
    return np.array([_root(objects, number) for number in range(len(peak))], np.int32)[labels]


def _saddles(labels: Labels, height: Heights) -> list[tuple[float, int, int]]:
    """Return (height, first region, second region) of the saddle of each pair of touching regions, the highest first.

    The saddle is the highest point at which one can cross from one region to the other.
    """
    keys, heights = [], []
    for here, there in neighbour_pairs(labels.ndim, corners=True):
        first, second = labels[here], labels[there]
        border = (first != second) & (first != 0) & (second != 0)
        low, high = np.minimum(first[border], second[border]), np.maximum(first[border], second[border])
        keys.append(low * np.int64(2**32) + high)
        heights.append(np.minimum(height[here][border], height[there][border]))
    key, value = np.concatenate(keys), np.concatenate(heights)
    order = np.lexsort((key, -value))
    _, highest = np.unique(key[order], return_index=True)
    chosen = order[np.sort(highest)]
    return list(zip(value[chosen].tolist(), (key[chosen] >> 32).tolist(), (key[chosen] % 2**32).tolist(), strict=True))


def _root(parents: list[int], number: int) -> int:
    """Return the root of the tree that contains a number in a disjoint-set forest, and shorten the path to the root."""
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


# Helpers


def neighbour_pairs(ndim: int, corners: bool) -> Iterator[tuple[Box, Box]]:
    """Yield pairs of index tuples that select touching pixels of an array, each pair of pixels exactly once.

    For a pair `first, second`, the pixels `array[first]` and `array[second]` at the same position touch each other.

    Args:
        ndim: number of axes of the array.
        corners: whether pixels that share only an edge or a corner count as touching. If False, only pixels that share
            a side do.
    """
    ends = {-1: (slice(1, None), slice(None, -1)), 0: (slice(None), slice(None)), 1: (slice(None, -1), slice(1, None))}
    for step in product((-1, 0, 1), repeat=ndim):
        if step > (0,) * ndim and (corners or sum(map(abs, step)) == 1):
            yield tuple(ends[shift][0] for shift in step), tuple(ends[shift][1] for shift in step)


def _as_cc3d_input(mask: Mask) -> Mask:
    """Return the mask in the form that cc3d requires: writable, and in C order.

    The order matters because cc3d numbers components in the order of the memory. The result may share the memory of
    `mask`, so callers must not change it.
    """
    return np.require(mask, np.bool_, ["C", "W"])


def _side_connected(mask: Mask) -> Labels:
    """Return the connected components across pixel sides (4 neighbours in 2D, 6 in 3D), numbered from 1."""
    import cc3d

    numbers = _as_cc3d_input(mask).view(np.uint8)  # as uint8, for the reason that `connected_components` gives
    return np.asarray(cc3d.connected_components(numbers, connectivity=4 if mask.ndim == 2 else 6), np.int32)


def _bounding_box(mask: Mask) -> Box:
    """Return the bounding box of a non-empty mask, with one more pixel on each side where the image allows it."""
    box = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2))
    return tuple(box)


def _tight_box(mask: Mask) -> Box:
    """Return the bounding box of a non-empty mask."""
    lines = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    box = [slice(int(lines[0]), int(lines[-1]) + 1)]
    shadow = np.logical_or.reduce(mask[box[0]], axis=0)  # one pass over the mask instead of one pass for each axis
    for axis in range(shadow.ndim):
        where = np.flatnonzero(shadow.any(axis=tuple(other for other in range(shadow.ndim) if other != axis)))
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def background_distance(mask: Mask) -> NDArray[np.float32]:
    """Return the distance of each pixel of a mask to the nearest background pixel, in pixels, (*spatial) float32.

    The mask must contain background.
    """
    return _plane_distance(mask.view(np.uint8)) if mask.ndim == 2 else _volume_distance(mask)


def _plane_distance(plane: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the distance of each pixel of a 2D mask to the nearest background pixel, in pixels.

    The result does not depend on the number of threads.
    """
    import cv2

    # With one thread, OpenCV would use Intel's library IPP, whose distances are wrong by up to 0.0006 pixels.
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return np.asarray(cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    finally:
        cv2.ipp.setUseIPP(before)


EXACT_LENGTH = 1000  # pixels; up to this distance, rounding the square of a float32 distance gives the exact integer
COLUMNS = 4096  # number of columns that are processed at a time, so that they fit into the cache of a core


def _volume_distance(mask: Mask) -> NDArray[np.float32]:
    """Return `scipy.ndimage.distance_transform_edt(mask)` as float32, but several times faster.

    OpenCV computes the distances within each plane along the first axis. For each pixel and plane, the squared distance
    within the plane and the squared distance to the plane are added. The result is the root of the smallest sum.

    Args:
        mask: (D, H, W) bool, C order, with at least one pixel of background.
    """

    if max(mask.shape) > EXACT_LENGTH:
        from scipy.ndimage import distance_transform_edt

        return np.asarray(distance_transform_edt(mask), np.float32)
    squares = np.empty(mask.shape, np.int32)
    for plane, square in zip(mask.view(np.uint8), squares, strict=True):
        if plane.all():  # no background in this plane
            square[:] = 3 * EXACT_LENGTH**2
        else:
            within = _plane_distance(plane)
            square[:] = np.rint(np.square(within))
    columns = squares.reshape(len(mask), -1)
    for start in range(0, columns.shape[1], COLUMNS):
        block = columns[:, start : start + COLUMNS]
        nearest = block.copy()
        for step in range(1, len(mask)):
            if step * step >= nearest.max():
                break
            np.minimum(nearest[step:], block[:-step] + step * step, out=nearest[step:])
            np.minimum(nearest[:-step], block[step:] + step * step, out=nearest[:-step])
        block[:] = nearest
    return np.sqrt(squares.astype(np.float64)).astype(np.float32)


def _with_padding(mask: Mask, radius: int, operation: Callable[[Mask], Mask]) -> Mask:
    """Apply an opening or closing to the bounding box of a mask, padded with repeated border pixels.

    Args:
        mask: (*spatial) bool.
        radius: radius of the disk or ball in pixels.
        operation: the opening or closing.
    """
    result = np.zeros(mask.shape, np.bool_)
    if mask.any():
        box = _bounding_box(mask)
        padded = np.ascontiguousarray(np.pad(mask[box], 2 * radius, mode="edge"))
        result[box] = operation(padded)[tuple(slice(2 * radius, size - 2 * radius) for size in padded.shape)]
    return result


def _dilate(mask: Mask, radius: int) -> Mask:
    """Dilate a mask with a disk in 2D, or in 3D with a ball, which is applied as a stack of disks.

    Pixels outside the image are treated as background.
    """
    import cv2

    planes = np.ascontiguousarray(mask.reshape(-1, *mask.shape[-2:])).view(np.uint8)  # one plane for a 2D image
    result = np.zeros_like(planes)
    for step in range(min(radius + 1, len(planes))):
        square = radius * radius - step * step
        y, x = np.ogrid[-isqrt(square) : isqrt(square) + 1, -isqrt(square) : isqrt(square) + 1]
        disk = (y * y + x * x <= square).astype(np.uint8)
        wide = np.stack([cv2.dilate(plane, disk) for plane in planes])
        result[step:] |= wide[: len(planes) - step]
        result[: len(planes) - step] |= wide[step:]
    return result.view(np.bool_).reshape(mask.shape)
