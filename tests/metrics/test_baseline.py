"""Threshold baseline against manual calculations, and its scores on the demo."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from competition.config.competition import Competition
from competition.datasets import demo_images
from competition.metrics.baseline import _otsu, score_threshold_baseline


def comp(classes: int = 1, **more: object) -> Competition:
    return Competition(
        name="x",
        root=Path("x"),
        dimensions=2,
        classes=[f"c{n}" for n in range(classes)],
        train={"images": "a/{id}.png", "masks": "b/{id}.png"},
        **more,
    )


def scores(cases: list, competition: Competition) -> tuple[float, float, list[str]]:
    result = score_threshold_baseline(iter(cases), competition)
    (first, second), names = result.values(), list(result)
    return first, second, names


@pytest.mark.parametrize(("values", "polarity"), [([10, 10, 10, 200], "bright"), ([90, 90, 90, 5], "dark")])
def test_a_separating_threshold_scores_one(values, polarity):
    image = np.array(values, np.uint8).reshape(1, 2, 2)
    mask = np.array([[[0, 0], [0, 1]]], np.uint8)
    first, second, names = scores([(image, mask)], comp())
    assert first == second == 1.0
    assert all(polarity in name for name in names) and "foreground Dice" in names[1]


def test_one_global_threshold_for_all_cases():
    """No global threshold separates both images: 50 gives 1 and 2/5, 150 gives 0 and 1/2; Otsu gives 1 and 1/2."""
    mask = np.array([[[0, 0, 0, 1]]], np.uint8)
    cases = [(np.array([[[10, 10, 10, 50]]], float), mask), (np.array([[[110, 150, 150, 150]]], float), mask)]
    first, second, names = scores(cases, comp())
    assert first == second == pytest.approx((1 + 1 / 2) / 2)
    assert "Otsu, bright" in names[0]


def test_the_global_threshold_beats_otsu():
    """Values 0 (many), 100 (some) and 110 (truth): Otsu splits at 0 | 100."""
    image = np.array([[[0] * 10 + [100] * 6 + [110] * 2]], np.uint8)
    mask = np.array([[[0] * 16 + [1] * 2]], np.uint8)
    first, _, names = scores([(image, mask)], comp())
    assert first == 1.0 and "global threshold, bright" in names[0]


def test_each_present_class_is_predicted_as_the_whole_foreground():
    """Both classes bright: each Dice is 2·1/(2+1); the third class is absent and scores `both_empty`."""
    image = np.array([[[0, 0, 200, 200]]], np.uint8)
    mask = np.array([[[0, 0, 1, 2]]], np.uint8)
    first, second, _ = scores([(image, mask)], comp(3))
    assert first == pytest.approx((2 / 3 + 2 / 3 + 1) / 3) and second == 1.0
    without_absent, _, _ = scores([(image, mask)], comp(3, metric={"both_empty": None}))
    assert without_absent == pytest.approx(2 / 3)


def test_foreground_dice_counts_empty_images():
    """Only a threshold above all values is correct for the empty image, and it misses the other."""
    filled = (np.array([[[5, 9]]], np.uint8), np.array([[[0, 1]]], np.uint8))
    empty = (np.array([[[5, 9]]], np.uint8), np.array([[[0, 0]]], np.uint8))
    first, second, _ = scores([filled, empty], comp())
    assert first == 1.0 and second == 0.5


def test_ignored_pixels_are_not_counted():
    image = np.array([[[0, 0, 200, 200]]], np.uint8)
    mask = np.array([[[0, 0, 1, 255]]], np.uint8)
    assert scores([(image, mask)], comp(ignore=255))[:2] == (1.0, 1.0)
    assert scores([(image, np.where(mask == 255, 0, mask))], comp())[0] < 1.0


def test_overlapping_classes_and_several_channels():
    noise = np.array([[3, 3, 3, 3]], float)
    image = np.stack([noise, [[0.1, 0.1, 0.9, 0.9]]])
    mask = np.array([[[0, 0, 1, 1]], [[0, 0, 1, 0]]], np.uint8)
    first, second, names = scores([(image, mask)], comp(2, labels="overlapping"))
    assert first == pytest.approx((1 + 2 / 3) / 2) and second == 1.0
    assert all("channel 1" in name for name in names)


def test_constant_images_and_no_cases():
    flat = (np.full((1, 3, 3), 7, np.uint8), np.zeros((1, 3, 3), np.uint8))
    assert scores([flat], comp())[:2] == (1.0, 1.0)
    assert score_threshold_baseline([], comp()) == {}


def test_many_values_are_reduced_to_quantiles():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 64, 64))
    mask = (image > 1.0).astype(np.uint8)
    assert scores([(image, mask)], comp())[0] > 0.98


@pytest.mark.parametrize("seed", [0, 1])
def test_no_threshold_reaches_a_dice_of_one_half_on_the_2d_demo(seed):
    cases = []
    for index in range(72):
        image, labels = demo_images.draw_image(
            np.random.default_rng([seed, 2, index]), demo_images.KINDS[index % len(demo_images.KINDS)]
        )
        cases.append((image[None], labels[None]))
    first, second, _ = scores(cases, comp(2))
    assert 0.1 < first < 0.45 and 0.1 < second < 0.45


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_otsus_threshold_is_that_of_scikit_image(dtype: str) -> None:
    draw = np.random.default_rng(7)
    for _ in range(20):
        values = np.concatenate([draw.normal(40, 12, 300), draw.normal(draw.uniform(50, 200), 9, 200)]).clip(0, 255)
        values = (values - 100 * (dtype == "int16")).astype(dtype)
        assert _otsu(values).tolist() == [float(threshold_otsu(values))]


def test_a_wide_range_of_whole_numbers_needs_little_memory() -> None:
    values = np.array([-(2**31), *[1000] * 9, *[2000] * 10], np.int32)
    tracemalloc.start()
    [threshold] = _otsu(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert -(2**31) <= threshold < 1000 and peak < 2**24
