"""Score one case (the competition's metric, Dice and IoU of each class), and read the table of scores."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.competition import YAML_SETTINGS, Competition, MetricConfig
from competition.config.metric import METRICS, OBJECTS, Direction, Metric, PooledScore, WeightedSum, best_score
from competition.data.objects import CaseObjects
from competition.errors import MaskfoldError
from competition.metrics.distances import BorderDistances
from competition.metrics.instances import Labels, connected_components
from competition.metrics.overlap import SUM_PREFIX, OverlapCounts, count_overlap, dice, iou
from competition.records import damaged_error
from competition.text import format_count

if TYPE_CHECKING:
    import pandas as pd

Mask = NDArray[np.bool_]
IGNORE_LABEL = 255  # label of pixels that all metrics ignore
FLOAT_COLUMNS = ("score", "dice", "iou", "pooled")
TRIAL_LENGTH = 24  # pixels along each axis of the masks with which `check_metric` tries a metric
INT_COLUMNS = ("fold", "tp", "fp", "fn", "items")


def score_case(
    masks: Mask,
    truth: NDArray[np.uint8],
    comp: Competition,
    spacing: Sequence[float] | None = None,
    true_instances: Labels | CaseObjects | None = None,
    predicted_instances: Labels | CaseObjects | None = None,
) -> list[dict[str, Any]]:
    """Score every class of one case, one class at a time to limit memory.

    Args:
        masks: (K, *spatial) bool, the prediction.
        truth: (M, *spatial) uint8. For exclusive labels, M is 1, and the values are the classes 1 to K. For
            overlapping labels, M is K, and the values are 0 and 1. Pixels of 255 are ignored in prediction and truth.
        comp: competition with `classes`, `labels` and `metric`.
        spacing: voxel size along each axis in mm. None means 1 mm.
        true_instances: true objects of all classes, as `CaseObjects` or as integers (*spatial) with one label per
            object. None means that the objects are the connected components of the truth.
        predicted_instances: predicted objects, as `CaseObjects` or as integers (*spatial) or (K, *spatial) with one
            label per object. None means that the objects are the connected components of the masks.

    Returns:
        One row for each class, with these columns:

        - `class`: name of the class.
        - `score`: the competition's metric. It is nan if predicted and true mask are empty and `metric.both_empty` is
          null.
        - `dice`, `iou`: nan if predicted and true mask are empty.
        - `tp`, `fp`, `fn`: numbers of pixels.
        - `sum_1`, `sum_2`, …: only with `average: global`, the results of the metric's method `sums`.
        - `pooled`, `items`: only if the metric averages one of its terms over slices. `pooled` is the part of the
          score from this term, and `items` is the number of slices in its mean.

    Raises:
        ValueError: the shapes of the arrays do not match each other or the classes.
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
            None if predicted_instances is None else _class_instances(predicted_instances, index, truth),
        )
        for index in range(len(comp.classes))
    ]


def score_class(
    mask: Mask,
    truth: NDArray[np.uint8],
    comp: Competition,
    index: int,
    spacing: Sequence[float] | None = None,
    true_instances: Labels | CaseObjects | None = None,
    predicted_instances: Labels | CaseObjects | None = None,
) -> dict[str, Any]:
    """Score one class of one case.

    The arguments are as in `score_case`, except that `mask` and `predicted_instances` have no class axis. `index` is
    the index of the class. The result is the row of this class.
    """
    mask, class_truth = np.asarray(mask, np.bool_), _class_truth(truth, comp, index)
    ignored = _equal(truth[0 if comp.labels == "exclusive" else index], IGNORE_LABEL)
    if ignored.any():
        mask = mask & ~ignored
    del ignored
    counts = count_overlap(mask, class_truth)
    metric = comp.metric.resolve()
    inputs = metric_inputs(metric, mask, class_truth, counts, spacing, (predicted_instances, true_instances), index)
    score, terms = _split_score(_score(metric, inputs, counts, comp.classes[index]), comp)
    if comp.metric.average == "global" and metric.has_sums:
        terms |= {f"{SUM_PREFIX}{number}": value for number, value in enumerate(metric.sums(**inputs), 1)}
    if isnan(score) and comp.metric.both_empty is not None:
        score = comp.metric.both_empty
    return {
        "class": comp.classes[index],
        "score": score,
        "dice": dice(*counts),
        "iou": iou(*counts),
        **counts._asdict(),
        **terms,
    }


