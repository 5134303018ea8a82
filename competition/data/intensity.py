"""Values of images: bit depth and channels of pictures, and the normalisation of every channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.config.experiment import Prepare

Channel = tuple[float | None, float | None, float, float]  # lo, hi, shift, scale
GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue, ITU-R BT.601
LEAST = 1e-30  # of a divisor: its inverse is still a float32


@dataclass(frozen=True)
class Intensity:
    """Normalisation of each channel: x' = (clip(x, lo, hi) - shift) * scale, unclipped where `lo` and `hi` are None."""

    lo: tuple[float | None, ...]
    hi: tuple[float | None, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, channels: Sequence[Channel]) -> Intensity:
        """From one `measure` per channel."""
        lo, hi, shift, scale = zip(*channels, strict=True)
        return cls(lo, hi, shift, scale)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The normalised copy, float32, of an image (C, *spatial) of any dtype."""
        result = np.array(image, dtype=np.float32)
        for index, channel in enumerate(result):
            self.apply_to(channel, index)
        return result

    def apply_to(self, channel: np.ndarray, index: int) -> None:
        """Normalises channel number `index`, float32 of any shape, in place."""
        lo, hi = self.lo[index], self.hi[index]
        if lo is not None and hi is not None:
            np.clip(channel, lo, hi, out=channel)
        channel -= np.float32(self.shift[index])
        channel *= np.float32(self.scale[index])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Intensity:
        """The inverse of `to_dict`."""
        return cls(**{name: tuple(value) for name, value in values.items()})


def measure(channel: np.ndarray, prepare: Prepare, unit: float = 1.0) -> Channel:
    """(lo, hi, shift, scale) of one channel for `prepare.intensity`; all voxels count.

    zscore: mean 0, standard deviation 1. percentile: clipped to `prepare.percentiles`, then the same. window: clipped
    to level ± width / 2, then [0, 1]. minmax: [0, 1]. none: divided by `unit`. zscore, percentile and minmax make 0 of
    a channel of one value. A window is in the channel's own units: 0 to 255 for pictures of 8 bits, 0 to 1 for others.

    Args:
        channel: (*spatial), finite; uint8 or float32.
        prepare: the experiment's section.
        unit: the value that `none` takes to 1: 255 for pictures of 8 bits, so that all bit depths end in [0, 1].
    """
    if prepare.intensity == "none":
        return None, None, 0.0, 1.0 / unit
    if prepare.intensity == "window":
        level, width = prepare.window or [0.5, 1.0]
        return level - width / 2, level + width / 2, level - width / 2, 1.0 / width
    least, most = float(channel.min()), float(channel.max())
    if least == most:
        return None, None, least, 1.0
    if prepare.intensity == "minmax":
        return None, None, least, 1.0 / max(most - least, LEAST)
    if prepare.intensity == "percentile":
        lo, hi = (float(value) for value in np.percentile(channel, prepare.percentiles))
        if lo < hi:  # else nearly all voxels are equal, and clipping would leave nothing
            mean, deviation = _moments(channel, lo, hi)
            return lo, hi, mean, 1.0 / max(deviation, LEAST)
    mean, deviation = _moments(channel, least, most)
    return None, None, mean, 1.0 / max(deviation, LEAST)


def picture_values(array: np.ndarray) -> np.ndarray:
    """Values of a picture (C, H, W): uint8 stays; all else becomes float32 in [0, 1].

    uint16 is divided by 65535, bool by 1. Other integers and floats stay as they are if they lie in [0, 1], else the
    picture's least and largest value become 0 and 1.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return array.astype(np.float32) / np.float32(65535)
    values = array.astype(np.float32)
    least, most = float(values.min()), float(values.max())
    if least < 0 or most > 1:
        values = (values - least) / (most - least) if most > least else np.zeros_like(values)
    return values


def chosen_channels(array: np.ndarray, numbers: Sequence[int], case: str) -> np.ndarray:
    """The channels of an image (C, *spatial) by their numbers from 0, in that order, dtype kept.

    Raises:
        MaskfoldError: there is no such channel.
    """
    if (most := max(numbers)) >= len(array):
        raise MaskfoldError(f"Case {case} has {len(array)} channel{'s' * (len(array) > 1)}, and `prepare.channels` asks for "
                            f"number {most}.", f"Channels are numbered from 0: here 0 to {len(array) - 1}.")
    return array[list(numbers)]


def picture_channels(array: np.ndarray, wanted: str | Sequence[int], alpha: bool, case: str) -> np.ndarray:
    """Channels of a picture (C, H, W), dtype kept, as `prepare.channels` wants them.

    keep drops the alpha channel: the last of 2 or 4 channels, where they come from one file (`alpha`). grey weighs red,
    green and blue as ITU-R BT.601 does; rgb repeats a grey channel. A list of numbers takes those of the file's own
    channels, the fourth too: so a picture of 4 measured channels in one file is `[0, 1, 2, 3]`.

    Raises:
        MaskfoldError: grey or rgb of neither 1 nor 3 channels; or a number that no channel has.
    """
    if not isinstance(wanted, str):
        return chosen_channels(array, wanted, case)
    if alpha and len(array) in (2, 4):
        array = array[:-1]
    if wanted == "keep" or (wanted, len(array)) in (("grey", 1), ("rgb", 3)):
        return array
    if len(array) not in (1, 3):
        raise MaskfoldError(f"Case {case} has {len(array)} channels, from which `prepare.channels: {wanted}` "
                            "cannot be made.", "Use `prepare.channels: keep`.")
    if wanted == "rgb":
        return np.repeat(array, 3, axis=0)
    grey = np.tensordot(np.array(GREY, np.float32), array.astype(np.float32), axes=1)[None]
    return np.rint(grey).astype(np.uint8) if array.dtype == np.uint8 else grey


def _moments(channel: np.ndarray, lo: float, hi: float) -> tuple[float, float]:
    """Mean and standard deviation of the clipped channel, in float64 plane by plane."""
    total, squares = 0.0, 0.0
    for plane in channel:
        total += float(np.clip(plane, lo, hi).sum(dtype=np.float64))
    mean = total / channel.size
    for plane in channel:
        squares += float(np.square(np.clip(plane, lo, hi).astype(np.float64) - mean).sum())
    return mean, float(np.sqrt(squares / channel.size))
