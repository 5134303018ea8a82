"""Compute a baseline that a useful network must exceed: the score of the best intensity threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.metric import Direction
from competition.metrics.scoring import IGNORE_LABEL, split_classes

Array = np.ndarray[Any, Any]

MAX_BINS = 2**16  # maximum number of bins if each whole number has a bin; other values are counted in 256 bins
MAX_THRESHOLDS = 256  # number of candidates for the global threshold


def score_threshold_baseline(cases: Iterable[tuple[Array, Array]], comp: Competition) -> dict[str, float]:
    """Return the scores of the best intensity threshold on the best channel of the images.

    The threshold is Otsu's threshold of each image, or one threshold for all images. The foreground is either brighter
    or darker than the threshold.

    A threshold does not separate classes. Therefore there are two scores. The first is the Dice of each class. It uses
    the truth to assign classes: for each class that the case has, the prediction is all pixels that the threshold
    selects. For all other classes, the prediction is empty. The second score is the Dice of foreground against
    background, for which no classes are assigned.

    Both scores are optimistic: the labels that choose threshold, channel and direction (brighter or darker) are also
    the truth of the scores.

    Args:
        cases: pairs of image (C, *spatial) and mask (M, *spatial) uint8. Pixels of 255 in the mask are ignored.
        comp: competition, which defines the classes. `metric.both_empty` is the score of a class that is absent from
            truth and prediction. If lower scores of the metric are better, or if the metric is a weighted sum,
            `both_empty` is no Dice, so 1 is used instead.

    Returns:
        Two scores by name: the mean Dice over pairs of case and class, and the mean foreground Dice over cases. Each
        name describes the selected threshold. The result is empty if there are no cases.

    Reference:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979.
    """
    return best_threshold(cases, comp).scores


@dataclass(frozen=True)
class ThresholdBaseline:
    """Hold the best intensity threshold on some cases.

    Attributes:
        scores: result of `score_threshold_baseline`.
        name: name of the threshold with the best mean Dice over pairs of case and class; empty if there are no cases.
        case_dice: Dice (cases, K) of this threshold. A threshold cannot tell classes apart, so all pixels that it
            selects are the prediction of each class that the case has. For all other classes, the value is nan.
    """

    scores: dict[str, float]
    name: str = ""
    case_dice: Array = field(default_factory=lambda: np.empty((0, 0)))


def best_threshold(cases: Iterable[tuple[Array, Array]], comp: Competition) -> ThresholdBaseline:
    """Find the intensity threshold with the best Dice; return its scores, its name, and its Dice by case and class.

    See `score_threshold_baseline` for the arguments.
    """
    candidates: list[_Candidate] = []
    both_empty = comp.metric.both_empty
    if both_empty is not None and (comp.metric.sum is not None or comp.metric.direction is Direction.LOWER):
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
    """Count the pixels of one case that lie above each of T thresholds.

    Attributes:
        above: (2 + K, T) int64, numbers of pixels above each threshold. The first row counts all pixels, the second
            row the foreground pixels, and each further row the pixels of one class.
        total: (2 + K,) int64, the same numbers without a threshold: of all pixels, of the foreground pixels, and of the
            pixels of each class.
    """

    above: Array
    total: Array

    @classmethod
    def from_values(cls, values: Array, truth: Array, thresholds: Array) -> _Counts:
        """Count the pixels above each threshold.

        Args:
            values: (N,) values of the pixels.
            truth: (K, N) bool, classes of the pixels.
            thresholds: (T,) thresholds in ascending order.
        """
        bins = np.searchsorted(thresholds, values, side="left")  # number of thresholds below each value
        groups = [np.ones(len(values), bool), truth.any(axis=0), *truth]
        counts = np.stack([np.bincount(bins[group], minlength=len(thresholds) + 1) for group in groups])
        return cls(counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], counts.sum(axis=1))

    def class_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Return the Dice (K, T) of each class.

        For a class that the truth lacks, the value is `both_empty`, or nan if `both_empty` is None. The prediction is
        all pixels above the threshold (polarity `bright`), or all other pixels (polarity `dark`).
        """
        dice = self._dice(polarity)[1:]
        dice[self.total[2:] == 0] = np.nan if both_empty is None else both_empty
        return dice

    def foreground_dice(self, polarity: str, both_empty: float | None) -> Array:
        """Return the Dice (1, T) of the foreground.

        Where truth and prediction are both empty, the value is `both_empty`, or nan if `both_empty` is None.
        """
        dice = self._dice(polarity)[:1]
        return dice if both_empty is None else np.where(np.isnan(dice), both_empty, dice)

    def _dice(self, polarity: str) -> Array:
        """Return the Dice (1 + K, T) of the foreground and of each class; nan if truth and prediction are empty."""
        selected = self.above if polarity == "bright" else self.total[:, None] - self.above
        size = selected[0] + self.total[1:, None]
        return np.divide(2.0 * selected[1:], size, out=np.full(size.shape, np.nan), where=size > 0)


def _best_mean(case_scores: list[Array]) -> float:
    """Return the best threshold's mean score over all rows of all cases; nan values are left out of the mean.

    Args:
        case_scores: one array (rows, thresholds) per case.
    """
    return float(_means(case_scores).max())


def _best_column(case_scores: list[Array]) -> int:
    """Return the index of the threshold with the best mean score over all rows of all cases.

    Args:
        case_scores: one array (rows, thresholds) per case.
    """
    return int(_means(case_scores).argmax())


def _means(case_scores: list[Array]) -> Array:
    rows = np.concatenate(case_scores)
    finite = np.isfinite(rows)
    sums, counts = np.where(finite, rows, 0.0).sum(axis=0), finite.sum(axis=0)
    return np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0)


def _candidate_thresholds(case_values: list[Array]) -> Array:
    """Return the distinct values of all cases as thresholds.

    If there are more than `MAX_THRESHOLDS` values, the result is this number of quantiles instead.
    """
    distinct = np.unique(np.concatenate([np.unique(values) for values in case_values]))
    if len(distinct) <= MAX_THRESHOLDS:
        return distinct
    pooled = np.concatenate(case_values)
    return np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, MAX_THRESHOLDS)))


def _otsu(values: Array) -> Array:
    """Return Otsu's threshold of one case as an array (1,); the threshold is infinite if all values are equal."""
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
    """Return a mask (*spatial) bool of the pixels that no mask channel ignores."""
    return np.asarray((np.asarray(mask) != IGNORE_LABEL).all(axis=0))
