"""The score of one case: the competition's metric and the Dice of each class."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config import Competition
from competition.scoring.dice import COUNTED, Overlap, counted_score, dice, iou, overlap
from competition.scoring.instances import Labels, components, f2_iou, mean_ap, tgs_ap
from competition.scoring.surface import surface_dice, uw_madison

Mask = NDArray[np.bool_]

IGNORE = 255  # in a truth: counts nowhere


def score_case(
    masks: Mask,
    truth: NDArray[np.uint8],
    comp: Competition,
    spacing: Sequence[float] | None = None,
    true_instances: Labels | None = None,
    predicted_instances: Labels | None = None,
) -> list[dict[str, Any]]:
    """Scores every class of one case, one class at a time to keep memory low.

    Args:
        masks: (K, *spatial) bool, the prediction.
        truth: (M, *spatial) uint8. Exclusive labels: M = 1, classes 1 to K; overlapping: M = K, 0 and 1. Pixels of 255
            are left out of mask and truth.
        comp: read are `classes`, `labels` and `metric`.
        spacing: mm along each axis; None is 1.
        true_instances: (*spatial) integers, the objects of all classes; None: connected components of the truth.
        predicted_instances: the same of the prediction, or (K, *spatial); None: connected components of the masks.

    Returns:
        A row for each class: `class`; `score`, the competition's metric (nan where the class is in neither mask nor
        truth and `metric.both_empty` is null); `dice` and `iou` (nan where it is in neither); and the pixel counts
        `tp`, `fp` and `fn`.

    Raises:
        ValueError: the arrays' shapes do not fit each other or the classes.
    """
    _check_shapes(masks, truth, comp)
    return [
        score_class(
            masks[index],
            truth,
            comp,
            index,
            spacing,
            true_instances,
            None if predicted_instances is None else _of_class(predicted_instances, index, truth),
        )
        for index in range(len(comp.classes))
    ]


def score_class(
    mask: Mask,
    truth: NDArray[np.uint8],
    comp: Competition,
    index: int,
    spacing: Sequence[float] | None = None,
    true_instances: Labels | None = None,
    predicted_instances: Labels | None = None,
) -> dict[str, Any]:
    """Scores one class of one case; `mask` and `predicted_instances` are (*spatial), the rest as for `score_case`."""
    mask, there = np.asarray(mask, np.bool_), _class_truth(truth, comp, index)
    ignored = truth[0 if comp.labels == "exclusive" else index] == IGNORE
    if ignored.any():
        mask = mask & ~ignored
    del ignored
    counts = overlap(mask, there)
    objects = (
        (_objects(predicted_instances, mask), _objects(true_instances, there))
        if comp.metric.name in ("mean_ap", "f2_iou")
        else None
    )
    score = _score(mask, there, counts, objects, comp, spacing)
    if isnan(score) and comp.metric.both_empty is not None:
        score = comp.metric.both_empty
    return {
        "class": comp.classes[index],
        "score": score,
        "dice": dice(*counts),
        "iou": iou(*counts),
        **counts._asdict(),
    }


def truth_masks(truth: NDArray[np.uint8], comp: Competition) -> Mask:
    """Masks (K, *spatial) bool of a truth (M, *spatial) uint8; pixels of 255 are in none of them."""
    return np.stack([_class_truth(truth, comp, index) for index in range(len(comp.classes))])


def _class_truth(truth: NDArray[np.uint8], comp: Competition, index: int) -> Mask:
    """(*spatial) bool of one class."""
    return truth[0] == index + 1 if comp.labels == "exclusive" else truth[index] == 1


def _check_shapes(masks: Mask, truth: NDArray[np.uint8], comp: Competition) -> None:
    channels = 1 if comp.labels == "exclusive" else len(comp.classes)
    if masks.shape[0] != len(comp.classes) or truth.shape != (channels, *masks.shape[1:]):
        raise ValueError(
            f"masks {masks.shape} and truth {truth.shape} do not fit {len(comp.classes)} classes with "
            f"{comp.labels} labels"
        )


def _of_class(instances: Labels, index: int, truth: NDArray[np.uint8]) -> Labels:
    return np.asarray(instances[index]) if instances.ndim == truth.ndim else instances


def _objects(instances: Labels | None, mask: Mask) -> Labels:
    """The objects of one class: those given, cut to its mask, or connected components."""
    return components(mask) if instances is None else np.where(mask, instances, 0)


def _score(
    mask: Mask,
    truth: Mask,
    counts: Overlap,
    objects: tuple[Labels, Labels] | None,
    comp: Competition,
    spacing: Sequence[float] | None,
) -> float:
    """The competition's metric of one class; nan where it is in neither."""
    metric = comp.metric
    if objects is not None:
        return mean_ap(*objects) if metric.name == "mean_ap" else f2_iou(*objects)
    if not any(counts):
        return nan
    if metric.name in COUNTED:
        return float(counted_score(metric, *counts))
    if metric.name == "tgs_ap":
        return tgs_ap(*counts)
    if metric.name == "uw_madison":
        return uw_madison(mask, truth)
    if metric.name == "surface_dice":
        return surface_dice(mask, truth, [1.0] * mask.ndim if spacing is None else spacing, metric.tolerance_mm)
    raise ValueError(f"no metric {metric.name!r}")
