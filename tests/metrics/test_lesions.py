"""Lesion-wise F1 and Dice and panoptic quality, against a second implementation of each definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import generate_binary_structure, label

from competition.config.competition import Competition, MetricConfig
from competition.data.objects import CaseObjects, HiddenPixels
from competition.metrics.bootstrap import bootstrap_interval, class_scores, cv_score
from competition.metrics.instances import connected_components
from competition.metrics.scoring import read_scores, score_case
from competition.postprocessing.tuning import class_score
from tests.metrics.mask_pairs import one_empty, random_pairs, worst_difference

NAMES = ("lesion_f1", "lesion_dice", "panoptic_quality")


def score_objects(name: str, predicted, true, **more) -> float:
    metric = MetricConfig(name=name, args=more).resolve()
    return metric(predicted_objects=predicted, true_objects=true, predicted_hidden=(), true_hidden=())


def brute(mask, truth) -> dict[str, float]:
    """One object at a time, on the components of scipy."""
    structure = generate_binary_structure(mask.ndim, mask.ndim)
    (predicted, count), (true, true_count) = (label(array, structure) for array in (mask, truth))
    dices, found = [], 0
    for number in range(1, true_count + 1):
        lesion = true == number
        touching = [part for part in range(1, count + 1) if (lesion & (predicted == part)).any()]
        union = np.isin(predicted, touching) & (predicted != 0)
        found += bool(touching)
        dices.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
    false = sum(not (truth & (predicted == part)).any() for part in range(1, count + 1))
    return {
        "lesion_f1": 2 * found / (2 * found + false + true_count - found),
        "lesion_dice": sum(dices) / (true_count + false),
        "panoptic_quality": brute_panoptic_quality(predicted, true),
    }


def brute_panoptic_quality(predicted, true) -> float:
    """The rules of panopticapi/evaluation.py (pq_compute_single_core) for one category without crowd and void."""
    iou_sum, tp, matched, matched_true = 0.0, 0, set(), set()
    for (gt_label, pred_label), intersection in {
        (gt, pred): ((true == gt) & (predicted == pred)).sum()
        for gt in np.unique(true)
        for pred in np.unique(predicted)
    }.items():
        if gt_label == 0 or pred_label == 0:
            continue
        union = (predicted == pred_label).sum() + (true == gt_label).sum() - intersection
        if intersection / union > 0.5:
            tp, iou_sum = tp + 1, iou_sum + intersection / union
            matched.add(pred_label)
            matched_true.add(gt_label)
    fn = len(set(np.unique(true)) - {0} - matched_true)
    fp = len(set(np.unique(predicted)) - {0} - matched)
    return iou_sum / (tp + 0.5 * fp + 0.5 * fn)


def differences() -> dict[str, list[float]]:
    """Return the difference from the second implementation of each metric and pair."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for mask, truth, _ in random_pairs():
        objects = [connected_components(array) for array in (mask, truth)]
        for name, expected in brute(mask, truth).items():
            found[name].append(score_objects(name, *objects) - expected)
    return found


def test_objects_equal_the_brute_force():
    for name, values in differences().items():
        assert len(values) >= 40 and worst_difference(values, 0) < 1e-12, name


@pytest.mark.parametrize("name", NAMES)
def test_empty_masks(name):
    for mask, truth in one_empty():
        assert score_objects(name, connected_components(mask), connected_components(truth)) == 0
    empty = np.zeros((4, 4), np.int64)
    assert np.isnan(score_objects(name, empty, empty))


def test_the_smallest_overlap_of_a_found_lesion_is_a_setting():
    true = np.repeat([1, 0, 2], 10)
    predicted = np.where(np.arange(30) < 4, 1, 0) + np.where(np.arange(30) >= 21, 2, 0)
    assert score_objects("lesion_f1", predicted, true) == 1
    assert score_objects("lesion_f1", predicted, true, min_iou=0.5) == 0.5


def test_covered_pixels_of_objects_count():
    labels = np.array([1, 1, 2, 2, 0])
    metric = MetricConfig(name="panoptic_quality").resolve()
    hidden = (HiddenPixels(1, (slice(2, 4),), np.ones(2, bool)),)  # object 1 has four pixels, two of them covered
    inputs = {"predicted_objects": labels, "true_objects": labels}
    assert metric(**inputs, predicted_hidden=(), true_hidden=()) == 1
    partial = metric(**inputs, predicted_hidden=(), true_hidden=hidden)
    assert partial == pytest.approx(1 / (1 + 0.5 + 0.5)), "object 1 has an IoU of 0.5, which is no match"


# Over all cases


def comp(**metric) -> Competition:
    files = {"images": "{id}.png", "masks": "{id}.png"}
    return Competition(name="x", root=".", dimensions=2, classes=["a"], train=files, metric=MetricConfig(**metric))


def score_table(section: dict, pairs) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"id": str(number), "fold": 0, **row}
            for number, (mask, truth) in enumerate(pairs)
            for row in score_case(mask[None], truth[None].astype(np.uint8), comp(**section))
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_global_score_adds_up_the_objects_of_all_cases(name, tmp_path):
    pairs = [(mask, truth) for mask, truth, _ in random_pairs(seeds=3) if mask.ndim == 2]
    pairs.append((np.zeros((4, 4), bool),) * 2)
    section = {"name": name, "average": "global"}
    table = score_table(section, pairs)
    size = sum(mask.shape[1] for mask, _ in pairs) + len(pairs)
    joined = np.zeros((2, max(mask.shape[0] for mask, _ in pairs), size), bool)
    start = 0
    for mask, truth in pairs:  # all cases side by side, with an empty column between them
        joined[:, : mask.shape[0], start : start + mask.shape[1]] = mask, truth
        start += mask.shape[1] + 1
    expected = brute(*joined)[name]
    config = MetricConfig(**section)
    assert cv_score(table, config) == pytest.approx(expected) == class_scores(table, config)["a"]
    assert cv_score(table, config) != pytest.approx(table["score"].mean(), abs=1e-3)
    rows = table.to_dict("records")
    assert class_score(rows, config, np.ones(len(rows), bool)) == pytest.approx(expected)
    table.to_csv(tmp_path / "scores.csv", index=False)
    assert cv_score(read_scores(tmp_path / "scores.csv"), config) == cv_score(table, config)
    low, high = bootstrap_interval(table, config)
    assert low < expected < high
    assert not {"sum_1"} & set(score_table({"name": name}, pairs).columns), "other averages need no sums"


def test_objects_of_a_case_may_have_numbers_with_gaps():
    instances = CaseObjects(np.array([[0, 7, 7, 40]]))
    for name in NAMES:
        truth = (instances.labels != 0).astype(np.uint8)
        (row,) = score_case(truth.astype(bool)[None], truth[None], comp(name=name), None, instances, instances)
        assert row["score"] == 1
