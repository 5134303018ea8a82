"""Which channel tells the foreground from the background best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from competition.data.explore.intensities import COLOURS
from competition.data.explore.measured import Measured

ALIKE = 0.99  # of the best contrast: less apart is no difference


@dataclass(frozen=True)
class Contrast:
    """One channel over all training cases with foreground and background.

    Attributes:
        name: the channel. number: as `prepare.channels` counts it; None for the grey value of colours.
        size: median over cases of |Cohen's d|: 0.2 is small, 0.8 large, above 2 a threshold nearly does.
        brighter: share of the cases whose foreground is brighter than their background.
        cases: how many there are.
    """

    name: str
    number: int | None
    size: float
    brighter: float
    cases: int


def alike(ranked: Sequence[Contrast]) -> list[Contrast]:
    """Those that are as good as the best, at least to two digits."""
    return [one for one in ranked if one.size >= ALIKE * ranked[0].size]


def rank(cases: Sequence[Measured]) -> list[Contrast]:
    """Channels by contrast, the best first; those that no case tells are left out."""
    found: dict[str, list[float]] = {}
    numbers: dict[str, int] = {}
    for case in cases:
        for number, one in enumerate(case.values or []):
            derived = one.name == "grey" and number == len(COLOURS)
            if not derived:
                numbers.setdefault(one.name, number)
            if not math.isnan(one.contrast):
                found.setdefault(one.name, []).append(one.contrast)
    ranked = [Contrast(name, numbers.get(name), median(map(abs, values)), sum(value > 0 for value in values) / len(values),
                       len(values)) for name, values in found.items()]
    return sorted(ranked, key=lambda one: -one.size)
