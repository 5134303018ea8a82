"""Small copies of images, and pairs of them that are nearly the same: saved anew, brighter, or at another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES = {2: 64, 3: 16}  # of a thumbnail, by its axes: 4096 values each
COARSE = {2: 16, 3: 8}
ALIKE = {2: 0.95, 3: 0.98}  # correlation of two thumbnails; volumes of one anatomy reach 0.975, copies of them 0.985
DETAIL = {2: 0.8, 3: 0.95}  # correlation of their details: without it, pictures with the same light would be twins
MAYBE = 0.9  # correlation of coarse thumbnails, which is asked first
MOST_OF_ONE = 5  # pairs kept of each image with later ones: all twins still hang together, and a film makes no million pairs
BLOCK = 512  # images compared with all others at a time

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two images that are nearly the same.

    Attributes:
        one, other: their places in the list.
        likeness: correlation of the thumbnails, 1 for the same.
    """

    one: int
    other: int
    likeness: float


def thumbnail(array: np.ndarray) -> Floats | None:
    """Means over a grid of 64×64 (pictures) or 16×16×16 (volumes) boxes, of all channels together.

    Args:
        array: (C, *spatial), two or three spatial axes.

    Returns:
        float32 (side, side[, side]); None for an image of one value.
    """
    side = SIDES[array.ndim - 1]
    small = array
    for axis in range(1, array.ndim):
        small = _shrink(small, axis, side)
    found = small.mean(axis=0, dtype=np.float32)
    return found if float(found.std()) > 1e-6 * max(1.0, float(np.abs(found).max())) else None


def near_duplicates(thumbnails: Sequence[Floats | None]) -> list[Pair]:
    """Pairs of images that look the same whatever their brightness, contrast, size and compression.

    Both the thumbnails and what is left of them without their local mean must correlate. Turned and mirrored copies are
    not found. Time grows with the square of the number: some seconds for 5,000.

    Args:
        thumbnails: of one kind of image; None is like nothing.

    Returns:
        Pairs with one < other, most alike first.
    """
    places = [place for place, one in enumerate(thumbnails) if one is not None]
    if len(places) < 2:
        return []
    stack = np.stack([one for one in thumbnails if one is not None])
    dims = stack.ndim - 1
    coarse, whole, details = _unit(_coarse(stack)), _unit(stack), _unit(_details(stack))
    found = []
    for first in range(0, len(places), BLOCK):
        block = slice(first, first + BLOCK)
        maybe = np.triu(coarse[block] @ coarse[first:].T >= MAYBE, 1)  # each pair once, and none with itself
        there = first + np.flatnonzero(maybe.any(axis=0))
        alike, detail = whole[block] @ whole[there].T, details[block] @ details[there].T
        close = maybe[:, there - first] & (alike >= ALIKE[dims]) & (detail >= DETAIL[dims])
        for row in np.flatnonzero(close.any(axis=1)):
            others = np.flatnonzero(close[row])
            best = others[np.argsort(-alike[row, others], kind="stable")[:MOST_OF_ONE]]
            found += [Pair(places[first + int(row)], places[int(there[at])], min(1.0, float(alike[row, at]))) for at in best]
    return sorted(found, key=lambda pair: (-pair.likeness, pair.one, pair.other))


def clusters(pairs: Sequence[Pair]) -> list[list[int]]:
    """Places that hang together by pairs, each list sorted."""
    top: dict[int, int] = {}

    def find(place: int) -> int:
        while top.setdefault(place, place) != place:
            place = top[place]
        return place

    for pair in pairs:
        low, high = sorted((find(pair.one), find(pair.other)))
        top[high] = low
    found: dict[int, list[int]] = {}
    for place in sorted(top):
        found.setdefault(find(place), []).append(place)
    return list(found.values())


def _shrink(array: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Means of `side` boxes along an axis, float32; a shorter axis repeats its values."""
    length = array.shape[axis]
    starts = np.arange(side) * length // side
    if length < side:
        return np.take(array, starts, axis=axis).astype(np.float32)
    sums = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
    counts = np.diff(np.append(starts, length)).astype(np.float32)
    found: np.ndarray = sums / counts.reshape([-1 if at == axis else 1 for at in range(array.ndim)])
    return found


def _coarse(stack: Floats) -> Floats:
    """(N, side, …) as means of fewer boxes."""
    dims = stack.ndim - 1
    side, times = COARSE[dims], SIDES[dims] // COARSE[dims]
    boxes = stack.reshape(len(stack), *(size for _ in range(dims) for size in (side, times)))
    return boxes.mean(axis=tuple(range(2, 2 * dims + 1, 2)))


def _details(stack: Floats) -> Floats:
    """(N, side, …) without the local mean."""
    from scipy.ndimage import uniform_filter

    return np.stack([one - uniform_filter(one, 5, mode="nearest") for one in stack])


def _unit(stack: Floats) -> Floats:
    """(N, values) with mean 0 and length 1, so that a product is a correlation; rows of one value become 0."""
    flat = stack.reshape(len(stack), math.prod(stack.shape[1:])).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-12)
