"""How often a pixel of probability p is really of its class, counted case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config import Competition
from competition.data.table import load_mask
from competition.inference.masks import merged
from competition.scoring.pictures import IGNORE, class_masks
from competition.training.oof import OutOfFold

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_CASES = 60
BINS = 15  # of the reliability diagram: (0, 1/15], (1/15, 2/15], …; probability 0 is in the first
STEPS = 60  # both 1/15 and 1/20 are whole numbers of sixtieths, so that one histogram serves bins and thresholds
THRESHOLDS: Floats = np.arange(1, 20) / 20  # 0.05, 0.10, …, 0.95
CHUNK = 2**21  # pixels looked at at a time


@dataclass
class Tally:
    """One class over all cases.

    Attributes:
        pixels: (61,) how many have a probability in ((k - 1)/60, k/60]; k = 0 is probability 0.
        hits: (61,) how many of them are of the class in truth.
        sums: (61,) the sum of their probabilities.
        dice: of each case that has the class, Dice (19,) of the pixels above each threshold.
        left_empty: of each case that has it not, whether no pixel is above each threshold, (19,) bool.
    """

    pixels: Ints = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))
    hits: Ints = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))
    sums: Floats = field(default_factory=lambda: np.zeros(STEPS + 1))
    dice: list[Floats] = field(default_factory=list)
    left_empty: list[NDArray[np.bool_]] = field(default_factory=list)

    def add_case(self, pixels: Ints, hits: Ints, sums: Floats) -> None:
        """Adds one case's histograms, each (61,)."""
        self.pixels += pixels
        self.hits += hits
        self.sums += sums
        above = [round(threshold * STEPS) + 1 for threshold in THRESHOLDS.tolist()]
        predicted = np.array([pixels[first:].sum() for first in above])
        right = np.array([hits[first:].sum() for first in above])
        if hits.any():
            self.dice.append(2.0 * right / (predicted + hits.sum()))
        else:
            self.left_empty.append(predicted == 0)

    @property
    def absent(self) -> bool:
        """Whether no pixel of any case is of the class."""
        return not self.hits.any()

    def bins(self) -> tuple[Ints, Floats, Floats]:
        """Of each bin (15,): its pixels, their mean probability and the share that is of the class; nan where empty."""
        pixels, hits, sums = (_binned(values) for values in (self.pixels, self.hits, self.sums))
        return (
            pixels.astype(np.int64),
            np.divide(sums, pixels, out=np.full(BINS, nan), where=pixels > 0),
            np.divide(hits, pixels, out=np.full(BINS, nan), where=pixels > 0),
        )

    def ece(self, inner: bool = False) -> float:
        """Expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599): the mean over pixels of
        |probability - frequency| of their bin; nan for an absent class.

        Args:
            inner: leave the first and the last bin out: most pixels are background beyond doubt, and hide the rest.
        """
        pixels, mean, share = self.bins()
        if inner:
            pixels, mean, share = pixels[1:-1], mean[1:-1], share[1:-1]
        if self.absent or not pixels.any():
            return nan
        return float(np.nansum(pixels * np.abs(mean - share)) / pixels.sum())

    def mean_dice(self) -> Floats:
        """(19,) mean over the cases that have the class; nan where none has."""
        return np.mean(self.dice, axis=0) if self.dice else np.full(len(THRESHOLDS), nan)

    def share_left_empty(self) -> Floats | None:
        """(19,) the share of the cases without the class in which nothing is above the threshold; None: all have it."""
        return np.mean(self.left_empty, axis=0) if self.left_empty else None


def evenly(cases: Sequence[str], most: int = MOST_CASES) -> list[str]:
    """At most so many of the cases, from the first to the last at even distances."""
    if len(cases) <= most:
        return list(cases)
    return [cases[place] for place in np.linspace(0, len(cases) - 1, most).round().astype(int)]


def counted(cases: Sequence[str], oof: OutOfFold) -> str:
    """`all 40 cases`, or `60 of 564 cases, evenly chosen`."""
    every = len(oof.fold_of)
    return f"all {every} cases" if len(cases) == every else f"{len(cases)} of {every} cases, evenly chosen"


def tally(oof: OutOfFold, cases: Sequence[str]) -> list[Tally]:
    """Counts each class over some cases, with one of them in memory at a time."""
    comp = oof.run.exp.competition
    found = [Tally() for _ in comp.classes]
    rows = {row.id: row for row in oof.cases.itertuples(index=False)}
    for case in cases:
        counts = _case(oof.read(case), load_mask(comp, rows[case]), comp)
        for one, (pixels, hits, sums) in zip(found, counts, strict=True):
            one.add_case(pixels, hits, sums)
    return found


def _case(probabilities: NDArray[Any], truth: NDArray[Any], comp: Competition) -> list[tuple[Ints, Ints, Floats]]:
    """One case's histograms of each class, some planes at a time: no ignored pixels, the boundary class merged."""
    found = [(np.zeros(STEPS + 1, np.int64), np.zeros(STEPS + 1, np.int64), np.zeros(STEPS + 1)) for _ in comp.classes]
    step = max(1, CHUNK // max(1, truth[0, 0].size))
    for low in range(0, truth.shape[1], step):
        there = truth[:, low : low + step]
        plain, masks = merged(probabilities[:, low : low + step], comp), class_masks(there, comp)
        for index, (pixels, hits, sums) in enumerate(found):
            known = there[0 if comp.labels == "exclusive" else index] != IGNORE
            probability, mask = plain[index + (comp.labels == "exclusive")][known], masks[index][known]
            # float16 times 60 is exact in float32: no pixel changes sides by rounding
            code = np.clip(np.ceil(probability * np.float32(STEPS)), 0, STEPS).astype(np.int64)
            pixels += np.bincount(code, minlength=STEPS + 1)
            hits += np.bincount(code[mask], minlength=STEPS + 1)
            sums += np.bincount(code, weights=probability, minlength=STEPS + 1)
    return found


def _binned(values: NDArray[Any]) -> NDArray[Any]:
    """(61,) to (15,): sixtieths 1 to 4 are the first bin, and 0 with them."""
    sums = values[1:].reshape(BINS, STEPS // BINS).sum(axis=1)
    sums[0] += values[0]
    return sums
