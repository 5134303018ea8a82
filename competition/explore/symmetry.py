"""Find axes along which cases may be mirrored, and classes that lie in a row.

Cases may be mirrored along an axis if no class prefers one side of this axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from competition.explore.types import CaseStats

MAP_SIDE = 12  # cells along each axis of a frequency map
MAX_SAMPLED = 48  # maximum number of voxels along an axis that are read for a map
MIN_CASES = 8  # with fewer cases, a side cannot be distinguished from chance
# minimum of mean / standard deviation of the cases' asymmetry, so that most cases have the same side
MIN_CONSISTENCY = 1.0
MIN_ASYMMETRY = 0.1  # minimum share of the foreground that a mirrored map does not cover
MIN_CLASSES = 3  # minimum number of classes in a row
MAX_SIZE_RATIO = 3.0  # maximum ratio between the median sizes of a class and of the row
MIN_SHARE = 0.95  # minimum share of the cases that have the classes in this order
LETTERS = "RAS"


@dataclass(frozen=True)
class Sidedness:
    """Measure how strongly the classes prefer one side of the case along an axis.

    Attributes:
        axis: axis of the preprocessed case.
        asymmetry: share of the classes' frequency maps that their mirrored maps do not cover, 0 to 1.
        consistency: mean of the cases' asymmetries divided by their standard deviation. The asymmetry of a case is
            positive if the case prefers the same side as the other cases, otherwise negative. If the classes lie on
            random sides, the mean is about 0.
    """

    axis: int
    asymmetry: float
    consistency: float

    @property
    def has_sides(self) -> bool:
        """Whether the classes prefer one side, so that mirrored cases would not resemble the data."""
        return self.asymmetry > MIN_ASYMMETRY and self.consistency > MIN_CONSISTENCY


def frequency_map(layers: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Divide a case into a coarse grid of cells, and return the share of each cell's voxels that each class fills.

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
    """Measure, for each axis, how strongly the classes prefer one side.

    Return an empty list if there are too few cases. If all files have an orientation, the frequency maps are turned to
    RAS, as preprocessing turns the cases. Otherwise, the maps keep the axes of the files, because `explore` then
    suggests no `prepare.orientation`. For `consistency`, the cases are split into two halves, and each case is compared
    with the mean of the other half, because a case resembles every mean to which it contributed.
    """
    are_turned = all(case.orientation is not None and "?" not in case.orientation for case in train)
    maps = [
        turned_to_ras(case.truth.frequency, case.orientation) if are_turned else case.truth.frequency
        for case in train
        if case.truth is not None and case.truth.frequency is not None and case.truth.foreground
    ]
    if len(maps) < MIN_CASES:
        return []
    stack = np.stack(maps)
    whole, sides = stack.mean(axis=0), []
    for axis in range(whole.ndim - 1):
        asymmetries = (stack - np.flip(stack, axis + 2)).reshape(len(stack), -1)
        halves = asymmetries[::2], asymmetries[1::2]
        along = [own @ other.mean(axis=0) for own, other in (halves, halves[::-1])]
        consistency = min(float(values.mean() / max(1e-9, values.std())) for values in along)
        asymmetry = float(np.abs(whole - np.flip(whole, axis + 1)).sum() / (2 * max(1e-9, whole.sum())))
        sides.append(Sidedness(axis, asymmetry, consistency))
    return sides


def turned_to_ras(frequency: NDArray[np.float32], orientation: str | None) -> NDArray[np.float32]:
    """Permute and flip the axes of a frequency map (K, *cells) so that they follow RAS.

    If the orientation is unknown, return the map unchanged.
    """
    if orientation is None or "?" in orientation or len(orientation) != frequency.ndim - 1:
        return frequency
    order = [next(axis for axis, letter in enumerate(orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    turned = frequency.transpose(0, *(axis + 1 for axis in order))
    flipped = [place + 1 for place, axis in enumerate(order) if orientation[axis] in "LPI"]
    return np.flip(turned, tuple(flipped)) if flipped else turned


# Classes that form a row, such as vertebrae: similar objects whose order gives their names


@dataclass(frozen=True)
class ClassRow:
    """Hold classes that lie in the same spatial order in nearly all cases, such as vertebrae.

    Attributes:
        along: the end of the row at which the first class lies: R (right), A (anterior) or S (superior).
        classes: names of the classes in this order.
    """

    along: str
    classes: list[str]


def find_row(names: Sequence[str], train: Sequence[CaseStats]) -> ClassRow | None:
    """Return the row that some of the classes form; None if there is no row, or if a case has no orientation.

    A class belongs to a row if, in most cases, it is one object of about the same size as the other classes.
    """
    cases = [case for case in train if case.truth is not None and case.truth.frequency is not None]
    if len(cases) < MIN_CASES or any(case.orientation is None or "?" in case.orientation for case in cases):
        return None
    sizes, counts = [], []
    for index in range(len(names)):
        own = [case.truth for case in cases if case.truth is not None and case.truth.voxels[index]]
        sizes.append(median(float(truth.voxels[index]) for truth in own) if own else 0.0)
        counts.append(median(len(truth.objects[index]) for truth in own) if own else 0.0)
    single = [index for index, count in enumerate(counts) if count == 1]
    if len(single) < MIN_CLASSES:
        return None
    middle = median(sizes[index] for index in single)
    members = [index for index in single if middle / MAX_SIZE_RATIO <= sizes[index] <= middle * MAX_SIZE_RATIO]
    if len(members) < MIN_CLASSES:
        return None
    places = np.stack([_centres(case) for case in cases])[:, members]  # (cases, classes, axes), nan if absent
    means = np.nanmean(places, axis=0)
    axis = int(np.ptp(means, axis=0).argmax())
    order = np.argsort(-means[:, axis])
    along = places[:, order, axis]
    right = [bool((np.diff(own[~np.isnan(own)]) < 0).all()) for own in along]
    if np.mean(right) < MIN_SHARE:
        return None
    return ClassRow(LETTERS[axis], [names[members[place]] for place in order])


def _centres(case: CaseStats) -> np.ndarray:
    """Return the centre of each class in RAS, in cells of the map from `frequency_map`.

    The result is (K, axes), with nan for an absent class.
    """
    assert case.truth is not None and case.truth.frequency is not None
    frequency = turned_to_ras(case.truth.frequency, case.orientation)
    axes = range(1, frequency.ndim)
    centres = []
    for axis in axes:
        along = frequency.sum(axis=tuple(other for other in axes if other != axis))
        total = along.sum(axis=1)
        centre = np.full(len(along), np.nan)
        np.divide(along @ np.arange(along.shape[1]), total, out=centre, where=total > 0)
        centres.append(centre)
    return np.stack(centres, axis=1)
