"""Holes and distances in volumes: every pixel is scipy's."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from scipy import ndimage

from competition.postprocessing import mask_operations


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.85, 0.97, 1.0])
def test_holes_are_scipys_in_small_noisy_masks(dims: int, share: float) -> None:
    rng = np.random.default_rng(int(100 * share) + dims)
    for _ in range(150):
        mask = rng.random(rng.integers(1, 10, dims)) < share
        for laid in (mask, np.asfortranarray(mask), mask[..., ::-1]):
            kept = laid.copy()
            np.testing.assert_array_equal(mask_operations.fill_holes(laid), ndimage.binary_fill_holes(laid))
            np.testing.assert_array_equal(laid, kept)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4), (0, 0, 0)])
def test_holes_of_no_pixels(shape: tuple[int, ...]) -> None:
    assert mask_operations.fill_holes(np.zeros(shape, bool)).shape == shape


def test_a_hole_at_the_edge_of_the_box_or_of_the_volume_is_none() -> None:
    ring = np.zeros((9, 9), bool)
    ring[2:7, 2:7] = True
    ring[4, 4] = ring[2, 3] = False  # a hole, and a notch in the edge of the box
    expected = ring.copy()
    expected[4, 4] = True
    np.testing.assert_array_equal(mask_operations.fill_holes(ring), expected)
    for volume in (ring[None], np.stack([ring, ring]), np.stack([ring, np.ones_like(ring), ring])):
        np.testing.assert_array_equal(mask_operations.fill_holes(volume), volume)
    box = np.stack([np.ones_like(ring), ring, np.ones_like(ring)])
    np.testing.assert_array_equal(mask_operations.fill_holes(box), ndimage.binary_fill_holes(box))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9, 0.99])
def test_distances_in_volumes_are_scipys(share: float) -> None:
    rng = np.random.default_rng(int(100 * share))
    for _ in range(150):
        mask = rng.random(rng.integers(1, 12, 3)) < share
        mask.flat[rng.integers(mask.size)] = False
        found = mask_operations.background_distance(mask)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, ndimage.distance_transform_edt(mask).astype(np.float32))


def test_distances_far_from_the_only_background(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.ones((30, 160, 210), bool)
    mask[2, 5, 207] = False
    expected = ndimage.distance_transform_edt(mask).astype(np.float32)
    np.testing.assert_array_equal(mask_operations.background_distance(mask), expected)
    monkeypatch.setattr(mask_operations, "COLUMNS", 37)
    np.testing.assert_array_equal(mask_operations.background_distance(mask), expected)
    monkeypatch.setattr(mask_operations, "EXACT_LENGTH", 100)  # larger volumes are left to scipy
    np.testing.assert_array_equal(mask_operations.background_distance(mask), expected)


@pytest.fixture(params=[1, 2])
def opencv_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread or two: OpenCV has another implementation for one."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(request.param)
    yield
    cv2.setNumThreads(before)


def test_the_distance_in_a_plane_is_exact_with_any_number_of_threads(opencv_threads: None) -> None:
    mask = np.ones((700, 900), bool)
    mask[0, 0] = False
    y, x = np.ogrid[:700, :900]
    np.testing.assert_array_equal(
        mask_operations.background_distance(mask), np.sqrt((y * y + x * x).astype(float)).astype(np.float32)
    )


def test_the_longest_plane_whose_squares_are_exact(opencv_threads: None) -> None:
    length = mask_operations.EXACT_LENGTH
    mask = np.ones((2, length, length), bool)
    mask[0, 0, 0] = False
    y, x = np.ogrid[:length, :length]
    squares = (y * y + x * x)[None] + np.arange(2)[:, None, None]
    np.testing.assert_array_equal(
        mask_operations.background_distance(mask), np.sqrt(squares.astype(float)).astype(np.float32)
    )
