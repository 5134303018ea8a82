"""What a threshold alone scores: the bar that a network has to clear before its score means anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from competition.config.competition import Competition

Array = np.ndarray[Any, Any]

IGNORE = 255
LEVELS = 256  # candidates for the global threshold


def threshold_baseline(cases: Iterable[tuple[Array, Array]], comp: Competition) -> dict[str, float]:
    """Score the best of Otsu and of one global threshold tuned on the truth, bright or dark, on the best channel.

    Both numbers favour the threshold: the method, the polarity, the channel and the global level are chosen on the
    truth they are scored against. A threshold knows no classes, so for the first number each class of each case is
    given the whole foreground where the case has the class, and nothing where it does not. The second number is the
    Dice of foreground against background, without that help.

    Args:
        cases: (image (C, *spatial), mask (M, *spatial) uint8) pairs; 255 in the mask counts nowhere.
        comp: tells classes, and what a class in neither truth nor prediction scores (`metric.both_empty`).

    Returns:
        Two names that say which threshold won, and the scores: mean Dice over (case, class) pairs, and mean foreground
        Dice over cases. Empty if there are no cases.

    Reference:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979.
    """
    candidates: list[_Candidate] = []
    pairs = [(np.asarray(image), _class_masks(mask, comp), _counted(mask)) for image, mask in cases]
    for channel in range(min((len(image) for image, _, _ in pairs), default=0)):
        columns = [image[channel][counted] for image, _, counted in pairs]
        truths = [masks[:, counted] for _, masks, counted in pairs]
        suffix = f", channel {channel}" if any(len(image) > 1 for image, _, _ in pairs) else ""
        levels = _levels(columns)
        for name, thresholds in (("global threshold", [levels] * len(columns)), ("Otsu", [_otsu(c) for c in columns])):
            tables = [_Counts.of(*args) for args in zip(columns, truths, thresholds, strict=True)]
            for polarity in ("bright", "dark"):
                candidates.append(
                    _Candidate(
                        f"{name}, {polarity}{suffix}",
                        _best([table.class_dice(polarity, comp.metric.both_empty) for table in tables]),
                        _best([table.foreground_dice(polarity, comp.metric.both_empty) for table in tables]),
                    )
                )
    if not candidates:
        return {}
    by_class, by_foreground = max(candidates, key=lambda c: c.classes), max(candidates, key=lambda c: c.foreground)
    return {
        f"best threshold ({by_class.name}), Dice": by_class.classes,
        f"best threshold ({by_foreground.name}), foreground Dice": by_foreground.foreground,
    }


@dataclass(frozen=True)
class _Candidate:
    name: str
    classes: float
    foreground: float


@dataclass(frozen=True)
class _Counts:
    """Pixels of one case above each of T thresholds: all, those of each class, those of any class.

    Attributes:
        above: (2 + K, T) int64; rows are all pixels, foreground pixels, and pixels of each class.
        total: (2 + K,) int64, the same without a threshold.
    """

    above: Array
    total: Array

    @classmethod
    def of(cls, values: Array, truth: Array, thresholds: Array) -> _Counts:
        """Count values (N,) that are above thresholds (T,), given truth (K, N) bool."""
        bins = np.searchsorted(thresholds, values, side="left")  # how many thresholds a value is above
        groups = [np.ones(len(values), bool), truth.any(axis=0), *truth]
        counts = np.stack([np.bincount(bins[group], minlength=len(thresholds) + 1) for group in groups])
        return cls(counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], counts.sum(axis=1))

    def class_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Dice (K, T) of each class against the foreground, where the case has it, else `both_empty` (nan for none)."""
        dice = self._dice(polarity)[1:]
        dice[self.total[2:] == 0] = np.nan if both_empty is None else both_empty
        return dice

    def foreground_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Dice (1, T) of foreground against background; `both_empty` (nan for none) where both are empty."""
        dice = self._dice(polarity)[:1]
        return dice if both_empty is None else np.where(np.isnan(dice), both_empty, dice)

    def _dice(self, polarity: str) -> Array:
        """Dice (1 + K, T) of foreground and of each class against the thresholded pixels; nan where both are empty."""
        picked = self.above if polarity == "bright" else self.total[:, None] - self.above
        size = picked[0] + self.total[1:, None]
        return np.divide(2.0 * picked[1:], size, out=np.full(size.shape, np.nan), where=size > 0)


def _best(cases: list[Array]) -> float:
    """The mean over all rows of all cases, nan left out, at the threshold where it is highest."""
    rows = np.concatenate(cases)
    counted = np.isfinite(rows)
    sums, counts = np.where(counted, rows, 0.0).sum(axis=0), counted.sum(axis=0)
    return float(np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0).max())


def _levels(columns: list[Array]) -> Array:
    """Thresholds worth trying: every value where there are few, else `LEVELS` quantiles of all cases together."""
    values = np.unique(np.concatenate([np.unique(column) for column in columns]))
    if len(values) <= LEVELS:
        return values
    pooled = np.concatenate(columns)
    return np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, LEVELS)))


def _otsu(values: Array) -> Array:
    """Otsu's threshold (1,) of one case; above all its values where they are all the same."""
    from skimage.filters import threshold_otsu

    if len(values) == 0 or values.min() == values.max():
        return np.array([np.inf])
    return np.array([float(threshold_otsu(values))])


def _counted(mask: Array) -> Array:
    """Pixels (*spatial) bool that no mask channel ignores."""
    return np.asarray((np.asarray(mask) != IGNORE).all(axis=0))


def _class_masks(mask: Array, comp: Competition) -> Array:
    """Masks (K, *spatial) bool of a mask (M, *spatial) uint8."""
    if comp.labels == "overlapping":
        return np.asarray(np.asarray(mask) == 1)
    return np.stack([np.asarray(mask)[0] == number for number in range(1, len(comp.classes) + 1)])
