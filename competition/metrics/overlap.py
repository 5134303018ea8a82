"""Compute overlap metrics (Dice, IoU, F-beta) from pixel counts.

The functions also accept arrays of counts, so that a bootstrap can score thousands of samples at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import COUNTS, metric
from competition.errors import MaskfoldError
from competition.large_arrays import row_blocks

SUM_PREFIX = "sum_"  # start of the names of columns with a metric's own sums


class OverlapCounts(NamedTuple):
    """Hold the pixel counts of a mask compared with its truth."""

    tp: int  # in both
    fp: int  # in the mask only
    fn: int  # in the truth only


def count_overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> OverlapCounts:
    """Count the overlap of two bool arrays of the same shape."""
    tp = sum(int(np.count_nonzero(mask[rows] & truth[rows])) for rows in row_blocks(mask.shape))
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


def score_from_counts(config: MetricConfig, *sums: ArrayLike) -> Any:
    """Compute a metric that supports `average: global` from the sums over cases of its columns (`sum_columns`)."""
    return config.resolve().score_sums(*sums)


def sum_columns(config: MetricConfig, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of a score table that `average: global` adds up: counts, or the metric's own sums.

    Args:
        config: the section `metric`.
        columns: all columns of the table.

    Raises:
        MaskfoldError: the table lacks columns of the metric's own sums.
    """
    metric = config.resolve()
    if not metric.has_sums:
        return COUNTS
    known = set(columns)
    names = tuple(f"{SUM_PREFIX}{number}" for number in range(1, metric.sum_count + 1))
    if missing := [name for name in names if name not in known]:
        raise MaskfoldError(
            f"The table of scores has no column {missing[0]}, which `average: global` of {metric.name} requires.",
            "Score the run again: delete result.json in its folds, and repeat `maskfold cv`.",
        )
    return names


def _ratio(correct: NDArray[Any], incorrect: NDArray[Any]) -> Any:
    """Return correct / (correct + incorrect), nan for 0 / 0; a float for scalars."""
    return divide_or_nan(correct, correct + incorrect)


def divide_or_nan(numerator: NDArray[Any], total: NDArray[Any]) -> Any:
    """Return numerator / total, nan where total is 0; a float for scalars."""
    values = np.divide(numerator, total, out=np.full(np.shape(total), np.nan), where=total != 0)
    return values if values.ndim else float(values)
