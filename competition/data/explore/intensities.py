"""Intensities of one image: quantiles, and how well each channel tells the foreground from the background."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.explore.measured import Values
from competition.data.intensity import GREY, picture_channels

SAMPLE = 2**18  # values of a channel that are looked at: quantiles of them are good to a thousandth of the range
ROBUST = (0.05, 0.95)  # of the foreground: what a mask spills over its border lies outside
COLOURS = ("red", "green", "blue")


def used_channels(array: np.ndarray, comp: Competition, case_id: str) -> np.ndarray:
    """The channels (C, *spatial) that `prepare.channels: keep` leaves: a picture's alpha channel is none."""
    if comp.dimensions == 3:
        return array
    return picture_channels(array, "keep", isinstance(comp.train.images, str), case_id)


def channel_names(count: int, comp: Competition) -> list[str]:
    """What the channels are called: as the YAML does, by colour, or by number."""
    images = comp.train.images
    if isinstance(images, dict) and len(images) == count:
        return list(images)
    if comp.dimensions == 2 and isinstance(images, str) and count == 3:
        return list(COLOURS)
    return ["image"] if count == 1 else [str(number) for number in range(count)]


def is_colour(array: np.ndarray) -> bool:
    """Whether the three channels of a picture (3, H, W) differ."""
    return len(array) == 3 and not (array == array[:1]).all()


def measure_values(array: np.ndarray, names: list[str], front: NDArray[np.bool_] | None,
                   counted: NDArray[np.bool_] | None = None) -> list[Values]:
    """Measures each channel; of colours also their grey value, as `prepare.channels: grey` makes it.

    Args:
        array: (C, *spatial), finite.
        names: of the channels.
        front: (*spatial), the foreground; None: not known.
        counted: (*spatial), False where the truth is ignored; None: all counts.
    """
    found = [_values(name, channel, front, counted) for name, channel in zip(names, array, strict=True)]
    if tuple(names) == COLOURS:
        if is_colour(array):
            grey = np.tensordot(np.array(GREY, np.float32), array.astype(np.float32), axes=1)
            found.append(_values("grey", grey, front, counted))
        else:
            found.append(replace(found[0], name="grey"))
    return found


def _values(name: str, channel: np.ndarray, front: NDArray[np.bool_] | None,
            counted: NDArray[np.bool_] | None) -> Values:
    sample = spread(channel.reshape(-1))
    low, median, high = (float(value) for value in np.quantile(sample, (0.005, 0.5, 0.995)))
    contrast = front_low = front_high = math.nan
    if front is not None and front.any():
        inside = spread(channel[front])
        front_low, front_high = (float(value) for value in np.quantile(inside, ROBUST))
        behind = ~front if counted is None else ~front & counted
        contrast = cohen(inside, spread(channel[behind]))
    return Values(name, float(channel.min()), low, median, high, float(channel.max()), float(sample.mean()),
                  float(sample.std()), contrast, front_low, front_high)


def spread(values: np.ndarray) -> NDArray[np.float64]:
    """At most `SAMPLE` of flat values, evenly spread, float64.

    The step is odd: an even one would see only some columns of most images.
    """
    step = -(-values.size // SAMPLE)
    return values[:: step + (step % 2 == 0)].astype(np.float64)


def cohen(inside: NDArray[np.float64], behind: NDArray[np.float64]) -> float:
    """Cohen's d of two samples with equal weights: the difference of their means over the root of their mean variance.

    Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.3.
    """
    if not inside.size or not behind.size:
        return math.nan
    spread_of_both = math.sqrt((float(inside.var()) + float(behind.var())) / 2)
    return float(inside.mean() - behind.mean()) / spread_of_both if spread_of_both > 0 else math.nan
