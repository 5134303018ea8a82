"""Bit depth, channels and normalisation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from competition.config.experiment import PreprocessingConfig
from competition.data.normalisation import Intensity, channel_statistics, convert_channels, to_uint8_or_unit_range
from competition.errors import MaskfoldError


def normalised(channel: np.ndarray, unit: float = 1.0, **prepare: object) -> np.ndarray:
    return Intensity.from_channels([channel_statistics(channel, PreprocessingConfig(**prepare), unit)]).apply(
        channel[None]
    )[0]


@pytest.fixture
def channel() -> np.ndarray:
    return np.random.default_rng(0).normal(300, 40, (6, 7, 8)).astype(np.float32)


def test_zscore(channel: np.ndarray) -> None:
    values = normalised(channel, intensity="zscore")
    assert values.dtype == np.float32
    np.testing.assert_allclose([values.mean(dtype=np.float64), values.std(dtype=np.float64)], [0, 1], atol=1e-5)


def test_percentile_clips_before_it_scales(channel: np.ndarray) -> None:
    channel[0, 0, 0] = 1e6  # an outlier that would squeeze everything else to a point
    values = normalised(channel, intensity="percentile", percentiles=[1.0, 99.0])
    lo, hi = np.percentile(channel, [1, 99])
    clipped = np.clip(channel, lo, hi).astype(np.float64)
    np.testing.assert_allclose(values, (clipped - clipped.mean()) / clipped.std(), rtol=1e-4, atol=1e-4)


def test_window() -> None:
    channel = np.array([[-1000.0, -160.0, 40.0, 240.0, 3000.0]], np.float32)
    np.testing.assert_allclose(
        normalised(channel, intensity="window", window=[40.0, 400.0]), [[0, 0, 0.5, 1, 1]], atol=1e-6
    )


def test_minmax_and_none(channel: np.ndarray) -> None:
    values = normalised(channel, intensity="minmax")
    np.testing.assert_allclose([values.min(), values.max()], [0, 1], atol=1e-6)
    np.testing.assert_array_equal(normalised(channel, intensity="none"), channel)
    picture = np.array([[0, 255]], np.uint8)
    np.testing.assert_allclose(normalised(picture, 255.0, intensity="none"), [[0, 1]])


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax", "window"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1024.0, 1e30, 255.0])
def test_constant_images_stay_finite(method: str, value: float) -> None:
    values = normalised(np.full((4, 5, 6), value, np.float32), intensity=method, window=[40.0, 400.0])
    assert np.isfinite(values).all()
    if method != "window":
        assert (values == 0).all()


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax"])
def test_values_next_to_each_other_stay_finite(method: str) -> None:
    channel = np.zeros((4, 4, 4), np.float32)
    channel[2, 2, 2] = np.float32(1e-42)  # a subnormal number
    assert np.isfinite(normalised(channel, intensity=method)).all()


def test_percentiles_that_coincide_do_not_erase_the_image() -> None:
    channel = np.zeros((10, 10, 10), np.float32)
    channel[5, 5, 5] = 9
    values = normalised(channel, intensity="percentile")
    assert values[5, 5, 5] > 10 and np.unique(values).size == 2


def test_each_channel_has_its_own_numbers_and_json_keeps_them() -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 8, 9)).astype(np.uint8)
    image[1] //= 4
    intensity = Intensity.from_channels(
        [channel_statistics(one, PreprocessingConfig(intensity="percentile"), 255.0) for one in image]
    )
    values = intensity.apply(image)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), 0, atol=1e-5)
    again = Intensity.from_dict(json.loads(json.dumps(intensity.to_dict())))
    assert again == intensity
    np.testing.assert_array_equal(again.apply(image), values)


def test_bit_depths() -> None:
    eight = np.array([[[0, 255]]], np.uint8)
    assert to_uint8_or_unit_range(eight) is eight
    sixteen = to_uint8_or_unit_range(np.array([[[0, 13107, 65535]]], np.uint16))
    assert sixteen.dtype == np.float32
    np.testing.assert_allclose(sixteen, [[[0, 0.2, 1]]], rtol=1e-6)
    np.testing.assert_array_equal(to_uint8_or_unit_range(np.array([[[False, True]]])), [[[0, 1]]])
    kept = np.array([[[0.25, 0.5]]], np.float32)
    np.testing.assert_array_equal(to_uint8_or_unit_range(kept), kept)
    np.testing.assert_allclose(to_uint8_or_unit_range(np.array([[[-1.0, 0.0, 3.0]]], np.float32)), [[[0, 0.25, 1]]])
    np.testing.assert_array_equal(to_uint8_or_unit_range(np.full((1, 2, 2), 7, np.int32)), np.zeros((1, 2, 2)))


def test_channels() -> None:
    rgba = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)
    np.testing.assert_array_equal(convert_channels(rgba, "keep", True, "a"), rgba[:3])
    np.testing.assert_array_equal(convert_channels(rgba[:2], "keep", True, "a"), rgba[:1])
    np.testing.assert_array_equal(convert_channels(rgba, "keep", False, "a"), rgba)  # four files, no alpha
    assert convert_channels(rgba[:1], "rgb", True, "a").shape == (3, 2, 2)
    white = np.full((4, 2, 2), 255, np.uint8)
    grey = convert_channels(white, "grey", True, "a")
    assert grey.shape == (1, 2, 2) and grey.dtype == np.uint8 and (grey == 255).all()
    green = np.zeros((3, 1, 1), np.float32)
    green[1] = 1
    np.testing.assert_allclose(convert_channels(green, "grey", True, "a"), 0.587)
    with pytest.raises(MaskfoldError, match=r"case a has 5"):
        convert_channels(np.zeros((5, 2, 2), np.uint8), "grey", True, "a")
