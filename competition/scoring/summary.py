"""The score of many cases: the competition's metric with its intervals.

Every number is a weighted statistic of the cases, with a weight of one each for the score itself, and for a bootstrap
with the number of times that each case was drawn. So one matrix product scores all samples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config import MaskfoldError, Metric
from competition.data.randomness import rng
from competition.scoring.dice import COUNTED, counted_score

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]

_WEIGHTS = 4_000_000  # weights held at a time: 32 MB


def cv_score(scores: pd.DataFrame, metric: Metric) -> float:
    """The competition's metric over all cases.

    A class that no case has, in truth or prediction, is left out: its empty masks say nothing about the network, even
    where the host counts each as `both_empty`.

    Args:
        scores: rows of `competition.scoring.cases.score_case` with the columns id, class, score and dice; for
            `average: global` also tp, fp and fn.
        metric: its `average` says how cases and classes are put together.

    Returns:
        The score; nan where nothing was scored.

    Raises:
        MaskfoldError: a case was scored twice, or `average: global` of a metric that has no global form.
    """
    table = _Table.of(scores, metric)
    return float(table.statistic(np.ones((1, len(table.ids))))[0])


def class_scores(scores: pd.DataFrame, metric: Metric) -> dict[str, float]:
    """The competition's metric of each class over all cases; nan for a class that no case has, never 0 or 1.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
    """
    table = _Table.of(scores, metric)
    values = table.per_class(np.ones((1, len(table.ids))))[0]
    return dict.fromkeys(scores["class"].unique().tolist(), nan) | dict(
        zip(table.classes, values.tolist(), strict=True)
    )


def bootstrap_interval(
    scores: pd.DataFrame,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval of `cv_score`: cases are drawn with replacement (whole groups, where cases have groups).

    The percentiles are widened as Hesterberg's expanded percentile interval ("What Teachers Should Know About the
    Bootstrap", 2015, https://arxiv.org/abs/1411.5279), since a plain percentile interval of few cases is too narrow.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
        n: samples.
        seed: of the experiment.
        groups: the group of each id, of cases that resemble each other, such as one patient's.
        level: the share of such intervals that hold the true score.

    Returns:
        (low, high); nan for fewer than two cases or groups.
    """
    table = _Table.of(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 0, "bootstrap")
    return _interval(
        table, clusters, n, level, lambda count: generator.integers(0, clusters.count, (count, clusters.count))
    )


