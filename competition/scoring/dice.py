"""Dice and its relatives: how far a mask and the truth overlap, from three counts.

Everything here works on whole arrays of counts too, so that a bootstrap can score thousands of samples at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from competition.config import Metric

COUNTED = ("dice", "iou", "fbeta")  # metrics that follow from the counts, so that `average: global` makes sense


class Overlap(NamedTuple):
    """Pixels or voxels of a mask and its truth."""

    tp: int  # in both
    fp: int  # in the mask only
    fn: int  # in the truth only


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Counts the overlap of two bool arrays of one shape."""
    tp = int(np.count_nonzero(mask & truth))
    return Overlap(tp, int(np.count_nonzero(mask)) - tp, int(np.count_nonzero(truth)) - tp)


def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Dice: 2 tp / (2 tp + fp + fn); nan where mask and truth are both empty."""
    return fbeta(tp, fp, fn, beta=1.0)


def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Intersection over union, also Jaccard: tp / (tp + fp + fn); nan where mask and truth are both empty."""
    return _ratio(np.asarray(tp), np.asarray(fp) + np.asarray(fn))


def fbeta(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, beta: float) -> Any:
    """F-beta: (1 + β²) tp / ((1 + β²) tp + β² fn + fp), van Rijsbergen 1979; nan where mask and truth are both empty.

    A beta below 1 weighs precision more than recall.
    """
    return _ratio((1 + beta**2) * np.asarray(tp), beta**2 * np.asarray(fn) + np.asarray(fp))


def counted_score(metric: Metric, tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """The metric's value from counts, for the metrics in `COUNTED`."""
    if metric.name == "fbeta":
        return fbeta(tp, fp, fn, metric.beta)
    return {"dice": dice, "iou": iou}[metric.name](tp, fp, fn)


def _ratio(right: NDArray[Any], wrong: NDArray[Any]) -> Any:
    """right / (right + wrong), nan for 0 / 0; a float for single numbers."""
    total = right + wrong
    values = np.divide(right, total, out=np.full(np.shape(total), np.nan), where=total != 0)
    return values if values.ndim else float(values)
