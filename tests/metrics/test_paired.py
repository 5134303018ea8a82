"""Paired statistics against scipy, brute force and manual calculations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.metrics.bootstrap import (
    cv_score,
    paired_difference,
    paired_difference_noise,
    paired_gain,
    prediction_interval,
    wilcoxon_p,
)
from competition.metrics.surface import hd95

DICE = MetricConfig(name="dice", both_empty=None)


def rows(values: np.ndarray, cls: str = "a") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"c{n}" for n in range(len(values))],
            "class": cls,
            "score": values,
            "dice": values,
            "hd95": 10 * values,
        }
    )


def test_wilcoxon_by_hand() -> None:
    # All six differences have the same sign: 2 of 2^6 sign patterns are as extreme.
    assert wilcoxon_p(np.arange(1.0, 7.0)) == pytest.approx(2 / 64)
    # Zeros are dropped.
    assert wilcoxon_p(np.array([0.0, 0, *range(1, 7)])) == pytest.approx(2 / 64)
    assert wilcoxon_p(np.zeros(9)) == 1.0
    assert np.isnan(wilcoxon_p(np.array([])))
    assert wilcoxon_p(np.array([0.2])) == 1.0


def test_a_difference_has_the_sign_of_b_minus_a() -> None:
    generator = np.random.default_rng(1)
    a = generator.uniform(0.5, 0.9, 60)
    b = a + generator.normal(0.02, 0.02, 60)
    b[7] = a[7]
    result = paired_difference(rows(a), rows(b), "score", DICE)
    assert result.value == pytest.approx((b - a).mean()) and result.cases == 60
    assert result.low < result.value < result.high
    half = 1.96 * (b - a).std() / 60**0.5
    assert result.high - result.low == pytest.approx(2 * half, rel=0.15)
    assert (result.better, result.worse) == (
        int((b > a).sum()),
        int((b < a).sum()),
    ) and result.better + result.worse == 59
    far = paired_difference(rows(a), rows(b), "hd95", direction=Direction.LOWER)
    assert far.value == pytest.approx(10 * result.value) and (far.better, far.worse) == (result.worse, result.better)
    same = paired_difference(rows(a), rows(a), "score", DICE)
    assert (same.value, same.low, same.high, same.p, same.better, same.worse) == (0, 0, 0, 1, 0, 0)


def test_one_class_and_all_classes() -> None:
    a = pd.concat([rows(np.array([0.2, 0.4, 0.6])), rows(np.array([0.5, np.nan, 0.5]), "b")])
    b = pd.concat([rows(np.array([0.3, 0.5, 0.7])), rows(np.array([0.5, np.nan, 0.1]), "b")])
    assert paired_difference(a, b, "dice", cls="a").value == pytest.approx(0.1)
    only = paired_difference(a, b, "dice", cls="b")
    assert only.cases == 2 and only.value == pytest.approx(-0.2)
    # Cases: +0.05, +0.1, −0.15; the mean over (case, class) pairs: (0.3 − 0.4) / 5.
    every = paired_difference(a, b, "dice")
    assert every.value == pytest.approx(-0.1 / 5) and (every.better, every.worse) == (2, 1)


def test_a_group_counts_once_in_the_test() -> None:
    a, b = rows(np.zeros(12)), rows(np.full(12, 0.1))
    groups = {f"c{n}": f"g{n // 2}" for n in range(12)}
    assert paired_difference(a, b, "score", DICE).p == pytest.approx(2 / 2**12)
    assert paired_difference(a, b, "score", DICE, groups=groups).p == pytest.approx(2 / 2**6)


@pytest.mark.parametrize("average", ["case_class", "class"])
def test_a_class_that_only_one_side_imagines_counts_on_both_sides(average: str) -> None:
    """No truth has the class b. A false positive in b must not raise the score of a side."""
    metric = MetricConfig(average=average)
    found = np.random.default_rng(0).uniform(0.6, 0.8, 60)

    def side(false_positives: int) -> pd.DataFrame:
        absent = rows(np.array([0.0] * false_positives + [1.0] * (60 - false_positives)), "b")
        absent.loc[absent["score"] == 1, "dice"] = np.nan
        return pd.concat([rows(found), absent], ignore_index=True)

    gain = paired_gain(side(9), side(0), metric)
    assert gain.value == pytest.approx(9 / 120) and 0 < gain.low < gain.value < gain.high
    back = paired_gain(side(0), side(9), metric)
    assert back.value == pytest.approx(-gain.value) and back.high < 0
    assert cv_score(side(0), metric) == pytest.approx(found.mean()), "a single score leaves the class out"
    neither = paired_gain(side(0), side(0), metric)
    assert neither == (0, 0, 0)


def test_difference_noise_equals_that_of_test_sets() -> None:
    generator = np.random.default_rng(2)
    a = generator.uniform(0.4, 0.9, 200)
    b = a + generator.normal(0.01, 0.05, 200)
    noise = paired_difference_noise(rows(a), rows(b), DICE, 30)
    assert noise == pytest.approx(1.96 * (b - a).std() / 30**0.5, rel=0.08)
    assert paired_difference_noise(rows(a), rows(b), DICE, 120) == pytest.approx(noise / 2, rel=0.12)
    assert paired_difference_noise(rows(a), rows(a), DICE, 30) == 0
    low, high = prediction_interval(rows(b), DICE, 30)
    assert noise < (high - low) / 2, "pairing cancels the difficulty of cases"
    with pytest.raises(ValueError, match="same cases"):
        paired_difference_noise(rows(a), rows(b[:50]), DICE, 30)


@pytest.mark.parametrize(("shape", "spacing"), [((24, 20), (1.0, 1.0)), ((16, 14, 10), (0.7, 1.0, 2.5))])
def test_hd95_is_monais_and_brute_force(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance

    generator = np.random.default_rng(3)
    for _ in range(6):
        mask, truth = (gaussian_filter(generator.normal(size=shape), 2) > 0.02 for _ in range(2))
        edges = [np.argwhere(array & ~binary_erosion(array)) * np.array(spacing) for array in (mask, truth)]
        apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
        expected = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
        assert hd95(mask, truth, spacing) == pytest.approx(expected, abs=1e-9)
        tensors = [torch.from_numpy(array)[None, None].float() for array in (mask, truth)]
        monai = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=list(spacing))
        assert hd95(mask, truth, spacing) == pytest.approx(
            float(monai), rel=0.02
        )  # MONAI pads the image before it computes the border


def test_hd95_of_empty_masks() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert hd95(empty, empty, (1, 1)) == 0
    assert hd95(full, empty, (1, 1)) == hd95(empty, full, (1, 1)) == 5
    assert hd95(full, full, (1, 1)) == 0
