"""Find the axes along which cases may be mirrored: those along which the classes have no side of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from competition.explore.types import CaseStats

MAP_SIDE = 12  # cells along each axis of a frequency map
MAX_SAMPLED = 48  # voxels along an axis that are read for a map; others are skipped
MIN_CASES = 8  # with fewer cases, a side cannot be told from chance
MIN_REPEAT = 0.5  # correlation between the halves of the data above which an asymmetry is no chance
MIN_ASYMMETRY = 0.1  # share of the foreground that a mirrored map does not cover


@dataclass(frozen=True)
class Sidedness:
    """How far the classes have a side along one axis.

    Attributes:
        axis: axis of the preprocessed case.
        asymmetry: share of the classes' frequency that the mirrored maps do not cover, 0 to 1.
        repeat: correlation of the asymmetry between two halves of the cases; about 0 if it is chance.
    """

    axis: int
    asymmetry: float
    repeat: float

    @property
    def has_sides(self) -> bool:
        """Whether mirrored cases would look different from the data."""
        return self.asymmetry > MIN_ASYMMETRY and self.repeat > MIN_REPEAT


def frequency_map(layers: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Return how often each class fills each cell of a coarse grid over the case.

    Args:
        layers: mask (*spatial) of each class.

    Returns:
        (K, MAP_SIDE, …) shares from 0 to 1; a cell without a voxel has 0.
    """
    steps = [max(1, length // MAX_SAMPLED) for length in layers[0].shape]
    sampled = tuple(slice(step // 2, None, step) for step in steps)
    cells = [
        ((np.arange(length)[part] + 0.5) / length * MAP_SIDE).astype(np.int64)
        for length, part in zip(layers[0].shape, sampled, strict=True)
    ]
    voxels = np.ones((1,) * len(cells))
    for axis, own in enumerate(cells):
        count = np.bincount(own, minlength=MAP_SIDE)
        voxels = voxels * count.reshape([-1 if other == axis else 1 for other in range(len(cells))])
    shape = (MAP_SIDE,) * len(cells)
    maps = []
    for layer in layers:
        found = np.nonzero(layer[sampled])
        flat = np.ravel_multi_index([own[index] for own, index in zip(cells, found, strict=True)], shape)
        maps.append(np.bincount(flat, minlength=MAP_SIDE ** len(cells)).reshape(shape) / np.maximum(voxels, 1))
    return np.stack(maps).astype(np.float32)


def find_sides(train: Sequence[CaseStats]) -> list[Sidedness]:
    """Return for each axis of the preprocessed cases whether the classes have a side; an empty list if it is unknown.

    The maps are turned to RAS where the files have an orientation, as preprocessing turns the cases. Two halves of the
    cases must agree on the asymmetry, because the maps of a few cases are never symmetric.
    """
    maps = [
        turned_to_ras(case.truth.frequency, case.orientation)
        for case in train
        if case.truth is not None and case.truth.frequency is not None and case.truth.foreground
    ]
    if len(maps) < MIN_CASES:
        return []
    halves = [np.mean(maps[start::2], axis=0) for start in (0, 1)]
    whole = np.mean(maps, axis=0)
    sides = []
    for axis in range(whole.ndim - 1):
        first, second = (half - np.flip(half, axis + 1) for half in halves)
        norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
        repeat = float((first * second).sum()) / norm if norm else 0.0
        asymmetry = float(np.abs(whole - np.flip(whole, axis + 1)).sum() / (2 * max(1e-9, whole.sum())))
        sides.append(Sidedness(axis, asymmetry, repeat))
    return sides


def turned_to_ras(frequency: NDArray[np.float32], orientation: str | None) -> NDArray[np.float32]:
    """Return a map (K, *cells) with the axes of the file in the order and direction of RAS."""
    if orientation is None or "?" in orientation or len(orientation) != frequency.ndim - 1:
        return frequency
    order = [next(axis for axis, letter in enumerate(orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    turned = frequency.transpose(0, *(axis + 1 for axis in order))
    flipped = [place + 1 for place, axis in enumerate(order) if orientation[axis] in "LPI"]
    return np.flip(turned, flipped) if flipped else turned
