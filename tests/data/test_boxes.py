"""Crop boxes keep the content of an image and remove its dark surroundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from competition.config.experiment import PreprocessingConfig
from competition.data.geometry import content_threshold, crop_box, foreground_box, nonzero_box

FOREGROUND = PreprocessingConfig(crop="foreground")


def body(shape: tuple[int, int, int] = (60, 50, 30)) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """(*shape) bool: an ellipse through all slices, as a trunk is in a CT, and its box."""
    x, y, _ = np.ogrid[tuple(slice(0, n) for n in shape)]
    inside = np.broadcast_to(((x - 30) / 20) ** 2 + ((y - 22) / 14) ** 2 <= 1, shape)
    return inside, ((10, 51), (8, 37), (0, shape[2]))


def ct(noise: float = 20.0, padding: float | None = None) -> np.ndarray:
    """(1, X, Y, Z) int16 in Hounsfield units: air, a trunk of fat and tissue, lungs in it, a table of foam below it."""
    random = np.random.default_rng(0)
    inside, _ = body()
    values = np.where(inside, 40.0, -1000.0)
    values[20:40, 18:26] = -850  # air in the body is no surroundings
    values[5:55, 45:47] = -930
    values = values + random.normal(0, noise, values.shape)
    values = np.maximum(values, -1024)
    if padding is not None:  # beyond the round field of view
        x, y, _ = np.ogrid[:60, :50, :30]
        values = np.where((x - 30) ** 2 + (y - 25) ** 2 > 27**2, padding, values)
    return values.astype(np.int16)[None]


def wider(box: tuple[tuple[int, int], ...], by: int, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((max(0, low - by), min(n, high + by)) for (low, high), n in zip(box, shape, strict=True))


def between(inner: Any, box: Any, outer: Any) -> bool:
    """Whether a box holds one and lies in another."""
    return all(o[0] <= b[0] <= i[0] and i[1] <= b[1] <= o[1] for i, b, o in zip(inner, box, outer, strict=True))


def test_foreground_removes_the_air_of_a_ct_and_nonzero_does_not():
    image = ct()
    _, box = body()
    assert nonzero_box(image) == ((0, 60), (0, 50), (0, 30))
    window = PreprocessingConfig(crop="foreground", intensity="window", window=[40, 400])
    assert between(box, foreground_box(image, window), wider(box, 3, image.shape[1:]))  # two, and one by the means
    plain = foreground_box(image, FOREGROUND)  # without a window the foam may stay, but the air goes
    assert between(box, plain, ((2, 58), (5, 50), (0, 30)))


@pytest.mark.parametrize("padding", [-3024, -2000, -1024])
def test_scanner_padding_counts_as_surroundings(padding):
    image = ct(padding=padding)
    _, box = body()
    window = PreprocessingConfig(crop="foreground", intensity="window", window=[40, 400])
    assert between(box, foreground_box(image, window), wider(box, 3, image.shape[1:]))


def test_dim_tissue_of_an_mri_stays():
    random = np.random.default_rng(1)
    image = np.abs(random.normal(0, 8, (1, 40, 40, 40)) + 1j * random.normal(0, 8, (1, 40, 40, 40)))  # Rician noise
    image[0, 10:30, 8:33, 5:36] += 200
    image[0, 6:10, 8:33, 5:36] += 90  # a dim rim: less than half as bright
    assert foreground_box(image.astype(np.float32), FOREGROUND) == ((4, 32), (5, 36), (2, 39))


def test_the_threshold_is_that_of_bet():
    values = np.arange(101, dtype=np.float32).reshape(1, 101, 1) * 10  # percentiles are 20 and 980
    assert content_threshold(values[0], FOREGROUND) == pytest.approx(20 + 0.1 * 960)


def test_large_volumes_are_sampled_and_cropped_alike(monkeypatch):
    image = ct()
    whole = foreground_box(image, FOREGROUND)
    monkeypatch.setattr("competition.data.geometry.SAMPLE", 2000)
    assert foreground_box(image, FOREGROUND) == whole


def test_what_any_channel_shows_stays():
    image = np.zeros((2, 30, 30, 30), np.float32)
    image[0, 5:15, 5:25, 5:25], image[1, 12:22, 8:20, 9:28] = 50, 900
    assert foreground_box(image, FOREGROUND) == ((3, 24), (2, 28), (2, 30))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 6, 7, 8), np.int16),
        np.full((1, 6, 7, 8), -1024, np.int16),
        np.full((3, 6, 7), 255, np.uint8),
        np.full((1, 1, 1, 1), 3, np.float32),
    ],
)
def test_images_of_one_value_stay_whole(image: np.ndarray):
    assert foreground_box(image, FOREGROUND) == tuple((0, n) for n in image.shape[1:])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]))
def test_whatever_is_bright_is_inside(seed, dims):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 15, dims).tolist())
    image = random.choice([0, 0, 0, 200], (2, *shape)).astype(np.uint8)
    for crop in ("foreground", "nonzero", "none"):
        box: Any = tuple(slice(*ends) for ends in crop_box(image, PreprocessingConfig(crop=crop)))
        outside = image.copy()
        outside[(slice(None), *box)] = 0
        assert not outside.any() and all(one.stop > one.start for one in box)
