"""Compute metrics at the ten IoU thresholds 0.50, 0.55, …, 0.95: average precision and F2 of objects, TGS Salt score.

A true object is a true positive if its IoU with a predicted object is greater than the threshold. A predicted object
without a matching true object is a false positive. Data Science Bowl 2018, TGS Salt and Airbus Ship Detection use
these definitions.

Hosts forbid overlapping predicted objects. So at most one predicted object can match a true object with an IoU above
0.5. True objects may overlap; the IoU then also counts pixels that another true object covers. If one predicted object
matches two true objects, both are true positives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.metric import metric
from competition.data.objects import HiddenPixels, shared_region

Labels = NDArray[np.integer[Any]]
Hidden = Sequence[HiddenPixels]
Counts = NDArray[np.int64]

# Thresholds 0.50, 0.55, …, 0.95 in units of 1/20. Integers avoid rounding errors, e.g. for an IoU of exactly 0.6.
IOU_TWENTIETHS = np.arange(10, 20)


@metric("mean_ap", higher_is_better=True)
def mean_ap(
    predicted_objects: Labels, true_objects: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
) -> float:
    """Return the mean of TP / (TP + FP + FN) over ten IoU thresholds, for the objects of one image.

    The thresholds are 0.50, 0.55, …, 0.95. This is the metric of Data Science Bowl 2018. The host's definition is
    at https://www.kaggle.com/competitions/data-science-bowl-2018/overview/evaluation.

    Args:
        predicted_objects: integers of any shape, 0 for background, one label per object.
        true_objects: the true objects, in the same form.
        predicted_hidden: pixels where a later predicted object hides an earlier one; `predicted_objects` has only the
            later one.
        true_hidden: pixels where a later true object hides an earlier one; `true_objects` has only the later one.

    Returns:
        A score from 0 to 1; nan if there are neither predicted nor true objects.
    """
    tp, fp, fn = count_object_matches(predicted_objects, true_objects, predicted_hidden, true_hidden)
    return float(np.mean(tp / (tp + fp + fn))) if (tp + fp + fn).any() else float("nan")


@metric("f2_iou", higher_is_better=True)
def f2_iou(
    predicted_objects: Labels, true_objects: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
) -> float:
    """Return the mean of F2 over the ten IoU thresholds 0.50 to 0.95, for the objects of one image.

    F2 is 5 TP / (5 TP + 4 FN + FP). This is the metric of Airbus Ship Detection. The host's definition is at
    https://www.kaggle.com/competitions/airbus-ship-detection/overview/evaluation.

    Args:
        predicted_objects: integers of any shape, 0 for background, one label per object.
        true_objects: the true objects, in the same form.
        predicted_hidden: pixels where a later predicted object hides an earlier one; `predicted_objects` has only the
            later one.
        true_hidden: pixels where a later true object hides an earlier one; `true_objects` has only the later one.

    Returns:
        A score from 0 to 1; nan if there are neither predicted nor true objects.
    """
    tp, fp, fn = count_object_matches(predicted_objects, true_objects, predicted_hidden, true_hidden)
    return float(np.mean(5 * tp / (5 * tp + 4 * fn + fp))) if (tp + fp + fn).any() else float("nan")


@metric("tgs_ap", higher_is_better=True)
def tgs_ap(tp: int, fp: int, fn: int) -> float:
    """Return the share of the ten IoU thresholds that the IoU of an image's mask and truth exceeds.

    This is the metric of TGS Salt. The host's definition is at
    https://www.kaggle.com/competitions/tgs-salt-identification-challenge/overview/evaluation.

    Args:
        tp: number of pixels in mask and truth.
        fp: number of pixels in the mask only.
        fn: number of pixels in the truth only.

    Returns:
        A score from 0 to 1. If only one mask is empty, the result is 0. If both masks are empty, the result is nan.
    """
    union = tp + fp + fn
    return float(np.mean(20 * tp > IOU_TWENTIETHS * union)) if union else float("nan")


def count_object_matches(
    predicted: Labels, truth: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
) -> tuple[Counts, Counts, Counts]:
    """Count true positives, false positives and false negatives of objects at each of the ten IoU thresholds.

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the true objects, in the same form.
        predicted_hidden: pixels where a later predicted object hides an earlier one; `predicted` has only the later
            object.
        true_hidden: pixels where a later true object hides an earlier one; `truth` has only the later object.

    Returns:
        Three arrays (10,): true positives, false positives and false negatives.
    """
    predicted_areas, true_areas, pair_areas = object_areas(predicted, truth, predicted_hidden, true_hidden)
    intersection = np.array(list(pair_areas.values()), np.int64)
    area_sums = np.array([predicted_areas[pred] + true_areas[true] for pred, true in pair_areas], np.int64)
    union = area_sums - intersection
    is_match = 20 * intersection[:, None] > IOU_TWENTIETHS * union[:, None]
    pairs = np.array(list(pair_areas), np.int64).reshape(-1, 2)
    if not predicted_hidden and not true_hidden:  # no object has two matches, because thresholds are at least 0.5
        tp = np.count_nonzero(is_match, axis=0).astype(np.int64)
        return tp, len(predicted_areas) - tp, len(true_areas) - tp
    matched = [[len(np.unique(pairs[column, side])) for column in is_match.T] for side in (0, 1)]
    hits, tp = np.array(matched, np.int64)
    return tp, len(predicted_areas) - hits, len(true_areas) - tp


def connected_components(mask: NDArray[np.bool_]) -> Labels:
    """Label the connected components of a mask; pixels that share a side or a corner are connected.

    Args:
        mask: (*spatial) bool, two or three axes.

    Returns:
        (*spatial) integers: 0 for background, objects from 1.
    """
    import cc3d

    # As uint8, because cc3d 4.1 labels the background, or fails, for about one of fifty bool arrays with full
    # connectivity. Contiguous and writeable, because cc3d numbers objects in memory order and rejects read-only arrays.
    array = np.ascontiguousarray(mask, np.bool_).view(np.uint8)
    array = array if array.flags.writeable else array.copy()
    return np.asarray(cc3d.connected_components(array, connectivity=8 if mask.ndim == 2 else 26))


def object_areas(
    predicted: Labels, truth: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
) -> tuple[Counter[int], Counter[int], Counter[tuple[int, int]]]:
    """Count the pixels of each predicted object, of each true object, and of each intersection of two such objects.

    The pixels are counted in chunks, to limit memory.

    Args:
        predicted: integers of any shape, 0 for background, one label per object.
        truth: the true objects, in the same form.
        predicted_hidden: pixels where a later predicted object hides an earlier one; `predicted` has only the later
            object.
        true_hidden: pixels where a later true object hides an earlier one; `truth` has only the later object.

    Returns:
        Three dictionaries with numbers of pixels: of predicted objects by predicted label, of true objects by true
        label, and of intersections by pair (predicted label, true label).
    """
    predicted_areas: Counter[int] = Counter()
    true_areas: Counter[int] = Counter()
    pair_areas: Counter[tuple[int, int]] = Counter()
    base = int(truth.max(initial=0)) + 1  # one integer encodes a pair of labels
    step = max(1, len(truth) * 2**20 // max(1, truth.size))
    for low in range(0, len(truth), step):
        pred, true = predicted[low : low + step], truth[low : low + step]
        both = (pred != 0) & (true != 0)
        predicted_areas.update(_value_counts(pred[pred != 0]))
        true_areas.update(_value_counts(true[true != 0]))
        pairs = _value_counts(pred[both].astype(np.int64) * base + true[both])
        pair_areas.update({divmod(pair, base): count for pair, count in pairs.items()})
    _add_hidden(predicted_areas, true_areas, pair_areas, (predicted, predicted_hidden), (truth, true_hidden))
    return predicted_areas, true_areas, pair_areas


def _add_hidden(
    predicted_areas: Counter[int],
    true_areas: Counter[int],
    pair_areas: Counter[tuple[int, int]],
    predicted: tuple[Labels, Hidden],
    truth: tuple[Labels, Hidden],
) -> None:
    """Add covered pixels to the areas: the pixels of an object that a later object covers.

    This is necessary because a label image contains only the last object at each pixel.

    Args:
        predicted_areas, true_areas, pair_areas: results of `object_areas`, changed in place.
        predicted: label image of the predicted objects, and their covered pixels.
        truth: label image of the true objects, and their covered pixels.
    """
    for part in predicted[1]:
        predicted_areas[part.number] += int(np.count_nonzero(part.mask))
        for number, count in _value_counts(truth[0][part.box][part.mask]).items():
            if number:
                pair_areas[part.number, number] += count
    for part in truth[1]:
        true_areas[part.number] += int(np.count_nonzero(part.mask))
        for number, count in _value_counts(predicted[0][part.box][part.mask]).items():
            if number:
                pair_areas[number, part.number] += count
        for other in predicted[1]:
            if count := _shared_pixels(part, other):
                pair_areas[other.number, part.number] += count


def _shared_pixels(first: HiddenPixels, second: HiddenPixels) -> int:
    """Count the pixels that are in the hidden pixels of a true object and also in those of a predicted object."""
    inside_first, inside_second = shared_region(first.box, second.box)
    return int(np.count_nonzero(first.mask[inside_first] & second.mask[inside_second]))


def _value_counts(values: Labels) -> dict[int, int]:
    """Count how often each value occurs."""
    unique, counts = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))
