"""Rank the channels by their contrast between foreground and background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from competition.explore.cases import COLOURS
from competition.explore.types import CaseStats

SIMILAR_RATIO = 0.99  # a channel with at least this share of the best contrast counts as equally good


@dataclass(frozen=True)
class ChannelContrast:
    """Hold the contrast of one channel over all training cases with foreground and background.

    Attributes:
        name: name of the channel.
        channel: index of the channel in `prepare.channels`; None for the grey value of colour images.
        effect_size: median over cases of |Cohen's d|: 0.2 is small and 0.8 large; above 2, an intensity threshold
            nearly separates foreground and background.
        brighter_share: share of the cases whose foreground is brighter than their background.
        n_cases: number of cases.
    """

    name: str
    channel: int | None
    effect_size: float
    brighter_share: float
    n_cases: int


def similar_contrasts(ranked: Sequence[ChannelContrast]) -> list[ChannelContrast]:
    """Return the channels whose contrast is within 1 % of the highest contrast."""
    return [contrast for contrast in ranked if contrast.effect_size >= SIMILAR_RATIO * ranked[0].effect_size]


def rank_contrasts(cases: Sequence[CaseStats]) -> list[ChannelContrast]:
    """Return the channels by contrast, the highest first. Channels without a known contrast are omitted."""
    contrasts: dict[str, list[float]] = {}
    indices: dict[str, int] = {}
    for case in cases:
        for index, channel in enumerate(case.stats or []):
            is_derived = channel.name == "grey" and index == len(COLOURS)
            if not is_derived:
                indices.setdefault(channel.name, index)
            if not math.isnan(channel.contrast):
                contrasts.setdefault(channel.name, []).append(channel.contrast)
    ranked = [
        ChannelContrast(
            name,
            indices.get(name),
            median(map(abs, values)),
            sum(value > 0 for value in values) / len(values),
            len(values),
        )
        for name, values in contrasts.items()
    ]
    return sorted(ranked, key=lambda contrast: -contrast.effect_size)
