"""Normalise images: convert the bit depth and the channels of 2D images, and scale the intensities of each channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from competition import large_arrays
from competition.config.experiment import PreprocessingConfig
from competition.errors import MaskfoldError

ChannelStatistics = tuple[float | None, float | None, float, float]  # (lo, hi, shift, scale), see `Intensity`
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of red, green and blue, ITU-R BT.601
MIN_DIVISOR = 1e-30  # smallest scale whose inverse is still a float32
CODES = 2**16  # number of distinct values that can be counted
BLOCK = 2**20  # values that are counted at a time
COUNT_SAMPLE = 1000  # values that are examined to see whether the channel's values can be counted
BYTES = np.arange(256, dtype=np.uint8)
CAST_BLOCK = 8192  # NumPy converts this many values at a time in a sum, so it sums longer planes in such parts


def find_other_channels(channels: Mapping[str, int], dimensions: int) -> dict[str, MaskfoldError]:
    """Return an error for each case whose number of channels differs from that of most cases.

    Args:
        channels: number of channels by case id, for the cases that train one network.
        dimensions: 2 or 3, for the hint.
    """
    if len(set(channels.values())) < 2:
        return {}
    expected, _ = Counter(channels.values()).most_common(1)[0]
    example = next(case_id for case_id, count in channels.items() if count == expected)
    return {
        case_id: channels_error(case_id, count, expected, example, dimensions)
        for case_id, count in channels.items()
        if count != expected
    }


def channels_error(case_id: str, count: int, expected: int, example: str, dimensions: int) -> MaskfoldError:
    """Return the error for a case whose number of channels differs from that of the case `example`."""
    hint = "Set prepare.channels to grey or rgb, or correct the image of the case."
    if dimensions == 3:
        common = ",".join(map(str, range(min(count, expected))))
        hint = (
            "Correct the case, or skip such cases with competition.on_bad_case=skip. To use only channels that "
            f"all cases have, set for example prepare.channels=[{common}]. If the fourth axis is time, write a "
            "file for each volume."
        )
    number = f"{count} channel{'s' * (count != 1)}"
    return MaskfoldError(f"Case {case_id} has {number}, expected {expected} as in case {example}.", hint)


@dataclass(frozen=True)
class Intensity:
    """Normalise each channel: x' = (clip(x, lo, hi) - shift) * scale, without the clip if `lo` and `hi` are None.

    Attributes:
        lo: lower limit of each channel.
        hi: upper limit of each channel.
        shift: number that is subtracted from each channel.
        scale: factor of each channel.
    """

    lo: tuple[float | None, ...]
    hi: tuple[float | None, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def from_channels(cls, channels: Sequence[ChannelStatistics]) -> Intensity:
        """Build the object from one result of `channel_statistics` per channel."""
        lo, hi, shift, scale = zip(*channels, strict=True)
        return cls(lo, hi, shift, scale)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return a normalised float32 copy of an image (C, *spatial) of any dtype."""
        result = np.array(image, dtype=np.float32)
        for index, channel in enumerate(result):
            self.apply_to(channel, index)
        return result

    def apply_to(self, channel: np.ndarray, index: int) -> None:
        """Normalise channel number `index` in place; `channel` is float32 of any shape."""
        lo, hi = self.lo[index], self.hi[index]
        if lo is not None and hi is not None:
            np.clip(channel, lo, hi, out=channel)
        channel -= np.float32(self.shift[index])
        channel *= np.float32(self.scale[index])

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # `asdict` copies each number

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Intensity:
        """Build the object from the result of `to_dict`."""
        return cls(**{name: tuple(value) for name, value in values.items()})


def channel_statistics(channel: np.ndarray, prepare: PreprocessingConfig, unit: float = 1.0) -> ChannelStatistics:
    """Compute (lo, hi, shift, scale) of one channel for `prepare.intensity` from all its voxels.

    `zscore` gives mean 0 and standard deviation 1. `percentile` clips to `prepare.percentiles`, then applies `zscore`.
    `window` clips to level ± width / 2, then scales to [0, 1]. `minmax` scales to [0, 1]. `none` divides by `unit`.
    `zscore`, `percentile` and `minmax` map a constant channel to 0. A window has the units of the channel: 0 to 255 for
    8-bit 2D images, 0 to 1 for other 2D images.

    Args:
        channel: (*spatial), finite; uint8 or float32.
        prepare: section `prepare` of the experiment.
        unit: the value that `none` maps to 1: 255 for 8-bit 2D images, so that images of all bit depths end in [0, 1].
    """
    if prepare.intensity == "none":
        return None, None, 0.0, 1.0 / unit
    if prepare.intensity == "window":
        level, width = prepare.window or [0.5, 1.0]
        return level - width / 2, level + width / 2, level - width / 2, 1.0 / width
    lowest, highest = float(channel.min()), float(channel.max())
    if lowest == highest:
        return None, None, lowest, 1.0
    if prepare.intensity == "minmax":
        return None, None, lowest, 1.0 / max(highest - lowest, MIN_DIVISOR)
    if prepare.intensity == "percentile":
        lo, hi = percentiles(channel, prepare.percentiles)
        if lo < hi:  # if both are equal, nearly all voxels are equal, and clipping would make the channel constant
            mean, deviation = _moments(channel, lo, hi)
            return lo, hi, mean, 1.0 / max(deviation, MIN_DIVISOR)
    mean, deviation = _moments(channel, lowest, highest, clips=False)
    return None, None, mean, 1.0 / max(deviation, MIN_DIVISOR)


