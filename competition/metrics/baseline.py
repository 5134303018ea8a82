"""Compute the baseline of an intensity threshold, whose score a useful network must exceed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.metric import Direction
from competition.metrics.scoring import IGNORE_LABEL, split_classes

Array = np.ndarray[Any, Any]

MAX_BINS = 2**16  # bins for whole numbers, one for each; other values are counted in 256 bins
MAX_THRESHOLDS = 256  # number of candidates for the global threshold


def score_threshold_baseline(cases: Iterable[tuple[Array, Array]], comp: Competition) -> dict[str, float]:
    """Score the best intensity threshold: Otsu or one global threshold, bright or dark, on the best channel.

    Both scores are optimistic, because the method, polarity, channel and global threshold are selected on the labels
    against which they are scored. A threshold does not separate classes. So the first score also uses the truth to
    assign classes: the whole foreground is the prediction of each class that the case has, and all other classes are
    empty. The second score is the Dice of foreground against background, and assigns no classes.

    Args:
        cases: (image (C, *spatial), mask (M, *spatial) uint8) pairs; pixels of 255 in the mask are ignored.
        comp: the competition; it defines the classes, and the score of a class that is absent from label and prediction
            (`metric.both_empty`; 1 if lower scores are better, because then that value is not a Dice).

    Returns:
        Two scores by a name that describes the selected threshold: the mean Dice over (case, class) pairs, and the mean
            foreground Dice over cases. Empty if there are no cases.

    Reference:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979.
    """
    return best_threshold(cases, comp).scores


@dataclass(frozen=True)
class ThresholdBaseline:
    """Hold the best intensity threshold on some cases.

    Attributes:
        scores: result of `score_threshold_baseline`.
        name: name of the threshold with the best mean Dice over (case, class) pairs; empty without cases.
        case_dice: Dice (cases, K) of this threshold, with the whole foreground as the prediction of each class that the
            case has; nan for all other classes.
    """

    scores: dict[str, float]
    name: str = ""
    case_dice: Array = field(default_factory=lambda: np.empty((0, 0)))


def best_threshold(cases: Iterable[tuple[Array, Array]], comp: Competition) -> ThresholdBaseline:
    """Find the intensity threshold with the best Dice; return its scores, its name, and its Dice by case and class."""
    candidates: list[_Candidate] = []
    both_empty = comp.metric.both_empty
    if both_empty is not None and comp.metric.direction is Direction.LOWER:
        both_empty = 1.0
    arrays = [(np.asarray(image), split_classes(np.asarray(mask), comp), _valid_pixels(mask)) for image, mask in cases]
    for channel in range(min((len(image) for image, _, _ in arrays), default=0)):
        values = [image[channel][valid] for image, _, valid in arrays]
        truths = [masks[:, valid] for _, masks, valid in arrays]
        suffix = f", channel {channel}" if any(len(image) > 1 for image, _, _ in arrays) else ""
        levels = _candidate_thresholds(values)
        for name, thresholds in (("global threshold", [levels] * len(values)), ("Otsu", [_otsu(v) for v in values])):
            counts = [_Counts.from_values(*args) for args in zip(values, truths, thresholds, strict=True)]
            for polarity in ("bright", "dark"):
                candidates.append(
                    _Candidate(
                        f"{name}, {polarity}{suffix}",
                        _best_mean([count.class_dice(polarity, both_empty) for count in counts]),
                        _best_mean([count.foreground_dice(polarity, both_empty) for count in counts]),
                        np.stack([count.class_dice(polarity, None) for count in counts]),
                    )
                )
    if not candidates:
        return ThresholdBaseline({})
    by_class = max(candidates, key=lambda candidate: candidate.class_dice)
    by_foreground = max(candidates, key=lambda candidate: candidate.foreground_dice)
    scores = {
        f"best threshold ({by_class.name}), Dice": by_class.class_dice,
        f"best threshold ({by_foreground.name}), foreground Dice": by_foreground.foreground_dice,
    }
    best = max(candidates, key=lambda candidate: _best_mean(list(candidate.case_dice)))
    return ThresholdBaseline(scores, best.name, best.case_dice[:, :, _best_column(list(best.case_dice))])


@dataclass(frozen=True)
class _Candidate:
    name: str
    class_dice: float
    foreground_dice: float
    case_dice: Array  # (cases, K, T), nan for a class that the case does not have


@dataclass(frozen=True)
class _Counts:
    """Hold the numbers of pixels of one case above each of T thresholds: all pixels, foreground, and each class.

    Attributes:
        above: (2 + K, T) int64; rows are all pixels, foreground pixels, and pixels of each class.
        total: (2 + K,) int64; the same counts without a threshold.
    """

    above: Array
    total: Array

    @classmethod
    def from_values(cls, values: Array, truth: Array, thresholds: Array) -> _Counts:
        """Count the values (N,) above each threshold (T,): all, in the foreground and in each class of truth (K, N)."""
        bins = np.searchsorted(thresholds, values, side="left")  # number of thresholds below each value
        groups = [np.ones(len(values), bool), truth.any(axis=0), *truth]
        counts = np.stack([np.bincount(bins[group], minlength=len(thresholds) + 1) for group in groups])
        return cls(counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], counts.sum(axis=1))

    def class_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Return the Dice (K, T) of each class; a class that the label lacks gets `both_empty` (nan for None)."""
        dice = self._dice(polarity)[1:]
        dice[self.total[2:] == 0] = np.nan if both_empty is None else both_empty
        return dice

    def foreground_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Return the foreground Dice (1, T): `both_empty` (nan for None) where both label and prediction are empty."""
        dice = self._dice(polarity)[:1]
        return dice if both_empty is None else np.where(np.isnan(dice), both_empty, dice)

    def _dice(self, polarity: str) -> Array:
        """Return the Dice (1 + K, T) of the foreground and of each class; nan if label and prediction are empty."""
        selected = self.above if polarity == "bright" else self.total[:, None] - self.above
        size = selected[0] + self.total[1:, None]
        return np.divide(2.0 * selected[1:], size, out=np.full(size.shape, np.nan), where=size > 0)


def _best_mean(case_scores: list[Array]) -> float:
    """Return the highest mean score that one threshold reaches over all rows of the cases; nan values do not count."""
    return float(_means(case_scores).max())


def _best_column(case_scores: list[Array]) -> int:
    """Return the index of the threshold whose mean over the rows of all cases is highest."""
    return int(_means(case_scores).argmax())


def _means(case_scores: list[Array]) -> Array:
    rows = np.concatenate(case_scores)
    finite = np.isfinite(rows)
    sums, counts = np.where(finite, rows, 0.0).sum(axis=0), finite.sum(axis=0)
    return np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0)


def _candidate_thresholds(case_values: list[Array]) -> Array:
    """Return the distinct values of all cases or, if there are too many, `MAX_THRESHOLDS` quantiles."""
    distinct = np.unique(np.concatenate([np.unique(values) for values in case_values]))
    if len(distinct) <= MAX_THRESHOLDS:
        return distinct
    pooled = np.concatenate(case_values)
    return np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, MAX_THRESHOLDS)))


def _otsu(values: Array) -> Array:
    """Return Otsu's threshold (1,) of one case; infinity if all values are equal."""
    # This is the computation of skimage.filters.threshold_otsu, whose import takes longer than everything else in a
    # command on a finished run.
    if len(values) == 0 or (low := values.min()) == (high := values.max()):
        return np.array([np.inf])
    if np.issubdtype(values.dtype, np.integer) and int(high) - int(low) < MAX_BINS:  # a bin for each value
        centres: Array = np.arange(int(low), int(high) + 1)
        counts: Array = np.bincount(values.astype(np.int64) - int(low), minlength=len(centres))
    else:
        counts, edges = np.histogram(values, 256)
        centres = (edges[:-1] + edges[1:]) / 2.0
    counts = counts.astype(np.float32)
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / below
    mean_above = (np.cumsum((counts * centres)[::-1]) / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return np.array([float(centres[np.argmax(between)])])


def _valid_pixels(mask: Array) -> Array:
    """Return a mask (*spatial) bool of the pixels that are not ignored in any mask channel."""
    return np.asarray((np.asarray(mask) != IGNORE_LABEL).all(axis=0))
