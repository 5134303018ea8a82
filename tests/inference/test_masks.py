"""Probabilities to masks."""

from __future__ import annotations

import numpy as np
import pytest

from competition.inference.masks import to_masks
from tests.inference.networks import experiment


def test_exclusive_classes_take_the_most_probable() -> None:
    comp = experiment().competition
    values = np.random.default_rng(0).random((3, 6, 7, 8)).astype(np.float16)
    masks = to_masks(values, comp)
    assert masks.dtype == bool and masks.shape == (2, 6, 7, 8)
    best = values.argmax(0)
    np.testing.assert_array_equal(masks, np.stack([best == 1, best == 2]))
    assert masks.sum(0).max() == 1


def test_ties_go_to_the_background_and_then_to_the_first_class() -> None:
    comp = experiment().competition
    values = np.array([[0.5, 0.2], [0.5, 0.4], [0.0, 0.4]], np.float16)[:, None]
    np.testing.assert_array_equal(to_masks(values, comp), [[[False, True]], [[False, False]]])


def test_overlapping_classes_have_a_threshold_each() -> None:
    comp = experiment(comp={"labels": "overlapping"}).competition
    values = np.array([[0.2, 0.5, 0.6], [0.2, 0.5, 0.6]], np.float16)[:, None]
    np.testing.assert_array_equal(to_masks(values, comp)[:, 0], [[False, False, True]] * 2)
    np.testing.assert_array_equal(to_masks(values, comp, [0.1, 0.55])[:, 0], [[True] * 3, [False, False, True]])


def test_a_wrong_number_of_channels() -> None:
    with pytest.raises(ValueError, match="found 2, expected 3"):
        to_masks(np.zeros((2, 4, 4), np.float16), experiment().competition)