def to_uint8_or_unit_range(array: np.ndarray) -> np.ndarray:
    """Convert the values of a 2D image (C, H, W) to float32 in [0, 1]; return uint8 unchanged.

    uint16 is divided by 65535. Values of other types stay unchanged if they are all in [0, 1]. Otherwise the image's
    lowest and highest value become 0 and 1.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.divide(array, np.float32(65535), out=large_arrays.empty(array.shape, np.float32))
    values = large_arrays.copy(array, np.float32)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0 or highest > 1:
        values -= lowest
        values /= highest - lowest if highest > lowest else 1.0
    return values


def select_channels(array: np.ndarray, numbers: Sequence[int], case: str) -> np.ndarray:
    """Return the channels `numbers` (from 0) of an image (C, *spatial), in that order; keep the dtype.

    Raises:
        MaskfoldError: the image has no channel with one of these numbers.
    """
    if (highest := max(numbers)) >= len(array):
        raise MaskfoldError(
            f"`prepare.channels`: found channel {highest}, expected 0 to {len(array) - 1}, because case {case} "
            f"has {len(array)} channel{'s' * (len(array) > 1)}.",
            "Correct `prepare.channels`; the first channel has the number 0.",
        )
    return array[list(numbers)]


def may_have_alpha(images: str | dict[str, str]) -> bool:
    """Return whether the last channel of an image may be transparency.

    This is possible only if one file contains all channels.

    Args:
        images: the value of `train.images` in the competition's YAML.
    """
    return isinstance(images, str) and "{c}" not in images


def convert_channels(array: np.ndarray, channels: str | Sequence[int], alpha: bool, case: str) -> np.ndarray:
    """Select or convert the channels of a 2D image (C, H, W) by `channels`, the value of `prepare.channels`.

    The dtype is kept.

    A list of numbers selects any channels of the file: an image with 4 measured channels in one file needs
    `[0, 1, 2, 3]`. Otherwise, if `alpha` is true and the file has 2 or 4 channels, the last channel is transparency and
    is dropped first. Then `keep` returns all other channels, `grey` weighs red, green and blue as in ITU-R BT.601, and
    `rgb` repeats a grey channel.

    Raises:
        MaskfoldError: the image has neither 1 nor 3 channels for grey or rgb, or no channel with one of the numbers.
    """
    if not isinstance(channels, str):
        return select_channels(array, channels, case)
    if alpha and len(array) in (2, 4):
        array = array[:-1]
    if channels == "keep" or (channels, len(array)) in (("grey", 1), ("rgb", 3)):
        return array
    if len(array) not in (1, 3):
        raise MaskfoldError(
            f"`prepare.channels: {channels}` requires images with 1 or 3 channels, but case {case} has {len(array)}.",
            "Set `prepare.channels: keep`.",
        )
    if channels == "rgb":
        return np.repeat(array, 3, axis=0)
    grey = np.tensordot(np.array(GREY_WEIGHTS, np.float32), array.astype(np.float32), axes=1)[None]
    return np.rint(grey).astype(np.uint8) if array.dtype == np.uint8 else grey


def percentiles(channel: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Compute percentiles with the exact result of `np.percentile`, but faster.

    To save time, values are counted instead of sorted. This is possible if they are uint8, or float32 values made from
    16-bit data: multiples of 1/65535 from 0 to 1, or whole numbers within a range of 65,536.

    Args:
        channel: (*spatial), finite, with at least one value; uint8 or float32.
        shares: the percentiles to compute, from 0 to 100.
    """
    counted = _count_values(channel)
    if counted is None:
        return [float(value) for value in np.percentile(channel, list(shares))]
    counts, values = counted
    ends, last = counts.cumsum(), channel.size - 1
    position = last * np.true_divide(list(shares), 100)
    low = np.minimum(np.floor(position).astype(np.int64), last)
    below, above = (values[np.searchsorted(ends, rank, side="right")] for rank in (low, np.minimum(low + 1, last)))
    if channel.dtype.kind == "f" and (below == 0).any() and np.signbit(channel[channel == 0]).any():
        return [float(value) for value in np.percentile(channel, list(shares))]  # counting merges -0.0 and 0.0
    weight, difference = position - low, above - below
    # Interpolate as NumPy does: from the nearer of the two values.
    return np.where(weight >= 0.5, above - difference * (1 - weight), below + difference * weight).tolist()


