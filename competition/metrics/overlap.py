"""Compute overlap metrics (Dice, IoU, F-beta) from pixel counts.

The functions also accept arrays of counts, so that the bootstrap can score thousands of samples at once.
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

SUM_PREFIX = "sum_"  # prefix of the columns with the values that a metric's method `sums` returns


class OverlapCounts(NamedTuple):
    """Hold the pixel counts of a mask that is compared with its truth."""

    tp: int  # in both
    fp: int  # in the mask only
    fn: int  # in the truth only


def count_overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> OverlapCounts:
    """Count the pixels that are True in both of two bool arrays, and those that are True in only one of them."""
    tp = sum(int(np.count_nonzero(mask[rows] & truth[rows])) for rows in row_blocks(mask.shape))
    return OverlapCounts(tp, int(np.count_nonzero(mask)) - tp, int(np.count_nonzero(truth)) - tp)


@metric("dice", higher_is_better=True, from_counts=True)
def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Return the Dice, 2 tp / (2 tp + fp + fn); nan if mask and truth are both empty."""
    return fbeta(tp, fp, fn, beta=1.0)


@metric("iou", higher_is_better=True, from_counts=True)
def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Any:
    """Return the IoU (Jaccard index): tp / (tp + fp + fn); nan if mask and truth are both empty."""
    return _ratio(np.asarray(tp), np.asarray(fp) + np.asarray(fn))


@metric("fbeta", higher_is_better=True, from_counts=True)
def fbeta(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, beta: float) -> Any:
    """Return the F-beta score, (1 + β²) tp / ((1 + β²) tp + β² fn + fp).

    A beta below 1 gives precision more weight than recall. Reference: van Rijsbergen 1979.

    Args:
        tp: number of pixels in mask and truth, or an array of such numbers.
        fp: number of pixels in the mask only.
        fn: number of pixels in the truth only.
        beta: weight of recall relative to precision.

    Returns:
        A score from 0 to 1; nan if mask and truth are both empty.
    """
    return _ratio((1 + beta**2) * np.asarray(tp), beta**2 * np.asarray(fn) + np.asarray(fp))


def score_from_counts(config: MetricConfig, *sums: ArrayLike) -> Any:
    """Compute the score of a metric from sums over cases; the metric must support `average: global`.

    Args:
        config: section `metric`.
        sums: for each of the columns that `sum_columns` names, the sum over cases.
    """
    return config.resolve().score_sums(*sums)


def sum_columns(config: MetricConfig, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the columns in a score table that `average: global` adds up over cases.

    The columns are tp, fp and fn. If the metric defines a method `sums`, the columns with its results are used instead.

    Args:
        config: section `metric`.
        columns: names of all columns of the table.

    Raises:
        MaskfoldError: the table lacks a column with a result of the metric's method `sums`.
    """
    metric = config.resolve()
    if not metric.has_sums:
        return COUNTS
    known = set(columns)
    names = tuple(f"{SUM_PREFIX}{number}" for number in range(1, metric.sum_count + 1))
    if missing := [name for name in names if name not in known]:
        raise MaskfoldError(
            f"The table of scores has no column {missing[0]}, but `average: global` of {metric.name} requires it.",
            "Score the run again: delete result.json in each of its fold folders, and repeat `maskfold cv`.",
        )
    return names


def _ratio(correct: NDArray[Any], incorrect: NDArray[Any]) -> Any:
    """Return correct / (correct + incorrect), or nan for 0 / 0; the result for scalars is a float."""
    return divide_or_nan(correct, correct + incorrect)


def divide_or_nan(numerator: NDArray[Any], total: NDArray[Any]) -> Any:
    """Return numerator / total, or nan where total is 0; the result for scalars is a float."""
    values = np.divide(numerator, total, out=np.full(np.shape(total), np.nan), where=total != 0)
    return values if values.ndim else float(values)
