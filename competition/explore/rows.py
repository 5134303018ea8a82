"""Find classes that stand in a row, such as vertebrae: objects that look alike and whose order gives their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from competition.explore.symmetry import turned_to_ras
from competition.explore.types import CaseStats

MIN_CLASSES, MIN_CASES = 3, 8
MAX_SIZE_RATIO = 3.0  # of a class's median size to that of the row, either way
MIN_SHARE = 0.95  # of the cases that have the classes in this order
LETTERS = "RAS"


@dataclass(frozen=True)
class ClassRow:
    """Classes that stand in the same order in all cases.

    Attributes:
        along: end of the axis at which the first class lies: R, A or S.
        classes: names of the classes, from this end.
    """

    along: str
    classes: list[str]


def find_row(names: Sequence[str], train: Sequence[CaseStats]) -> ClassRow | None:
    """Return the row of classes; None if there is none, or if a case has no orientation.

    A class belongs to a row if it is one object of similar size as the others in most cases.
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
    """Return the centre of each class in RAS, in cells of the frequency map: (K, axes), nan for an absent class."""
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
