"""Overlap metrics (Dice, IoU, F-beta) from pixel counts.

The functions also accept arrays of counts, so that a bootstrap can score thousands of samples at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import metric


class OverlapCounts(NamedTuple):
    """Pixel counts of a mask against its truth."""

    tp: int  # in both
    fp: int  # in the mask only
    fn: int  # in the truth only


def count_overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> OverlapCounts:
    """Count the overlap of two bool arrays of the same shape."""
    tp = int(np.count_nonzero(mask & truth))
    return OverlapCounts(tp, int(np.count_nonzero(mask)) - tp, int(np.count_nonzero(truth)) - tp)


@metric("dice", higher_is_better=True, from_counts=True)
def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Return Dice: 2 tp / (2 tp + fp + fn); nan if mask and truth are both empty."""
    return fbeta(tp, fp, fn, beta=1.0)


@metric("iou", higher_is_better=True, from_counts=True)
def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Return the IoU (Jaccard index): tp / (tp + fp + fn); nan if mask and truth are both empty."""
    return _ratio(np.asarray(tp), np.asarray(fp) + np.asarray(fn))


@metric("fbeta", higher_is_better=True, from_counts=True)
def fbeta(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, beta: float) -> Any:
    """Return F-beta: (1 + β²) tp / ((1 + β²) tp + β² fn + fp); nan if mask and truth are both empty.

    A beta below 1 weighs precision more than recall. Reference: van Rijsbergen 1979.
    """
    return _ratio((1 + beta**2) * np.asarray(tp), beta**2 * np.asarray(fn) + np.asarray(fp))


def score_from_counts(config: MetricConfig, tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Compute a metric from pixel counts; its `from_counts` must be true."""
    return config.resolve()(tp=tp, fp=fp, fn=fn)


def _ratio(correct: NDArray[Any], incorrect: NDArray[Any]) -> Any:
    """Return correct / (correct + incorrect), nan for 0 / 0; a float for scalars."""
    total = correct + incorrect
    values = np.divide(correct, total, out=np.full(np.shape(total), np.nan), where=total != 0)
    return values if values.ndim else float(values)
