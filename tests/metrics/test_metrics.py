"""Each metric against manual calculations and against the libraries that define it."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import DiceMetric, compute_surface_dice
from scipy.ndimage import generate_binary_structure, label
from scipy.spatial.distance import directed_hausdorff

from competition.data.objects import find_covered
from competition.metrics.bootstrap import cv_score
from competition.metrics.instances import connected_components, count_object_matches, f2_iou, mean_ap, tgs_ap
from competition.metrics.overlap import count_overlap, dice, fbeta, iou
from competition.metrics.scoring import score_case
from competition.metrics.surface import hausdorff, surface_dice, uw_madison
from tests.host import competition


def strip(*runs, length=100):
    """Labels along one line: `strip((0, 10), (20, 30))` has object 1 at 0 to 9 and object 2 at 20 to 29."""
    labels = np.zeros((1, length), np.int32)
    for name, (low, high) in enumerate(runs, start=1):
        labels[0, low:high] = name
    return labels


def random_masks(shape, seed):
    """Two smooth masks that overlap in part."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    draw = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        centre = draw.uniform(0.3, 0.7, len(shape)) * shape
        radii = draw.uniform(0.15, 0.35, len(shape)) * shape
        masks.append(
            (((grid - centre.reshape(-1, *[1] * len(shape))) / radii.reshape(-1, *[1] * len(shape))) ** 2).sum(0) < 1
        )
    return masks


class TestOverlap:
    def test_by_hand(self):
        mask = np.array([[1, 1, 1, 0]], bool)
        truth = np.array([[0, 1, 1, 1]], bool)
        counts = count_overlap(mask, truth)
        assert counts == (2, 1, 1)
        assert dice(*counts) == pytest.approx(4 / 6)
        assert iou(*counts) == pytest.approx(2 / 4)
        assert fbeta(2, 1, 3, beta=2.0) == pytest.approx(10 / (10 + 12 + 1))
        assert fbeta(2, 1, 3, beta=0.5) == pytest.approx(2.5 / (2.5 + 0.75 + 1))

    def test_empty_masks_are_nan(self):
        assert np.isnan(dice(0, 0, 0)) and np.isnan(iou(0, 0, 0)) and np.isnan(fbeta(0, 0, 0, 0.5))
        assert dice(0, 3, 0) == 0 and dice(0, 0, 3) == 0

    def test_one_pixel(self):
        one = np.zeros((5, 5), bool)
        one[2, 2] = True
        assert dice(*count_overlap(one, one)) == 1.0

    def test_arrays_of_counts(self):
        np.testing.assert_array_equal(dice(np.array([1, 0]), np.array([0, 0]), np.array([2, 0])), [0.5, np.nan])

    @pytest.mark.parametrize("seed", range(3))
    def test_dice_equals_monai(self, seed):
        mask, truth = random_masks((20, 24, 18), seed)
        reference = DiceMetric()(
            torch.from_numpy(mask)[None, None].float(), torch.from_numpy(truth)[None, None].float()
        )
        assert dice(*count_overlap(mask, truth)) == pytest.approx(float(reference), abs=1e-6)


