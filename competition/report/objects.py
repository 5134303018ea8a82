"""Which of the true objects were found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]


class Match(NamedTuple):
    """The objects of one class, and how well the best predicted one covers each of them.

    Attributes:
        sizes: (n,) pixels of each true object.
        ious: (n,) its largest IoU with a predicted object; 0 where none touches it.
        predicted: (m,) the largest IoU of each predicted object with a true one.
    """

    sizes: NDArray[np.int64]
    ious: NDArray[np.float64]
    predicted: NDArray[np.float64]


def match(predicted: Labels, truth: Labels) -> Match:
    """Compares objects.

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the same shape.
    """
    theirs, true_of, sizes = np.unique(truth, return_inverse=True, return_counts=True)
    mine, own_of, own_sizes = np.unique(predicted, return_inverse=True, return_counts=True)
    both = (truth != 0) & (predicted != 0)
    pairs, shared = np.unique(
        true_of.reshape(truth.shape)[both].astype(np.int64) * len(mine) + own_of.reshape(truth.shape)[both],
        return_counts=True,
    )
    row, column = np.divmod(pairs, len(mine))
    iou = shared / (sizes[row] + own_sizes[column] - shared)
    best, best_own = np.zeros(len(theirs)), np.zeros(len(mine))
    np.maximum.at(best, row, iou)
    np.maximum.at(best_own, column, iou)
    return Match(sizes[theirs != 0].astype(np.int64), best[theirs != 0], best_own[mine != 0])