def prediction_interval(
    scores: pd.DataFrame,
    metric: Metric,
    n_test: int,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval for the score of a test set of `n_test` cases of the same kind.

    Wider than `bootstrap_interval`, because the test set is a draw too: each sample is a bootstrap sample of the cases,
    out of which a test set is drawn.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
        n_test: cases of the test set.
        n: samples.
        seed: of the experiment.
        groups: as in `bootstrap_interval`; the test set is taken to have groups of the same size.
        level: the share of test sets whose score such intervals hold.

    Returns:
        (low, high); nan for fewer than two cases or groups.
    """
    table = _Table.of(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 1, "bootstrap")
    size = max(1, round(n_test * clusters.count / max(1, len(table.ids))))

    def draw(count: int) -> Draws:
        sample = generator.integers(0, clusters.count, (count, clusters.count))
        return np.take_along_axis(sample, generator.integers(0, clusters.count, (count, size)), axis=1)

    return _interval(table, clusters, n, level, draw, size)


class Gain(NamedTuple):
    """A difference of two scores on the same cases, and its interval."""

    value: float
    low: float
    high: float


def _paired(before: pd.DataFrame, after: pd.DataFrame, metric: Metric) -> list[_Table]:
    tables = [_Table.of(scores.sort_values("id", kind="stable"), metric) for scores in (before, after)]
    if tables[0].ids != tables[1].ids:
        raise ValueError("a paired difference needs the scores of the same cases")
    return tables


def gain_interval(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> Gain:
    """How much the score of the same cases rose, with its paired bootstrap interval.

    Args:
        before: as in `cv_score`.
        after: the same cases and classes.
        metric: as in `cv_score`.
        n: samples.
        seed: of the experiment.
        groups: as in `bootstrap_interval`.
        level: of the interval.

    Returns:
        The gain; the ends are nan for fewer than two cases or groups.

    Raises:
        ValueError: the two are not of the same cases.
    """
    tables = _paired(before, after, metric)
    clusters = tables[0].clusters(groups)
    generator = rng(seed, 0, 0, 2, "bootstrap")
    low, high = _interval(
        tables[0],
        clusters,
        n,
        level,
        lambda count: generator.integers(0, clusters.count, (count, clusters.count)),
        minus=(tables[1], tables[0]),
    )
    return Gain(cv_score(after, metric) - cv_score(before, metric), low, high)


def difference_noise(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: Metric,
    n_test: int,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> float:
    """How far the difference of two scores moves by chance, when both are of the same `n_test` cases.

    Half the width of the interval that holds the share `level` of the differences on test sets of `n_test` cases, each
    drawn with replacement from the cases given. For a mean over cases that is about 1.96 s / √n_test, s being the
    standard deviation of the cases' own differences.

    Args:
        before: as in `cv_score`.
        after: the same cases and classes.
        metric: as in `cv_score`.
        n_test: cases of the test set.
        n: samples.
        seed: of the draws.
        groups: as in `prediction_interval`.
        level: the share.

    Returns:
        A width, 0 or more; nan for fewer than two cases or groups.

    Raises:
        ValueError: the two are not of the same cases.
    """
    tables = _paired(before, after, metric)
    clusters = tables[0].clusters(groups)
    generator = rng(seed, 0, 0, 3, "bootstrap")
    size = max(1, round(n_test * clusters.count / max(1, len(tables[0].ids))))
    low, high = _interval(
        tables[0],
        clusters,
        n,
        level,
        lambda count: generator.integers(0, clusters.count, (count, size)),
        size,
        minus=(tables[1], tables[0]),
    )
    return (high - low) / 2


@dataclass(frozen=True)
class _Clusters:
    """Which cases are drawn together."""

    of_case: Draws  # (cases,), from 0
    count: int


@dataclass(frozen=True)
class _Table:
    """Scores as arrays (cases, classes), without the classes that no case has."""

    metric: Metric
    ids: list[str]
    classes: list[str]
    score: Floats
    counts: tuple[Floats, ...]  # tp, fp, fn; only for `average: global`

    @classmethod
    def of(cls, scores: pd.DataFrame, metric: Metric) -> _Table:
        if metric.average == "global" and metric.name not in COUNTED:
            raise MaskfoldError(
                f"The metric {metric.name} has no global average: it is a mean over cases.",
                "Set `metric.average` to case_class or class.",
                status=2,
            )
        twice = scores[scores.duplicated(["id", "class"])]
        if len(twice):
            raise MaskfoldError(
                f"Case {twice['id'].iloc[0]!r} has two scores of class {twice['class'].iloc[0]!r}.",
                "Give each case once, by the one network that never saw it.",
            )
        present = scores.groupby("class", sort=False)["dice"].transform("count") > 0
        kept = scores[present]
        # Codes in order of appearance: a pivot would sort, and drop what is nan.
        ids, classes = scores["id"].unique().tolist(), kept["class"].unique().tolist()
        rows, columns = (
            kept[name].map({value: at for at, value in enumerate(values)}).to_numpy(np.int64)
            for name, values in (("id", ids), ("class", classes))
        )

        def spread(name: str, missing: float) -> Floats:
            values = np.full((len(ids), len(classes)), missing)
            values[rows, columns] = kept[name].to_numpy(np.float64)
            return values

        counts = tuple(spread(name, 0.0) for name in ("tp", "fp", "fn")) if metric.average == "global" else ()
        return cls(metric, ids, classes, spread("score", nan), counts)

    def clusters(self, groups: Mapping[str, str] | None) -> _Clusters:
        names = [groups[case] for case in self.ids] if groups is not None else self.ids
        codes: dict[Any, int] = {}
        of_case = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
        return _Clusters(of_case, len(codes))

    def statistic(self, weights: Floats) -> Floats:
        """The score (samples,) under weights (samples, cases)."""
        if self.metric.average == "case_class":
            known = np.isfinite(self.score)
            return _divide(weights @ np.where(known, self.score, 0.0).sum(axis=1), weights @ known.sum(axis=1))
        values = self.per_class(weights)
        known = np.isfinite(values)
        return _divide(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))

    def per_class(self, weights: Floats) -> Floats:
        """The score (samples, classes) under weights (samples, cases)."""
        if self.counts:
            return np.asarray(counted_score(self.metric, *(weights @ count for count in self.counts)))
        known = np.isfinite(self.score)
        return _divide(weights @ np.where(known, self.score, 0.0), weights @ known)


def _interval(
    table: _Table,
    clusters: _Clusters,
    n: int,
    level: float,
    draw: Any,
    width: int = 0,
    minus: tuple[_Table, _Table] | None = None,
) -> tuple[float, float]:
    """Widened percentiles of the statistic over `n` samples, or of the difference of two tables' statistics.

    `draw(count)` gives clusters (count, draws).
    """
    from scipy.stats import norm, t

    if clusters.count < 2:
        return nan, nan
    values: list[Floats] = []
    chunk = max(1, _WEIGHTS // max(len(table.ids), clusters.count, width))
    for done in range(0, n, chunk):
        count = min(chunk, n - done)
        drawn = draw(count) + clusters.count * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * clusters.count).reshape(count, clusters.count)
        weights = times[:, clusters.of_case].astype(np.float64)
        values.append(
            table.statistic(weights) if minus is None else minus[0].statistic(weights) - minus[1].statistic(weights)
        )
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    if not len(known):
        return nan, nan
    free = clusters.count - 1
    tail = float(norm.cdf(np.sqrt(clusters.count / free) * t.ppf((1 - level) / 2, free)))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _divide(top: Floats, bottom: NDArray[Any]) -> Floats:
    """top / bottom, nan for a bottom of 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), nan), where=np.asarray(bottom) != 0)