class TestInstances:
    def test_worked_example_of_the_data_science_bowl(self):
        """Objects with an IoU of 0.72 and 0.55, one false positive, one false negative."""
        truth = strip((0, 18), (30, 50), (80, 90))
        predicted = strip((0, 25), (30, 41), (60, 70))
        #   IoU 18 / 25 = 0.72 passes 0.50 to 0.70; 11 / 20 = 0.55 passes 0.50 only, since 0.55 > 0.55 is false
        tp, fp, fn = count_object_matches(predicted, truth)
        assert tp.tolist() == [2, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        assert fp.tolist() == fn.tolist() == [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
        assert mean_ap(predicted, truth) == pytest.approx((2 / 4 + 4 * 1 / 5) / 10)
        assert f2_iou(predicted, truth) == pytest.approx((10 / 15 + 4 * 5 / 15) / 10)

    def test_an_iou_on_a_threshold_does_not_pass_it(self):
        for twentieths in range(10, 20):
            tp, _, _ = count_object_matches(strip((0, twentieths)), strip((0, 20)))
            assert tp.sum() == twentieths - 10

    def test_f2_weighs_misses_more(self):
        truth = strip((0, 10), (20, 30))
        fewer, more = strip((0, 10)), strip((0, 10), (20, 30), (50, 60))
        assert f2_iou(fewer, truth) == pytest.approx(5 / (5 + 4))
        assert f2_iou(more, truth) == pytest.approx(10 / (10 + 1))

    @pytest.mark.parametrize("metric", [mean_ap, f2_iou])
    def test_empty(self, metric):
        nothing, something = strip(), strip((3, 4))
        assert np.isnan(metric(nothing, nothing))
        assert metric(nothing, something) == metric(something, nothing) == 0.0
        assert metric(something, something) == 1.0

    def test_labels_need_not_be_consecutive(self):
        truth, predicted = strip((0, 10), (20, 30)), strip((0, 10), (20, 30))
        assert mean_ap(np.where(predicted == 2, 2**31 - 1, predicted), np.where(truth == 1, 77, truth)) == 1.0

    @pytest.mark.parametrize("seed", range(4))
    def test_objects_that_overlap(self, seed):
        draw = np.random.default_rng(seed)

        def objects():
            masks = []
            for _ in range(6):
                row, column = draw.integers(0, 8, 2)
                mask = np.zeros((12, 12), bool)
                mask[row : row + draw.integers(2, 5), column : column + draw.integers(2, 5)] = True
                masks.append(mask)
            masks[3] = masks[0].copy()
            labels, hidden = np.zeros((12, 12), np.int32), []
            for number, mask in enumerate(masks, start=1):
                hidden += find_covered(labels, mask)
                labels[mask] = number
            return masks, labels, tuple(hidden)

        true_masks, truth, true_hidden = objects()
        masks, predicted, hidden = objects()
        masks[1], masks[2] = true_masks[0], true_masks[4]  # certain matches
        predicted, hidden = np.zeros((12, 12), np.int32), []
        for number, mask in enumerate(masks, start=1):
            hidden += find_covered(predicted, mask)
            predicted[mask] = number
        ious = np.array([[iou(*count_overlap(mask, true)) for true in true_masks] for mask in masks])
        tp, fp, fn = count_object_matches(predicted, truth, hidden, true_hidden)
        for place, twentieth in enumerate(range(10, 20)):
            match = ious > twentieth / 20 + 1e-12
            assert tp[place] == match.any(axis=0).sum() >= 3
            assert fp[place] == (~match.any(axis=1)).sum()
            assert fn[place] == (~match.any(axis=0)).sum()
        assert mean_ap(truth, truth, true_hidden, true_hidden) == f2_iou(truth, truth, true_hidden, true_hidden) == 1.0

    def test_touching_corners_are_one_object(self):
        diagonal = np.eye(4, dtype=bool)
        assert connected_components(diagonal).max() == 1
        assert connected_components(diagonal[..., None]).max() == 1
        assert connected_components(np.array([[1, 0, 1]], bool)).max() == 2

    def test_components_equal_scipy(self):
        """For bool arrays, cc3d 4.1 labels background or fails in about one of fifty."""
        draw = np.random.default_rng(0)
        for axes in [2, 3] * 60:
            mask = draw.random(draw.integers(1, 14, axes)) < draw.choice([0.1, 0.3, 0.6])
            for mask_view in (mask, np.asfortranarray(mask), mask[::-1]):
                labels = connected_components(mask_view)
                reference, count = label(mask_view, generate_binary_structure(axes, axes))
                np.testing.assert_array_equal(labels != 0, mask_view)
                pairs = set(zip(labels[mask_view].tolist(), reference[mask_view].tolist(), strict=True))
                assert len(pairs) == count == labels.max()

    def test_tgs_by_hand(self):
        assert tgs_ap(10, 0, 0) == 1.0
        assert tgs_ap(6, 2, 2) == pytest.approx(2 / 10)  # an IoU of exactly 0.6 passes 0.50 and 0.55
        assert tgs_ap(0, 5, 0) == tgs_ap(0, 0, 5) == 0.0
        assert np.isnan(tgs_ap(0, 0, 0))


class TestSurface:
    def test_examples_of_deepmind(self):
        """surface_distance_test.py of github.com/google-deepmind/surface-distance: cubes, and two single voxels."""
        truth, mask = np.zeros((2, 100, 100, 100), bool)
        truth[:50], mask[:51] = True, True
        assert surface_dice(mask, truth, (2, 1, 1), 1.0) == pytest.approx(0.836145008498, abs=1e-6)
        truth[:], mask[:] = False, False
        truth[50, 60, 70] = mask[50, 60, 72] = True
        assert surface_dice(mask, truth, (3, 2, 1), 1.0) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("shape", "spacing", "tolerance"),
        [
            ((30, 25, 20), (1.0, 1.0, 1.0), 1.0),
            ((20, 22, 24), (0.7, 1.3, 2.5), 2.0),
            ((16, 16, 16), (0.1, 0.1, 0.1), 0.3),
            ((20, 20, 20), (1.0, 2.0, 3.0), 0.0),
            ((60, 50), (0.5, 0.8), 1.5),
            ((40, 40), (1.0, 1.0), 4.0),
        ],
    )
    def test_equals_monai(self, shape, spacing, tolerance):
        for seed in range(3):
            mask, truth = random_masks(shape, seed)
            reference = compute_surface_dice(
                torch.from_numpy(mask)[None, None],
                torch.from_numpy(truth)[None, None],
                [tolerance],
                include_background=True,
                spacing=list(spacing),
                use_subvoxels=True,
            )
            assert surface_dice(mask, truth, spacing, tolerance) == pytest.approx(float(reference), abs=1e-5)

    def test_masks_at_the_border_of_the_image(self):
        full = np.ones((4, 5, 6), bool)
        assert surface_dice(full, full, (1, 1, 1), 0.0) == 1.0

    def test_hausdorff_equals_scipy(self):
        for shape in [(40, 40, 30), (60, 70)]:
            for seed in range(4):
                mask, truth = random_masks(shape, seed)
                truth[tuple(size // 2 for size in shape)] = False  # a hole
                points = [np.argwhere(side) for side in (mask, truth)]
                reference = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
                assert hausdorff(mask, truth) == pytest.approx(reference)

    def test_hausdorff_of_a_full_mask(self):
        """The farthest voxel is inside the prediction, not on its border."""
        full_mask = np.ones((60, 60), bool)
        frame = full_mask.copy()
        frame[1:-1, 1:-1] = False
        assert hausdorff(full_mask, frame) == 29.0

    def test_uw_madison_by_hand(self):
        truth, mask = np.zeros((2, 10, 10, 5), bool)
        truth[2, 2, 2] = truth[2, 3, 2] = True
        mask[2, 2, 2] = mask[2, 6, 2] = True  # the second is 3 away
        mask[1, 1, 4] = True  # a slice without truth: Dice 0, and too near to change the distance
        assert uw_madison(mask, truth) == pytest.approx((0.25, 2, 1 - 3 / np.sqrt(225)))
        assert uw_madison(mask, truth, "unit_cube") == pytest.approx((0.25, 2, 1 - np.sqrt(0.18 / 3)))
        assert uw_madison(truth, truth) == (1.0, 1, 1.0)
        assert uw_madison(mask[..., 2], truth[..., 2]) == pytest.approx((0.5, 1, 1 - 3 / np.sqrt(200)))

    @pytest.mark.parametrize(("coordinates", "expected"), [("voxels", 0.8117), ("unit_cube", 0.7794)])
    def test_uw_madison_of_the_hosts_page(self, tmp_path, coordinates, expected):
        """Four scans of 6 slices; the Dice of volumes, in place of the host's mean over slices, gave 0.8452."""
        draw, classes, (depth, height, width) = np.random.default_rng(21), 3, (6, 40, 56)
        rows = []
        settings = {"name": "uw_madison", "both_empty": None, "args": {"coordinates": coordinates}}
        comp = competition(
            tmp_path,
            dimensions=3,
            classes=["large_bowel", "small_bowel", "stomach"],
            labels="overlapping",
            train={"images": "{id}/{z}.png", "rle": "train.csv", "columns": {"class": "class"}},
            metric=settings,
        )
        for scan in ("case2_day1", "case2_day10", "case101_day20", "case123_day0"):
            truth, masks = np.zeros((2, classes, depth, height, width), bool)
            for number in range(classes):
                if scan == "case123_day0" and number == 2:
                    continue
                row, column = draw.integers(8, height - 8), draw.integers(8, width - 8)
                a, b = draw.integers(5, 10), draw.integers(5, 10)
                y, x = np.mgrid[:height, :width]
                low, high = sorted(draw.choice(depth, 2, replace=False))
                truth[number, low : high + 1] = ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
            for z in range(depth):
                draw.normal(3000, 300, (height, width))  # the picture
                for number in range(classes):
                    is_moved = draw.random() < 0.8
                    masks[number, z] = np.roll(truth[number, z], (1, 2), (0, 1)) if is_moved else False
            planes_last = (0, 2, 3, 1)
            scores = score_case(
                masks.transpose(planes_last), truth.transpose(planes_last).astype(np.uint8), comp, (1.0, 1.0, 1.0)
            )
            rows += [{"id": scan, "fold": 0, **score} for score in scores]
        assert cv_score(pd.DataFrame(rows), comp.metric) == pytest.approx(expected, abs=5e-5)

    def test_hausdorff_with_a_spacing_equals_scipy(self):
        for spacing in [(0.1, 1.0, 5.0), (1 / 40, 1 / 40, 1 / 30)]:
            for seed in range(3):
                mask, truth = random_masks((40, 40, 30), seed)
                points = [np.argwhere(side) * spacing for side in (mask, truth)]
                reference = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
                assert hausdorff(mask, truth, spacing) == pytest.approx(reference)

    def test_empty(self):
        nothing, something = np.zeros((2, 6, 6, 6), bool)
        something[3, 3, 3] = True
        assert np.isnan(surface_dice(nothing, nothing, (1, 1, 1), 1.0)) and np.isnan(uw_madison(nothing, nothing).rest)
        for pair in [(nothing, something), (something, nothing)]:
            assert surface_dice(*pair, (1, 1, 1), 1.0) == 0.0
            assert uw_madison(*pair) == (0.0, 1, 0.0)
        assert surface_dice(something, something, (1, 1, 1), 0.0) == uw_madison(something, something).rest == 1.0
