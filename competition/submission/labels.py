"""Masks of one case as label arrays: the values of a label file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.submission.postprocess import Outcome

Labels = NDArray[np.unsignedinteger]


def label_arrays(outcome: Outcome, comp: Competition) -> dict[str, Labels]:
    """The label arrays of one case.

    Args:
        outcome: its masks.
        comp: the competition.

    Returns:
        Exclusive classes: one array (*spatial) under the empty name, uint8 (uint16 where a value needs it), the classes'
        values of label files. Overlapping classes: one of 0 and 1 for each, by the class's name. With
        `competition.instances` the values are numbers of objects, from 1, uint16.
    """
    if comp.labels == "overlapping":
        return {
            name: _objects(outcome, [index]) if comp.instances else outcome.masks[index].astype(np.uint8)
            for index, name in enumerate(comp.classes)
        }
    if comp.instances:
        return {"": _objects(outcome, range(len(comp.classes)))}
    values = [int(value) for value in comp.values]
    labels = np.zeros(outcome.masks.shape[1:], np.uint8 if max(values) < 256 else np.uint16)
    for mask, value in zip(outcome.masks, values, strict=True):
        labels[mask] = value
    return {"": labels}


def _objects(outcome: Outcome, classes: Sequence[int]) -> NDArray[np.uint16]:
    """(*spatial) uint16: the objects of some classes, numbered from 1."""
    labels = np.zeros(outcome.masks.shape[1:], np.uint16)
    number = 0
    for index in classes:
        for one in outcome.of(index):
            number += 1
            labels[one] = number
    return labels
