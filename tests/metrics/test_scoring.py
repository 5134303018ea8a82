"""Scores of one case: classes, ignored pixels, empty masks, instances and memory."""

import tracemalloc

import numpy as np
import pytest

from competition.config.competition import Competition, MetricConfig
from competition.config.metric import METRICS
from competition.errors import MaskfoldError
from competition.metrics.scoring import check_metric, score_case, split_classes


def competition(classes=("a", "b"), labels="exclusive", **metric):
    return Competition(
        name="test",
        root=".",
        dimensions=2,
        classes=list(classes),
        labels=labels,
        train={"images": "{id}.png", "masks": "{id}.png"},
        metric=MetricConfig(**metric),
    )


def one_hot(labels, classes=2):
    return np.stack([labels == index + 1 for index in range(classes)])


TRUTH = np.array([[[1, 1, 0, 2], [1, 255, 0, 2]]], np.uint8)
PREDICTED = np.array([[1, 0, 0, 2], [1, 1, 1, 0]])


def test_exclusive_classes_by_hand():
    """Class a: 2 of 3 pixels found, 1 false positive, 1 ignored pixel. Class b: 1 of 2 found."""
    first, second = score_case(one_hot(PREDICTED), TRUTH, competition())
    assert first == {
        "class": "a",
        "score": pytest.approx(4 / 6),
        "dice": pytest.approx(4 / 6),
        "iou": pytest.approx(2 / 4),
        "tp": 2,
        "fp": 1,
        "fn": 1,
    }
    assert second == {
        "class": "b",
        "score": pytest.approx(2 / 3),
        "dice": pytest.approx(2 / 3),
        "iou": 0.5,
        "tp": 1,
        "fp": 0,
        "fn": 1,
    }


def test_overlapping_classes_have_separate_ignored_pixels():
    truth = np.array([[[1, 255, 0]], [[1, 1, 255]]], np.uint8)
    masks = np.ones((2, 1, 3), bool)
    first, second = score_case(masks, truth, competition(labels="overlapping"))
    assert (first["tp"], first["fp"], first["fn"]) == (1, 1, 0)
    assert (second["tp"], second["fp"], second["fn"]) == (2, 0, 0)


def test_truth_masks():
    np.testing.assert_array_equal(split_classes(TRUTH, competition()), one_hot(TRUTH[0]))
    both = np.array([[[1, 255]], [[1, 0]]], np.uint8)
    np.testing.assert_array_equal(split_classes(both, competition(labels="overlapping")), both == 1)


@pytest.mark.parametrize("name", ["dice", "iou", "mean_ap", "tgs_ap", "fbeta", "f2_iou", "uw_madison", "surface_dice"])
@pytest.mark.parametrize(("both_empty", "expected"), [(1.0, 1.0), (0.0, 0.0), (None, np.nan)])
def test_an_absent_class_scores_both_empty(name, both_empty, expected):
    comp = competition(classes=["a"], name=name, both_empty=both_empty)
    nothing, something = np.zeros((2, 1, 8, 8), np.uint8)
    something[0, 2:4, 2:4] = 1
    (row,) = score_case(nothing.astype(bool), nothing, comp)
    np.testing.assert_equal(row["score"], expected)
    assert np.isnan(row["dice"]) and np.isnan(row["iou"])
    for mask, truth in [(nothing, something), (something, nothing)]:
        (row,) = score_case(mask.astype(bool), truth, comp)
        assert row["score"] == row["dice"] == 0.0
    (row,) = score_case(something.astype(bool), something, comp)
    assert row["score"] == row["dice"] == 1.0


def test_a_prediction_in_ignored_pixels_is_not_counted():
    truth = np.full((1, 4, 4), 255, np.uint8)
    (row,) = score_case(np.ones((1, 4, 4), bool), truth, competition(classes=["a"], both_empty=None))
    assert np.isnan(row["score"])