def check_metric(comp: Competition) -> str | None:
    """Try the metric on a box and a shifted box, so that a command with wrong metric settings ends before it trains.

    Args:
        comp: competition with the metric.

    Returns:
        A warning if lower values of the metric are better and `metric.both_empty` is neither null nor the best score,
        which is 0 for a distance; otherwise None.

    Raises:
        MaskfoldError (exit status 2): the metric raises an exception.
    """
    shape = (TRIAL_LENGTH,) * comp.dimensions
    mask, truth = np.zeros(shape, np.bool_), np.zeros((1 if comp.labels == "exclusive" else len(comp.classes), *shape))
    mask[(slice(4, 12),) * comp.dimensions] = True
    truth[0][(slice(6, 14),) * comp.dimensions] = 1
    try:
        score_class(mask, truth.astype(np.uint8), comp, 0)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise MaskfoldError(
            f"The metric {comp.metric.name} failed in a trial (mask: a box; truth: the same box, shifted by two "
            f"pixels): {reason}.",
            "Correct competition.metric.args, or the code that competition.metric.target names.",
            status=2,
        ) from error
    empty, metric = comp.metric.both_empty, comp.metric.resolve()
    terms = metric.function.terms if isinstance(metric.function, WeightedSum) else [(1.0, metric)]
    best = round(sum(weight * best_score(term) for weight, term in terms), 12)
    if metric.direction is Direction.HIGHER or empty is None or empty == best:
        return None
    return (
        f"competition.metric.both_empty is {empty:g}, but lower values of {comp.metric.name} are better; so a case "
        f"without the class in mask and truth scores {empty:g} instead of {best:g}. If the host counts such a case as "
        f"correct, set competition.metric.both_empty={best:g}"
    )


def unused_settings(metric: MetricConfig) -> list[str]:
    """Return the keys below `metric` that have another value than their default, but that the metric does not use.

    Each term of a sum has settings of its own, so a sum uses none of the keys `metric.beta` and `metric.tolerance_mm`.
    """
    if metric.target is not None:
        return []
    used = [] if metric.sum is not None else METRICS.get(metric.name).settings
    keys = [key for key in YAML_SETTINGS if getattr(metric, key) != 1.0 and key not in used]
    for index, term in enumerate(metric.sum or []):
        keys += [f"sum.{index}.{key}" for key in unused_settings(term.config())]
    return keys


