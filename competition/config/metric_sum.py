"""Weighted sums of metrics: `metric: {sum: [{name: surface_dice, weight: 0.35}, …]}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from competition.config.metric import OBJECTS, Direction, Metric
from competition.text import join_names


class WeightedSum:
    """The function of a sum of metrics.

    A term that compares objects has no score if neither mask nor truth has an object. If another term has a score, such
    a term counts with its best score: 1, or 0 if lower scores are better.

    Args:
        terms: pairs of weight and metric; the metrics have their settings.
    """

    def __init__(self, terms: Sequence[tuple[float, Metric]]) -> None:
        self.terms = tuple(terms)
        self.inputs = tuple(dict.fromkeys(name for _, metric in self.terms for name in metric.inputs))
        self.sum_count = sum(metric.sum_count for _, metric in self.terms)
        self.sums = self._sums if all(metric.supports_global for _, metric in self.terms) else None

    def __call__(self, *sums: Any, **inputs: Any) -> Any:
        """Return the weighted sum for the inputs of one case, or for numbers that `sums` added up over cases."""
        if sums:
            ends = np.cumsum([metric.sum_count for _, metric in self.terms])
            parts = [sums[end - metric.sum_count : end] for (_, metric), end in zip(self.terms, ends, strict=True)]
            values = [metric.score_sums(*part) for (_, metric), part in zip(self.terms, parts, strict=True)]
        else:
            values = [metric(**inputs) for _, metric in self.terms]
        scores = [np.asarray(value, np.float64) for value in values]
        defined = ~np.all([np.isnan(score) for score in scores], axis=0)
        total = np.zeros(())
        for (weight, metric), score in zip(self.terms, scores, strict=True):
            if metric.needs_objects and not _has_objects(inputs):
                score = np.where(np.isnan(score) & defined, best_score(metric), score)
            total = total + weight * score
        return total if total.ndim else float(total)

    def _sums(self, **inputs: Any) -> tuple[float, ...]:
        return tuple(value for _, metric in self.terms for value in metric.sums(**inputs))


def sum_direction(terms: Sequence[tuple[float, str, Direction]]) -> Direction:
    """Return the direction of a weighted sum.

    Args:
        terms: weight, name and direction of each term.

    Raises:
        ValueError: a higher sum is better for one term and worse for another.
    """
    signs = {name: direction.value * (1 if weight > 0 else -1) for weight, name, direction in terms}
    values = [direction.value * (1 if weight > 0 else -1) for weight, _, direction in terms]
    if len(set(values)) > 1:
        rising, falling = (join_names([name for name, sign in signs.items() if sign == side]) for side in (1, -1))
        raise ValueError(
            f"a higher sum is better for {rising} and worse for {falling}; give terms whose lower scores are better a "
            "negative weight, such as `{name: hd95, weight: -0.01}`"
        )
    return Direction(values[0])


def best_score(metric: Metric) -> float:
    """Return the score of a correct prediction of nothing: 1, or 0 if lower scores are better."""
    return 1.0 if metric.direction is Direction.HIGHER else 0.0


def _has_objects(inputs: Mapping[str, Any]) -> bool:
    return any(inputs[name].any() for name in OBJECTS if name in inputs)
