"""Metrics on objects: each predicted object is a hit, or not, at ten thresholds of IoU from 0.50 to 0.95.

An object is a hit at a threshold when its IoU with an object of the truth is greater than the threshold (the words of
the Data Science Bowl 2018, of TGS Salt and of Airbus Ship Detection). Above 0.5 no object can match two.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Counts = NDArray[np.int64]

# 0.50, 0.55, …, 0.95 as twentieths: whole numbers keep an IoU of exactly 0.6 from passing or failing by rounding.
TWENTIETHS = np.arange(10, 20)


def mean_ap(predicted: Labels, truth: Labels) -> float:
    """Data Science Bowl 2018: the mean over thresholds of TP / (TP + FP + FN) of one picture's objects.

    https://www.kaggle.com/competitions/data-science-bowl-2018/overview/evaluation

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the same shape.

    Returns:
        0 to 1; nan where neither has an object.
    """
    tp, fp, fn = object_counts(predicted, truth)
    return float(np.mean(tp / (tp + fp + fn))) if (tp + fp + fn).any() else float("nan")


def f2_iou(predicted: Labels, truth: Labels) -> float:
    """Airbus Ship Detection: the mean over thresholds of F2 = 5 TP / (5 TP + 4 FN + FP) of one picture's objects.

    https://www.kaggle.com/competitions/airbus-ship-detection/overview/evaluation

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the same shape.

    Returns:
        0 to 1; nan where neither has an object.
    """
    tp, fp, fn = object_counts(predicted, truth)
    return float(np.mean(5 * tp / (5 * tp + 4 * fn + fp))) if (tp + fp + fn).any() else float("nan")


def tgs_ap(tp: int, fp: int, fn: int) -> float:
    """TGS Salt: the share of thresholds that the IoU of a picture's one mask is greater than.

    https://www.kaggle.com/competitions/tgs-salt-identification-challenge/overview/evaluation

    Args:
        tp: pixels in mask and truth.
        fp: pixels in the mask only.
        fn: pixels in the truth only.

    Returns:
        0 to 1, and 0 where only one of the two is empty; nan where both are.
    """
    union = tp + fp + fn
    return float(np.mean(20 * tp > TWENTIETHS * union)) if union else float("nan")


def object_counts(predicted: Labels, truth: Labels) -> tuple[Counts, Counts, Counts]:
    """True positives, false positives and false negatives at each of the ten thresholds, each (10,).

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the same shape.
    """
    areas_predicted, areas_true, common = _tally(predicted, truth)
    shared = np.array(list(common.values()), np.int64)
    union = np.array([areas_predicted[mine] + areas_true[theirs] for mine, theirs in common], np.int64) - shared
    tp = np.count_nonzero(20 * shared[:, None] > TWENTIETHS * union[:, None], axis=0).astype(np.int64)
    return tp, len(areas_predicted) - tp, len(areas_true) - tp


def components(mask: NDArray[np.bool_]) -> Labels:
    """Connected components of a mask: pixels that share a side or a corner are one object.

    Args:
        mask: (*spatial) bool, two or three axes.

    Returns:
        (*spatial) integers: 0 for background, objects from 1.
    """
    import cc3d

    # As uint8: of bool arrays cc3d 4.1 labels background, or stops, at full connectivity in about one of fifty.
    # It numbers along the memory and refuses what cannot be written to: hence an array of its own where needed.
    numbers = np.ascontiguousarray(mask, np.bool_).view(np.uint8)
    numbers = numbers if numbers.flags.writeable else numbers.copy()
    return np.asarray(cc3d.connected_components(numbers, connectivity=8 if mask.ndim == 2 else 26))


def _tally(predicted: Labels, truth: Labels) -> tuple[Counter[int], Counter[int], Counter[tuple[int, int]]]:
    """Pixels of each predicted object, of each true one, and of each pair that overlaps; by parts, to save memory."""
    mine: Counter[int] = Counter()
    theirs: Counter[int] = Counter()
    common: Counter[tuple[int, int]] = Counter()
    base = int(truth.max(initial=0)) + 1  # one number for each pair of labels
    step = max(1, len(truth) * 2**20 // max(1, truth.size))
    for low in range(0, len(truth), step):
        ours, others = predicted[low : low + step], truth[low : low + step]
        both = (ours != 0) & (others != 0)
        mine.update(_counts(ours[ours != 0]))
        theirs.update(_counts(others[others != 0]))
        pairs = _counts(ours[both].astype(np.int64) * base + others[both])
        common.update({divmod(pair, base): count for pair, count in pairs.items()})
    return mine, theirs, common


def _counts(values: Labels) -> dict[int, int]:
    """How often each value occurs."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
