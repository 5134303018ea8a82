"""Compute metrics of matched objects: lesion-wise F1 and Dice, and panoptic quality.

Each metric can be computed for each case and class, or over the objects of all cases (`average: global`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from competition.config.metric import metric
from competition.data.objects import HiddenPixels
from competition.metrics.instances import Labels, object_areas
from competition.metrics.overlap import divide_or_nan

Hidden = Sequence[HiddenPixels]
Pair = tuple[int, int]


class Matches(NamedTuple):
    """Hold the areas of the objects of one case.

    Attributes:
        predicted: number of pixels of each predicted object, by label.
        true: number of pixels of each true object, by label.
        shared: number of pixels of each intersection, by predicted and true label.
    """

    predicted: Counter[int]
    true: Counter[int]
    shared: Counter[Pair]

    def iou(self, pair: Pair) -> float:
        """Return the IoU of a pair of a predicted and a true object."""
        shared = self.shared[pair]
        return shared / (self.predicted[pair[0]] + self.true[pair[1]] - shared)

    def counts(self, pairs: Iterable[Pair]) -> tuple[int, int, int]:
        """Count objects, given the pairs of predicted and true objects that match.

        Returns:
            The number of true objects in a pair (TP), of predicted objects in no pair (FP), and of true objects in no
            pair (FN).
        """
        pairs = list(pairs)
        found, hits = {true for _, true in pairs}, {predicted for predicted, _ in pairs}
        return len(found), len(self.predicted) - len(hits), len(self.true) - len(found)


@metric("lesion_f1", higher_is_better=True)
class LesionF1:
    """Compute the lesion-wise F1, 2 TP / (2 TP + FP + FN), from numbers of objects.

    A true object is found (TP) if a predicted object overlaps it with an IoU above `min_iou`. By default, one shared
    pixel is enough. A predicted object that overlaps no true object in this way is a false positive. One predicted
    object may find several true objects.

    Args:
        min_iou: IoU that a match must exceed, 0 or more.
    """

    def __init__(self, min_iou: float = 0.0) -> None:
        self.min_iou = min_iou

    def sums(
        self, predicted_objects: Labels, true_objects: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
    ) -> tuple[float, ...]:
        """Return the numbers of found true objects, false predicted objects and missed true objects in one case."""
        matches = Matches(*object_areas(predicted_objects, true_objects, predicted_hidden, true_hidden))
        return matches.counts(pair for pair in matches.shared if matches.iou(pair) > self.min_iou)

    def __call__(self, found: Any, false: Any, missed: Any) -> Any:
        """Return F1 from 0 to 1, or nan if there are no objects."""
        return divide_or_nan(2 * np.asarray(found), 2 * np.asarray(found) + false + missed)


@metric("lesion_dice", higher_is_better=True)
class LesionDice:
    """Compute the lesion-wise Dice: the mean Dice over all true objects and all false predicted objects.

    A true object is compared with the union of all predicted objects that share a pixel with it. A predicted object
    that shares no pixel with a true object is a false positive, and its Dice is 0. The BraTS 2023 challenge uses the
    same definition (https://arxiv.org/abs/2305.17033), but with dilation and a minimum volume.
    """

    def sums(
        self, predicted_objects: Labels, true_objects: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
    ) -> tuple[float, ...]:
        """Return the sum of the Dice of all true objects, and the number of true objects plus false positives."""
        matches = Matches(*object_areas(predicted_objects, true_objects, predicted_hidden, true_hidden))
        shared, touching = Counter[int](), Counter[int]()
        for (predicted, true), area in matches.shared.items():
            shared[true] += area
            touching[true] += matches.predicted[predicted]
        total = sum(2 * shared[true] / (area + touching[true]) for true, area in matches.true.items())
        return total, len(matches.true) + matches.counts(matches.shared)[1]

    def __call__(self, total: Any, objects: Any) -> Any:
        """Return the mean Dice from 0 to 1, or nan if there are no objects."""
        return divide_or_nan(np.asarray(total), np.asarray(objects))


@metric("panoptic_quality", higher_is_better=True)
class PanopticQuality:
    """Compute the panoptic quality: the sum of the IoU of matches (IoU > 0.5), divided by TP + FP / 2 + FN / 2.

    The definition is from Kirillov et al. 2019, https://arxiv.org/abs/1801.00868. With `average: global`, the score
    over all cases equals the result of the package panopticapi.
    """

    def sums(
        self, predicted_objects: Labels, true_objects: Labels, predicted_hidden: Hidden = (), true_hidden: Hidden = ()
    ) -> tuple[float, ...]:
        """Return the sum of the IoU of one case's matches, and its numbers of TP, FP and FN."""
        matches = Matches(*object_areas(predicted_objects, true_objects, predicted_hidden, true_hidden))
        best: dict[int, float] = {}
        matched = [pair for pair in matches.shared if matches.iou(pair) > 0.5]
        for pair in matched:
            best[pair[1]] = max(matches.iou(pair), best.get(pair[1], 0.0))
        return sum(best.values()), *matches.counts(matched)

    def __call__(self, iou_sum: Any, found: Any, false: Any, missed: Any) -> Any:
        """Return the panoptic quality from 0 to 1, or nan if there are no objects."""
        return divide_or_nan(np.asarray(iou_sum), np.asarray(found) + np.asarray(false) / 2 + np.asarray(missed) / 2)
