"""Objects, sizes and medians against manual calculations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import label

from competition.data.masks import load_instances, load_mask
from competition.data.objects import find_covered
from competition.report.results import RunResults
from competition.report.scores import case_size_errors, group_quartiles, match_objects, object_size_errors, size_unit
from competition.runs.oof import OofPredictions
from competition.viz.style import format_tick, set_log_axis


def reference_match(predicted, truth):
    def iou(pred, true):
        return np.logical_and(pred, true).sum() / np.logical_or(pred, true).sum()

    pred_objects = [predicted == number for number in np.unique(predicted[predicted != 0])]
    true_objects = [truth == number for number in np.unique(truth[truth != 0])]
    return (
        [true.sum() for true in true_objects],
        [max([iou(pred, true) for pred in pred_objects], default=0.0) for true in true_objects],
        [max([iou(pred, true) for true in true_objects], default=0.0) for pred in pred_objects],
    )


@pytest.mark.parametrize("shape", [(14, 17), (6, 7, 8)])
def test_best_iou_of_every_object(shape):
    generator = np.random.default_rng(sum(shape))
    for _ in range(10):
        truth, predicted = (label(generator.random(shape) < share)[0] * 7 for share in (0.35, 0.3))
        found = match_objects(predicted, truth)
        sizes, ious, own = reference_match(predicted, truth)
        assert found.sizes.tolist() == sizes
        np.testing.assert_allclose(found.ious, ious)
        np.testing.assert_allclose(found.predicted, own)


def test_match_without_true_or_predicted_objects():
    none, one = np.zeros((4, 4), int), np.eye(4, dtype=int)
    assert match_objects(none, one).ious.tolist() == [0.0] and match_objects(none, one).predicted.size == 0
    assert match_objects(one, none).sizes.size == 0 and match_objects(one, none).predicted.tolist() == [0.0]
    assert match_objects(none, none).sizes.size == 0 == match_objects(none, none).predicted.size
    assert match_objects(one, np.ones((4, 4), int)).ious.tolist() == [0.25]


def test_match_of_objects_that_overlap():
    """The first object has 8 pixels, of which the second covers 4; the prediction is the first."""
    first, second = np.zeros((2, 4, 6), bool)
    first[:2, :4], second[:4, 2:4] = True, True
    labels = first * 1
    hidden = tuple(find_covered(labels, second))
    labels[second] = 2
    found = match_objects(first * 5, labels, hidden)
    assert found.sizes.tolist() == [8, 8] and found.ious.tolist() == [1.0, 4 / 12] and found.predicted.tolist() == [1.0]


def test_sizes_of_cases_are_in_cubic_millimetres(made, tiny):
    run = made(tiny(3), noise=0.5)
    found = case_size_errors(RunResults.load(run))
    import json

    for index, one in enumerate(found):
        expected = []
        for row in run.cases.itertuples(index=False):
            voxels = int((load_mask(run.exp.competition, row)[0] == index + 1).sum())
            expected += [voxels * float(np.prod(json.loads(row.spacing)))] if voxels else []
        assert any(size != round(size) for size in expected)  # the demo's voxels are no cubes of 1 mm
        np.testing.assert_allclose(sorted(one.sizes), sorted(expected))
        assert len(one.values) == len(expected) and (one.values > 0.2).all()


@pytest.mark.parametrize(
    ("dimensions", "images", "spacings", "unit"),
    [
        (2, "{id}.png", [[1.0, 1.0]], "pixels"),
        (3, "{id}.nii.gz", [[1.0, 1.0, 1.0]], "mm³"),
        (3, "{id}/{z}.png", [[1.0, 1.0, 1.0]], "voxels"),
        (3, "{id}/{z}.png", [[0.5, 0.5, 2.0]], "mm³"),  # the competition's YAML sets `spacing`
    ],
)
def test_unit_of_sizes(dimensions, images, spacings, unit):
    comp = SimpleNamespace(dimensions=dimensions, train=SimpleNamespace(images=images))
    assert size_unit(comp, spacings) == unit


def test_sizes_and_ious_of_all_objects_of_a_run(made, nuclei):
    """Touching discs are predicted as one object, so some true objects are half of a predicted one."""
    exp = nuclei()

    def predict(truth, row, rng):
        inside = (truth[0] == 1).astype(np.float16)
        return np.stack([1 - inside, inside, 0 * inside])

    run = made(exp, predict=predict)
    oof = OofPredictions(run)
    found = object_size_errors(oof, list(oof.fold_of))[0]
    sizes, ious, predicted = [], [], []
    for row in oof.cases.itertuples(index=False):
        truth = load_instances(exp.competition, row)
        one = reference_match(label(load_mask(exp.competition, row)[0] == 1, np.ones((3, 3)))[0], truth)
        sizes, ious, predicted = sizes + one[0], ious + one[1], predicted + one[2]
    assert len(sizes) == 32 and len(predicted) < 32 and min(ious) < 0.6  # four discs in each of eight pictures
    np.testing.assert_allclose(sorted(found.sizes), sorted(sizes))
    np.testing.assert_allclose(sorted(found.values), sorted(ious))
    np.testing.assert_allclose(sorted(found.predicted), sorted(predicted))


def test_quartiles_of_groups_of_equal_size():
    sizes = np.array([1.0, 100, 1, 100, 1, 100, 1, 100, 1, 100])
    values = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.5])
    middle, low, median, high = group_quartiles(sizes, values)
    np.testing.assert_allclose(middle, [1, 100])
    np.testing.assert_allclose(median, [0.3, 0.7])
    np.testing.assert_allclose(low, [0.2, 0.6])
    np.testing.assert_allclose(high, [0.4, 0.8])
    assert group_quartiles(sizes[:9], values[:9])[0].size == 0


@pytest.mark.parametrize(("low", "high"), [(993, 2169), (21, 5227), (1.0, 1.01), (1e-9, 2e-3), (0.3, 1e6), (5, 5.5)])
def test_ticks_of_a_log_axis_are_few_and_inside(low, high):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    set_log_axis(axes.xaxis, low, high)
    ticks = axes.xaxis.get_major_locator()()
    assert 3 <= len(ticks) <= 9 and min(ticks) >= low and max(ticks) <= high and axes.get_xscale() == "log"
    assert len({format_tick(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(1500, "1,500"), (0.002, "0.002"), (1e-7, "1e-7"), (2.5e8, "2.5e8"), (1, "1")]
)
def test_format_of_ticks(value, text):
    assert format_tick(value) == text