def test_each_metric_uses_its_parameters():
    mask, truth = np.zeros((2, 1, 20, 20), np.uint8)
    truth[0, 5:10, 5:15], mask[0, 5:12, 5:15] = 1, 1  # tp 50, fp 20
    for metric, expected in [
        ({"name": "fbeta", "beta": 0.5}, 62.5 / 82.5),
        ({"name": "iou"}, 50 / 70),
        ({"name": "tgs_ap"}, 5 / 10),
        ({"name": "mean_ap"}, 5 / 10),
        ({"name": "f2_iou"}, 5 / 10),
        ({"name": "uw_madison"}, 0.4 * 100 / 120 + 0.6 * (1 - 2 / np.sqrt(800))),
    ]:
        (row,) = score_case(mask.astype(bool), truth, competition(classes=["a"], **metric))
        assert row["score"] == pytest.approx(expected), metric
    scores = [
        score_case(
            mask.astype(bool), truth, competition(["a"], name="surface_dice", tolerance_mm=tolerance), spacing=spacing
        )[0]["score"]
        for spacing, tolerance in [((1.0, 1.0), 2.0), ((1.0, 1.0), 1.9), ((2.0, 2.0), 2.0), ((2.0, 2.0), 4.0)]
    ]
    assert scores[0] == scores[3] == 1.0
    assert scores[1] < 1.0 and scores[2] < 1.0


def test_given_instances_separate_touching_objects():
    comp = competition(classes=["a"], name="mean_ap")
    truth = np.ones((1, 4, 8), np.uint8)
    objects = np.repeat([[1] * 4 + [2] * 4], 4, axis=0)
    masks = truth.astype(bool)
    assert score_case(masks, truth, comp)[0]["score"] == 1.0  # one component each
    assert score_case(masks, truth, comp, true_instances=objects)[0]["score"] == 0.0  # an IoU of exactly 0.5 each
    for instances in (objects, objects[None]):
        assert score_case(masks, truth, comp, true_instances=objects, predicted_instances=instances)[0]["score"] == 1.0


def test_instances_of_all_classes_are_restricted_to_each_class():
    comp = competition(name="mean_ap")
    truth = np.array([[[1, 1, 0, 2, 2]]], np.uint8)
    rows = score_case(one_hot(truth[0]), truth, comp, true_instances=np.array([[5, 5, 0, 9, 9]]))
    assert [row["score"] for row in rows] == [1.0, 1.0]


def test_mismatched_shapes_raise():
    for masks, truth in [((1, 4, 4), (1, 4, 4)), ((2, 4, 4), (2, 4, 4)), ((2, 4, 4), (1, 4, 5))]:
        with pytest.raises(ValueError, match="2 classes"):
            score_case(np.zeros(masks, bool), np.zeros(truth, np.uint8), competition())


@pytest.mark.parametrize("name", ["dice", "surface_dice", "uw_madison"])
def test_memory_is_at_most_10_bytes_per_voxel(name):
    """1 GB for 512 × 512 × 400 voxels is 10 bytes per voxel, for any number of classes."""
    truth = np.zeros((1, 128, 128, 96), np.uint8)
    truth[0, 8:-8, 8:-8, 8:48], truth[0, 8:-8, 8:-8, 48:-8] = 1, 2
    truth[0, :4] = 255
    masks = np.roll(one_hot(truth[0]), 3, axis=1)
    comp = competition(name=name, tolerance_mm=1.0)
    score_case(masks[:, :9, :9, :9], truth[:, :9, :9, :9], comp)  # imports
    tracemalloc.start()
    score_case(masks, truth, comp, spacing=(1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * truth.size


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_each_built_in_metric_can_be_tried(dimensions, labels):
    for name in METRICS.names():
        trial = competition(labels=labels, name=name).model_copy(update={"dimensions": dimensions})
        assert check_metric(trial) is None


@pytest.mark.parametrize("percentile", [200, "abc"])
def test_wrong_settings_are_found_before_training(percentile):
    with pytest.raises(MaskfoldError, match=r"metric hd95 failed in a trial .*: \w+Error: ") as caught:
        check_metric(competition(name="hd95", args={"percentile": percentile}))
    assert "competition.metric.args" in caught.value.hint and caught.value.status == 2


def test_the_best_distance_is_no_1():
    assert check_metric(competition(name="hd95")) is None
    assert check_metric(competition(name="hd95", both_empty=None)) is None
    assert "set competition.metric.both_empty=0" in check_metric(competition(name="hd95", both_empty=1.0))
