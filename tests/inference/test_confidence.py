"""Confidence and pseudo-label masks, computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from competition.config.experiment import ConfidenceConfig
from competition.inference.confidence import foreground_entropy, pseudo_mask, self_dice

ONE = SimpleNamespace(labels="exclusive", classes=["a"], instances=False, output_channels=2)
TWO = SimpleNamespace(labels="exclusive", classes=["a", "b"], instances=False, output_channels=3)
OVER = SimpleNamespace(labels="overlapping", classes=["a", "b"], instances=False, output_channels=2)


def voxels(*columns: tuple[float, ...]) -> np.ndarray:
    """Return (P, 1, n) from one column per voxel."""
    return np.array(columns, np.float32).T[:, None]


def test_exclusive_voxels_between_the_bounds_are_ignored():
    p = voxels((0.9, 0.1), (0.3, 0.7), (0.31, 0.69), (0.5, 0.5), (0.7, 0.3), (0.69, 0.31))
    assert pseudo_mask(p, ONE, ConfidenceConfig(lower=0.3125, upper=0.6875)).tolist() == [[[0, 1, 1, 255, 0, 0]]]
    p = voxels((0.65, 0.35, 0.0), (0.65, 0.2, 0.15), (0.1, 0.25, 0.65), (0.34, 0.33, 0.33))
    assert pseudo_mask(p, TWO, ConfidenceConfig(lower=0.25, upper=0.625)).tolist() == [[[255, 0, 2, 255]]]


def test_overlapping_classes_are_uncertain_independently():
    p = voxels((0.9, 0.5), (0.25, 0.75), (0.26, 0.1))
    assert pseudo_mask(p, OVER, ConfidenceConfig(lower=0.25, upper=0.75)).tolist() == [[[1, 0, 255]], [[255, 1, 0]]]


def test_self_dice():
    p = voxels((0.2, 0.8, 0.0), (0.4, 0.6, 0.0), (0.1, 0.0, 0.9), (0.9, 0.1, 0.0))
    a = 2 * (0.8 + 0.6) / ((0.8 + 0.6 + 0.0 + 0.1) + 2)
    b = 2 * 0.9 / (0.9 + 1)
    assert self_dice(p, TWO) == pytest.approx((a + b) / 2, abs=1e-6)
    empty = voxels((0.9, 0.1, 0.0), (0.6, 0.4, 0.0))
    assert self_dice(empty, TWO) == pytest.approx(0.6, abs=1e-6)  # 1 - 0.4
    assert self_dice(voxels((0.8, 0.1), (0.6, 0.2)), OVER) == pytest.approx(2 * 1.4 / (1.4 + 2), abs=1e-6)


def test_foreground_entropy():
    p = voxels((0.25, 0.75), (0.5 - 1e-3, 0.5 + 1e-3), (0.9, 0.1))
    bits = lambda q: -q * np.log2(q) - (1 - q) * np.log2(1 - q)  # noqa: E731
    assert foreground_entropy(p, ONE) == pytest.approx((bits(0.75) + bits(0.501)) / 2, abs=1e-5)
    assert foreground_entropy(voxels((1.0, 0.0), (0.0, 1.0)), ONE) == 0
    third = voxels((0.2, 0.4, 0.4))
    assert foreground_entropy(third, TWO) == pytest.approx(
        -(0.2 * np.log(0.2) + 0.8 * np.log(0.4)) / np.log(3), abs=1e-5
    )
    assert foreground_entropy(voxels((0.75, 0.4)), OVER) == pytest.approx(bits(0.75), abs=1e-5)
