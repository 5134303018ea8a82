"""Pairs of masks for tests that compare metrics with a second implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask, tuple[float, ...]]
SHAPES: list[tuple[tuple[int, ...], tuple[float, ...]]] = [
    ((24, 31), (1.0, 1.0)),
    ((17, 40), (0.7, 2.5)),
    ((12, 13, 14), (1.0, 1.0, 1.0)),
    ((9, 20, 12), (3.0, 0.8, 1.25)),
]


def random_pairs(seeds: int = 4) -> list[Pair]:
    """Return pairs of masks that are not empty, and their spacing.

    The masks are random blobs, the first row or slice, single pixels, and full masks, in 2D and 3D.

    Args:
        seeds: number of pairs of random blobs per shape.
    """
    pairs = []
    for number, (shape, spacing) in enumerate(SHAPES):
        for seed in range(seeds):
            generator = np.random.default_rng([number, seed])
            fields = [gaussian_filter(generator.normal(size=shape), 1 + seed / 2) for _ in range(2)]
            fields[1] += fields[0] * (seed % 3)  # make the two masks more or less similar
            mask, truth = (field > np.quantile(field, (0.5, 0.8, 0.95)[seed % 3]) for field in fields)
            pairs.append((mask, truth, spacing))
        one, other, edge, full = (np.zeros(shape, bool) for _ in range(4))
        one[(2,) * len(shape)] = other[(5,) * len(shape)] = edge[0] = True
        full[:] = True
        pairs += [(one, other, spacing), (one, one, spacing), (edge, full, spacing), (mask, full, spacing)]
        pairs += [(edge, one, spacing), (one, truth, spacing)]
    return pairs


def one_empty(shape: tuple[int, ...] = (6, 8)) -> list[tuple[Mask, Mask]]:
    """Return two pairs of an empty mask and a square: with the empty mask first, and with the square first."""
    empty, square = np.zeros(shape, bool), np.zeros(shape, bool)
    square[(slice(1, 4),) * len(shape)] = True
    return [(empty, square), (square, empty)]


def worst_difference(values: Any, expected: Any) -> float:
    """Return the largest absolute difference of two lists of scores."""
    return float(np.max(np.abs(np.subtract(values, expected))))