def split_classes(truth: NDArray[np.uint8], comp: Competition) -> Mask:
    """Return the mask of each class as one array (K, *spatial) bool.

    Args:
        truth: (M, *spatial) uint8, as in `score_case`. Pixels of 255 belong to no class.
        comp: competition with `classes` and `labels`.
    """
    masks = large_arrays.empty((len(comp.classes), *truth.shape[1:]), np.bool_)
    for index, mask in enumerate(masks):
        mask[...] = _class_truth(truth, comp, index)
    return masks


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table `scores.csv`.

    A case or class may have the name "nan", which is not read as a missing value.

    Returns:
        A table with the columns id and class (str), fold (int), and score and dice (float, nan if the class is
        absent). If the file has them, the table also has iou and pooled (float), and tp, fp, fn and items (int); see
        `score_case`.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is damaged.
    """
    import pandas as pd

    dtypes: dict[str, type] = {
        "id": str,
        "class": str,
        **dict.fromkeys(FLOAT_COLUMNS, float),
        **dict.fromkeys(INT_COLUMNS, int),
    }
    try:
        table = pd.read_csv(
            path,
            dtype=dtypes,
            keep_default_na=False,
            float_precision="round_trip",
            na_values={name: [""] for name in FLOAT_COLUMNS},
        )
        if missing := [name for name in ("id", "class", "fold", "score", "dice") if name not in table.columns]:
            raise ValueError(f"column {missing[0]} is missing")
        if not isinstance(table.index, pd.RangeIndex):  # pandas reads additional cells as row names
            raise ValueError("rows have more cells than the header")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, OverflowError) as error:  # errors of pandas are ValueErrors
        raise damaged_error(
            path,
            error,
            "Restore the file. Or delete the fold's result.json, so that `maskfold cv` scores the checkpoint again.",
        ) from error
    return table


def _split_score(score: float | PooledScore, comp: Competition) -> tuple[float, dict[str, Any]]:
    """Return the score of a class and its columns `pooled` and `items`.

    If the metric has no term that is averaged over slices, there are no columns. If it has such a term, and both the
    predicted and the true mask lack the class, the class has one item with the value `metric.both_empty`. If
    `both_empty` is null, this class has no items.
    """
    if not isinstance(score, PooledScore) and not comp.metric.has_pooled_term:
        return score, {}
    share, both_empty = comp.metric.resolve().pooled_share, comp.metric.both_empty
    if isinstance(score, PooledScore):
        pooled = share * score.pooled
        return pooled + (1 - share) * score.rest, {"pooled": pooled, "items": score.items}
    if both_empty is None:
        return score, {"pooled": 0.0, "items": 0}
    return both_empty, {"pooled": share * both_empty, "items": 1}


def _class_truth(truth: NDArray[np.uint8], comp: Competition, index: int) -> Mask:
    """Return the true mask (*spatial) bool of one class."""
    return _equal(truth[0], index + 1) if comp.labels == "exclusive" else _equal(truth[index], 1)


def _equal(values: NDArray[np.uint8], value: int) -> Mask:
    """Return a mask of the elements that equal `value`.

    For a large picture, the mask is stored in a file (see `large_arrays`).
    """
    result: Mask = large_arrays.empty(values.shape, np.bool_)
    np.equal(values, value, out=result)
    return result


def _check_shapes(masks: Mask, truth: NDArray[np.uint8], comp: Competition) -> None:
    channels = 1 if comp.labels == "exclusive" else len(comp.classes)
    if masks.shape[0] != len(comp.classes) or truth.shape != (channels, *masks.shape[1:]):
        raise ValueError(
            f"shapes do not match {format_count(len(comp.classes), 'class')} with {comp.labels} labels: "
            f"found masks {masks.shape} and truth {truth.shape}, expected masks ({len(comp.classes)}, *spatial) and "
            f"truth ({channels}, *spatial)."
        )


def _class_instances(instances: Labels | CaseObjects, index: int, truth: NDArray[np.uint8]) -> Labels | CaseObjects:
    if isinstance(instances, CaseObjects) or instances.ndim != truth.ndim:
        return instances
    return np.asarray(instances[index])


def _objects(instances: Labels | CaseObjects | None, mask: Mask, index: int) -> CaseObjects:
    """Return the objects of one class.

    If `instances` is given, the result is its objects within the class's mask. Otherwise, the objects are the
    connected components of the mask.
    """
    if instances is None:
        return CaseObjects(connected_components(mask))
    return (instances if isinstance(instances, CaseObjects) else CaseObjects(instances)).of_class(mask, index)


def metric_inputs(
    metric: Metric,
    mask: Mask,
    truth: Mask,
    counts: OverlapCounts,
    spacing: Sequence[float] | None,
    instances: tuple[Labels | CaseObjects | None, Labels | CaseObjects | None] = (None, None),
    index: int = 0,
) -> dict[str, Any]:
    """Return the inputs of a metric for one class of one case; `competition.config.metric.INPUTS` lists them.

    Args:
        metric: the metric. Objects are only computed if the metric compares objects.
        mask: (*spatial) bool, the prediction.
        truth: bool of the same shape.
        counts: numbers of pixels in both masks, in the prediction only, and in the truth only.
        spacing: voxel size along each axis in mm. None means 1 mm.
        instances: the predicted objects and the true objects. None means the connected components of the mask or truth.
        index: index of the class, which selects the objects.
    """
    spacing = [1.0] * mask.ndim if spacing is None else spacing
    inputs: dict[str, Any] = {"mask": mask, "truth": truth, "spacing": spacing, **counts._asdict()}
    if "distances" in metric.inputs:
        inputs["distances"] = BorderDistances(mask, truth, spacing)
    if metric.needs_objects:
        predicted, true = _objects(instances[0], mask, index), _objects(instances[1], truth, index)
        inputs |= {
            "predicted_objects": predicted.labels,
            "true_objects": true.labels,
            "predicted_hidden": predicted.hidden,
            "true_hidden": true.hidden,
        }
    return inputs


def _score(metric: Metric, inputs: dict[str, Any], counts: OverlapCounts, cls: str) -> float | PooledScore:
    """Return the metric of one class of one case.

    If predicted and true mask are both empty, the result is nan. For a metric of objects, the result is nan if both
    masks have no objects.

    Raises:
        MaskfoldError: at least one of the two masks is not empty, but the metric is undefined.
    """
    if is_empty(metric, inputs, counts):
        return nan
    result = metric(**inputs)
    if isinstance(result, PooledScore):
        return result
    score = float(result)
    if not isfinite(score):
        raise MaskfoldError(
            f"The metric {metric.name} of the class {cls} is {score}, expected a finite number. The predicted mask "
            f"has {format_count(counts.tp + counts.fp, 'pixel')}, and the true mask has {counts.tp + counts.fn}.",
            "If only one of the two masks is empty, the metric must return its worst possible score, such "
            "as the diagonal of the image.",
        )
    return score


def is_empty(metric: Metric, inputs: dict[str, Any], counts: OverlapCounts) -> bool:
    """Return whether predicted and true mask are both empty; for a metric of objects, whether both lack objects."""
    if not metric.needs_objects or isinstance(metric.function, WeightedSum):
        return not any(counts)
    names = ("predicted_objects", "true_objects", "predicted_hidden", "true_hidden")
    return not any(np.any(inputs[name]) if name in OBJECTS else len(inputs[name]) for name in names)
