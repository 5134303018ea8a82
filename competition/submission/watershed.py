"""Floods masks from seeds along a height, and merges what low saddles part: a watershed with the high places first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from competition.scoring.instances import components

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Heights = NDArray[np.float32]
Box = tuple[slice, ...]


def flooded(seeds: Labels, height: Heights, mask: Mask) -> Labels:
    """Objects that grow from seeds until they meet; every component (8 or 26 neighbours) without a seed is one object.

    Args:
        seeds: (*spatial) int32, 0 for none, within the mask; each in one piece.
        height: (*spatial) float32.
        mask: (*spatial) bool, C order.

    Returns:
        (*spatial) int32, 0 outside the mask; numbers have gaps.
    """
    from skimage.segmentation import watershed

    whole = components(mask)
    owner = np.zeros(int(seeds.max(initial=0)) + 1, np.int64)  # of each seed: its component
    owner[seeds[mask]] = whole[mask]
    owner[0] = 0
    count = np.bincount(owner[1:], minlength=int(whole.max(initial=0)) + 1)
    number = (len(owner) + np.arange(len(count))).astype(np.int32)  # no seed's
    number[0] = 0
    labels = number[whole]  # right where a component has at most one seed; only the others are flooded, which is slow
    crowded = (count > 1)[whole]
    if crowded.any():
        flood = watershed(-height, np.where(crowded, seeds, 0), mask=crowded, connectivity=mask.ndim)
        np.copyto(labels, flood, where=crowded)
    return np.asarray(labels)


def merged(labels: Labels, seeds: Labels, height: Heights, depth: float) -> Labels:
    """Joins the surroundings of every peak that stands less than `depth` above the saddle to a higher one with those.

    Saddles are taken from the highest down, so that all that hangs together above one is known by its highest peak.
    The like of a flood from the peaks of `skimage.morphology.h_maxima`, only faster; and that function keeps
    two peaks of exactly one height apart however high the saddle is, so that it cuts rings to pieces.

    Args:
        labels: (*spatial) int32, flooded from seeds at all peaks of the height.
        seeds: (*spatial) int32; each of one height.
        height: (*spatial) float32.
        depth: in the unit of the height; at least 0.

    Returns:
        (*spatial) int32 with some of the numbers of `labels`.
    """
    top = np.zeros(int(labels.max(initial=0)) + 1, np.float32)
    top[labels[seeds != 0]] = height[seeds != 0]
    hanging, objects = list(range(len(top))), list(range(len(top)))  # two forests; a root stands for its set
    for saddle, one, other in _saddles(labels, height):
        high, low = _root(hanging, one), _root(hanging, other)
        if high == low:
            continue
        if top[high] < top[low]:
            high, low = low, high
        rise = top[low] - saddle
        if rise < depth or rise == 0:  # no peak of the lower set can then stand higher: it is one object
            objects[_root(objects, other)] = _root(objects, one)
        hanging[low] = high
    return np.array([_root(objects, number) for number in range(len(top))], np.int32)[labels]


def neighbours(ndim: int, corners: bool) -> Iterator[tuple[Box, Box]]:
    """All pairs of pixels that touch, each pair once: where an array has the first of each, and the second.

    Args:
        ndim: axes of the array.
        corners: whether pixels that share a corner only touch.
    """
    ends = {-1: (slice(1, None), slice(None, -1)), 0: (slice(None), slice(None)), 1: (slice(None, -1), slice(1, None))}
    for step in product((-1, 0, 1), repeat=ndim):
        if step > (0,) * ndim and (corners or sum(map(abs, step)) == 1):
            yield tuple(ends[one][0] for one in step), tuple(ends[one][1] for one in step)


def _saddles(labels: Labels, height: Heights) -> list[tuple[float, int, int]]:
    """For each two labels that touch the highest place to cross, from the highest down."""
    keys, heights = [], []
    for here, there in neighbours(labels.ndim, corners=True):
        one, other = labels[here], labels[there]
        border = (one != other) & (one != 0) & (other != 0)
        low, high = np.minimum(one[border], other[border]), np.maximum(one[border], other[border])
        keys.append(low * np.int64(2**32) + high)
        heights.append(np.minimum(height[here][border], height[there][border]))
    key, value = np.concatenate(keys), np.concatenate(heights)
    order = np.lexsort((key, -value))
    _, first = np.unique(key[order], return_index=True)
    chosen = order[np.sort(first)]
    return list(zip(value[chosen].tolist(), (key[chosen] >> 32).tolist(), (key[chosen] % 2**32).tolist(), strict=True))


def _root(parents: list[int], number: int) -> int:
    """The number that stands for a set, with shorter ways to it from now on."""
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number