def _count_values(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return how often each of up to 65,536 possible values occurs, and these values in ascending order.

    Return None if the channel has other values, which must be sorted instead.
    """
    if channel.dtype == np.uint8:
        counts = _count_blocks(channel, lambda block: block, 256)
        return None if counts is None else (counts, np.arange(256, dtype=np.uint8))
    if channel.dtype != np.float32:
        return None
    lowest, highest = float(channel.min()), float(channel.max())
    unit, offset = np.float32(1), lowest
    if lowest >= 0 and highest <= 1:
        unit, offset = np.float32(CODES - 1), 0.0
    elif highest - lowest > CODES - 1 or not lowest.is_integer() or abs(lowest) + CODES > 2**24:
        return None
    values = (np.arange(CODES, dtype=np.float64) + offset).astype(np.float32) / unit

    def codes(block: np.ndarray) -> np.ndarray | None:
        numbers = np.rint(block * unit).astype(np.int32)
        numbers -= int(offset)
        return numbers if (values[numbers] == block).all() else None

    if codes(channel.reshape(-1)[:COUNT_SAMPLE]) is None:  # a fast test before the work on the whole channel
        return None
    counts = _count_blocks(channel, codes, CODES)
    return None if counts is None else (counts, values)


def _count_blocks(
    channel: np.ndarray, codes: Callable[[np.ndarray], np.ndarray | None], length: int
) -> np.ndarray | None:
    """Count the codes of an array's values block by block, because `np.bincount` copies its input to int64.

    Args:
        channel: array of any shape.
        codes: function that returns the codes (integers below `length`) of a block; None if a value has no code.
        length: number of possible codes.

    Returns:
        (length,) int64; None if a value has no code.
    """
    counts, flat = np.zeros(length, np.int64), channel.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = codes(flat[start : start + BLOCK])
        if block is None:
            return None
        counts += np.bincount(block, minlength=length)
    return counts


def _moments(channel: np.ndarray, lo: float, hi: float, clips: bool = True) -> tuple[float, float]:
    """Return mean and standard deviation of a channel whose values are clipped to [lo, hi].

    The sums are computed in float64, plane by plane.

    Args:
        channel: (*spatial) uint8 or float32.
        lo: lower bound.
        hi: upper bound.
        clips: whether the channel has values outside the bounds.
    """
    total, squares = 0.0, 0.0
    width = channel[:1].size
    if width <= CAST_BLOCK and channel.flags.c_contiguous:
        return _moments_of_rows(channel.reshape(len(channel), width), lo, hi, clips)
    for plane in channel:
        total += float(np.clip(plane, lo, hi).sum(dtype=np.float64))
    mean = total / channel.size
    for plane in channel:
        squares += float(np.square(np.clip(plane, lo, hi).astype(np.float64) - mean).sum())
    return mean, float(np.sqrt(squares / channel.size))


def _moments_of_rows(rows: np.ndarray, lo: float, hi: float, clips: bool) -> tuple[float, float]:
    """Compute the exact result of `_moments` with fewer calls of NumPy; each plane of the channel is a row of `rows`.

    Values are added in the same order as in `_moments`: first within each row, then row by row. For 8-bit values,
    tables of 256 results replace the computation.
    """
    is_8_bit = rows.dtype == np.uint8
    values = BYTES if is_8_bit else rows
    values = np.clip(values, lo, hi).astype(np.float64) if clips else values.astype(np.float64)
    if is_8_bit and not clips:
        mean = int(rows.sum()) / rows.size  # a sum of whole numbers is exact in any order
    else:
        mean = _sum_of_rows(values.take(rows) if is_8_bit else values) / rows.size
    values -= mean
    np.square(values, out=values)
    return mean, float(np.sqrt(_sum_of_rows(values.take(rows) if is_8_bit else values) / rows.size))


def _sum_of_rows(values: np.ndarray) -> float:
    """Return the sum of all values: each row is summed first, and the results are added one by one."""
    total = 0.0
    for value in np.add.reduce(values, axis=1).tolist():
        total += value
    return total
