"""Constant-mask baseline against manual calculations."""

from __future__ import annotations

import numpy as np
import pytest

from competition.metrics.constant_mask import CoarseTruth, constant_mask_dice


def coarse(*masks: np.ndarray) -> list[CoarseTruth]:
    return [CoarseTruth.from_masks(mask[None], np.ones(mask.shape, bool)) for mask in masks]


def test_a_mask_of_all_pixels_is_the_only_one_for_a_single_case():
    mask = np.zeros((128, 128), bool)
    mask[:, :32] = True
    assert constant_mask_dice(coarse(mask)) == pytest.approx(2 * 0.25 / 1.25)


def test_the_same_place_in_cases_of_other_shapes():
    masks = []
    for shape in ((128, 64), (256, 192), (300, 130)):
        mask = np.zeros(shape, bool)
        mask[: shape[0] // 2] = True
        masks.append(mask)
    assert constant_mask_dice(coarse(*masks)) == pytest.approx(1.0, abs=0.02)


def test_a_case_is_not_predicted_by_itself():
    masks = np.zeros((3, 64, 64), bool)
    for index, mask in enumerate(masks):
        mask[20 * index : 20 * index + 10] = True  # nowhere the same
    everywhere = 2 * 640 / (640 + 4096)
    assert constant_mask_dice(coarse(*masks))[:, 0] == pytest.approx([everywhere] * 3)


def test_a_class_that_a_case_lacks_and_ignored_pixels_do_not_count():
    mask = np.zeros((2, 64, 64), bool)
    mask[0, :16] = True
    valid = np.ones((64, 64), bool)
    valid[32:] = False
    dice = constant_mask_dice([CoarseTruth.from_masks(mask, valid)])
    assert dice[0, 0] == pytest.approx(2 * 16 / (16 + 32)) and np.isnan(dice[0, 1])


def test_small_volumes_are_spread_over_the_grid():
    volume = np.zeros((6, 30, 50), bool)
    volume[:, :15] = True
    assert constant_mask_dice(coarse(volume, volume)) == pytest.approx(1.0, abs=0.04)
