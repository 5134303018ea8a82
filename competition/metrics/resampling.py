"""Resample the cases of a score table, for confidence intervals.

Every score is a weighted mean over the cases, or a ratio of weighted sums. For the score of all cases, each case has
the weight 1. In a bootstrap sample, the weight of a case is the number of times that the case was drawn. Thus one
matrix product scores all bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.errors import MaskfoldError
from competition.metrics.overlap import score_from_counts, sum_columns

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]
MAX_WEIGHTS = 4_000_000  # maximum number of weights in memory at a time, 32 MB


@dataclass(frozen=True)
class ScoreTable:
    """Hold scores as arrays (cases, classes); classes that no case has are left out.

    Attributes:
        metric: section `metric` of the YAML.
        ids: case ids.
        classes: names of the classes.
        score: score of each case and class, nan if the class has no score. If `pooled` is not empty, `score` does not
            contain the term of the metric that is in `pooled`.
        counts: arrays that `average: global` adds up over cases: tp, fp and fn, or the results of the metric's method
            `sums`. With any other average, the tuple is empty.
        pooled: for a metric with a term that is averaged over the slices of all cases, two arrays: the sum of the term
            over the slices, and the number of slices. For any other metric, the tuple is empty.
    """

    metric: MetricConfig
    ids: list[str]
    classes: list[str]
    score: Floats
    counts: tuple[Floats, ...]
    pooled: tuple[Floats, ...] = ()

    @classmethod
    def from_scores(cls, scores: pd.DataFrame, metric: MetricConfig, counted: Collection[str] = ()) -> ScoreTable:
        """Build the arrays from a table of scores; classes in `counted` are kept even if no case has them."""
        if metric.average == "global" and not metric.resolve().supports_global:
            raise MaskfoldError(
                f"metric.average: found global, expected case_class or class for metric {metric.name}.",
                "Change `metric.average`.",
                status=2,
            )
        duplicates = scores[scores.duplicated(["id", "class"])]
        if len(duplicates):
            raise MaskfoldError(
                f"case {duplicates['id'].iloc[0]!r}: found two scores of class {duplicates['class'].iloc[0]!r}, "
                "expected one.",
                "Score each case once, with the network that did not train on it.",
            )
        present = scores.groupby("class", sort=False)["dice"].transform("count") > 0
        kept = scores[present | scores["class"].isin(counted)]
        # Cases and classes keep the order of the table; a pivot table would sort them and drop nan.
        ids, classes = scores["id"].unique().tolist(), kept["class"].unique().tolist()
        rows, columns = (
            kept[name].map({value: code for code, value in enumerate(values)}).to_numpy(np.int64)
            for name, values in (("id", ids), ("class", classes))
        )

        def as_array(name: str, fill: float) -> Floats:
            values = np.full((len(ids), len(classes)), fill)
            values[rows, columns] = kept[name].to_numpy(np.float64)
            return values

        columns_of_sums = sum_columns(metric, scores.columns) if metric.average == "global" else ()
        counts = tuple(as_array(name, 0.0) for name in columns_of_sums)
        score, pooled = as_array("score", nan), tuple[Floats, ...]()
        if metric.has_pooled_term and "pooled" in scores.columns and scores["pooled"].notna().all():
            part, items = as_array("pooled", 0.0), as_array("items", 0.0)
            score, pooled = score - part, (part * items, items)
        return cls(metric, ids, classes, score, counts, pooled)

    def clusters(self, groups: Mapping[str, str] | None) -> Clusters:
        names = [groups[case] for case in self.ids] if groups is not None else self.ids
        codes: dict[Any, int] = {}
        index = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
        return Clusters(index, len(codes))

    def statistic(self, weights: Floats) -> Floats:
        """Return one score per bootstrap sample, (samples,), over all classes; `weights` is (samples, cases)."""
        if self.metric.average == "case_class":
            finite = np.isfinite(self.score)
            rest = divide(weights @ np.where(finite, self.score, 0.0).sum(axis=1), weights @ finite.sum(axis=1))
            return self.add_pooled(rest, *(weights @ values.sum(axis=1) for values in self.pooled))
        values = self.per_class(weights)
        finite = np.isfinite(values)
        return divide(np.where(finite, values, 0.0).sum(axis=1), finite.sum(axis=1))

    def per_class(self, weights: Floats) -> Floats:
        """Return one score per bootstrap sample and class, (samples, classes); `weights` is (samples, cases)."""
        if self.counts:
            return np.asarray(score_from_counts(self.metric, *(weights @ count for count in self.counts)))
        finite = np.isfinite(self.score)
        rest = divide(weights @ np.where(finite, self.score, 0.0), weights @ finite)
        return self.add_pooled(rest, *(weights @ values for values in self.pooled))

    @staticmethod
    def add_pooled(rest: Floats, *sums: Floats) -> Floats:
        """Add the metric's term that is averaged over slices to the rest of the score.

        Args:
            rest: the score without this term.
            sums: sum of the term over the slices, and number of slices. If they are not given, the result is `rest`.
        """
        return rest + divide(*sums) if sums else rest


@dataclass(frozen=True)
class Clusters:
    """Assign cases to clusters; the bootstrap draws all cases of a cluster together.

    Attributes:
        index: (cases,), cluster index of each case.
        count: number of clusters.
    """

    index: Draws
    count: int


@dataclass(frozen=True)
class FewClusters:
    """Compute intervals for few clusters of cases, widened by the effect of one more, imagined cluster.

    Even if eight of eight cases have good scores, a third of all future cases may fail. A bootstrap cannot show this,
    because it only repeats the cases of the sample. Instead, the weights of the clusters are exponential (a Bayesian
    bootstrap), and one imagined cluster of mean size is added to them. For one end of the interval, the imagined
    cluster has the worst possible score. For the other end, it has the best possible score.

    For a mean of bounded scores, this is Gaffke's interval. For scores of 0 and 1, it is the interval of Clopper and
    Pearson, which always has at least its nominal coverage. See Learned-Miller and Thomas, "A New Confidence Interval
    for the Mean of a Bounded Random Variable" (2019, https://arxiv.org/abs/1905.06208).

    Attributes:
        metric: section `metric` of the YAML.
        sums: arrays (clusters, classes): the sum of the scores, and the number of scores. If a term of the metric is
            averaged over slices, two more arrays follow: the sum of this term and the number of slices. For
            `average: global`, the arrays are tp, fp and fn, or the results of the metric's method `sums`.
        low: the imagined cluster with the lowest score (for tp, fp and fn: with tp = 0), as arrays (classes,) with the
            same meaning as in `sums`.
        high: the imagined cluster with the highest score (for tp, fp and fn: with fp = fn = 0), in the same form.
    """

    metric: MetricConfig
    sums: tuple[Floats, ...]
    low: tuple[Floats, ...]
    high: tuple[Floats, ...]

    @classmethod
    def from_table(cls, table: ScoreTable, clusters: Clusters) -> FewClusters:
        """Sum the scores (or pixel counts) of the cases in each cluster, and derive the two imagined clusters.

        A cluster without a score is left out.
        """
        finite = np.isfinite(table.score)
        cells = table.counts or (np.where(finite, table.score, 0.0), finite.astype(np.float64), *table.pooled)
        sums = [np.zeros((clusters.count, len(table.classes))) for _ in cells]
        for total, values in zip(sums, cells, strict=True):
            np.add.at(total, clusters.index, values)
        # Results of a metric's method `sums` may be negative; counts and numbers of scores are never negative.
        has_class: NDArray[np.bool_] = np.any([total != 0 for total in (sums if table.counts else sums[1:2])], axis=0)
        kept = has_class.any(axis=1)
        # The imagined cluster has the mean number of scores per cluster. For `average: case_class`, this is the mean
        # over all clusters. Otherwise, it is the mean over the clusters that have the class.
        number = kept.sum() if table.metric.average == "case_class" else has_class.sum(axis=0)
        low: tuple[Floats, ...]
        high: tuple[Floats, ...]
        means = [total.sum(axis=0) / np.maximum(1, number) for total in sums]
        if table.counts and table.metric.resolve().has_sums:
            low, high = _extreme_sums(sums, table.metric)
        elif table.counts:
            tp, fp, fn = means
            low, high = (0 * tp, tp + fp, tp + fn), (tp + fn, 0 * fp, 0 * fn)
        else:
            # For the term that is averaged over slices, the imagined cluster gets the mean over all clusters. The rest
            # of its score follows from the bounds of the whole score.
            term = divide(*(values.sum(axis=0) for values in table.pooled)) if table.pooled else np.zeros_like(means[1])
            whole = table.score + np.nan_to_num(divide(*table.pooled)) if table.pooled else table.score
            worst, best = _score_bounds(whole[finite], table.metric)
            pooled = (term * means[3], means[3]) if table.pooled else ()
            low = ((worst - term) * means[1], means[1], *pooled)
            high = ((best - term) * means[1], means[1], *pooled)
        return cls(table.metric, tuple(total[kept] for total in sums), low, high)

    @property
    def count(self) -> int:
        """Number of clusters that have a score."""
        return len(self.sums[0])

    def interval(self, weights: Floats, level: float) -> tuple[float, float]:
        """Return the lower and upper end of the interval; nan if there are fewer than two clusters.

        Args:
            weights: (samples, clusters + 1), weights of the clusters; the last column is the weight of the imagined
                cluster.
            level: confidence level, e.g. 0.95.
        """
        if self.count < 2:
            return nan, nan
        ends = np.stack([self._statistic(weights, imagined) for imagined in (self.low, self.high)])
        # Sorted, because the worst possible counts give the upper end if lower scores are better.
        ends = np.sort(ends[:, np.isfinite(ends).all(axis=0)], axis=0)
        if not ends.size:
            return nan, nan
        tail = (1 - level) / 2
        return float(np.quantile(ends[0], tail)), float(np.quantile(ends[1], 1 - tail))

    def _statistic(self, weights: Floats, imagined: tuple[Floats, ...]) -> Floats:
        """Return one score per bootstrap sample, (samples,), of the clusters and one more, imagined cluster.

        Args:
            weights: (samples, clusters + 1), weight of each cluster in each bootstrap sample, as in `interval`.
            imagined: sums of the imagined cluster: the attribute `low` or `high`.
        """
        totals = [weights[:, :-1] @ sums + weights[:, -1:] * one for sums, one in zip(self.sums, imagined, strict=True)]
        if self.metric.average == "case_class":
            sums = [total.sum(axis=1) for total in totals]
            return ScoreTable.add_pooled(divide(*sums[:2]), *sums[2:])
        if self.metric.average == "global":
            values = np.asarray(score_from_counts(self.metric, *totals))
        else:
            values = ScoreTable.add_pooled(divide(*totals[:2]), *totals[2:])
        finite = np.isfinite(values)
        return divide(np.where(finite, values, 0.0).sum(axis=1), finite.sum(axis=1))


def _score_bounds(scores: Floats, metric: MetricConfig) -> tuple[float, float]:
    """Return the lowest and highest possible score: 0 and 1 for shares such as the Dice, otherwise estimates.

    For example, the largest possible distance is unknown. It is assumed to exceed the largest observed distance by the
    range of the observed distances. The lowest possible score is estimated in the same way.
    """
    if not len(scores):
        return nan, nan
    low, high = float(scores.min()), float(scores.max())
    if metric.is_share:
        return 0.0, 1.0
    # If all scores lie between 0 and 1, the scores of the user's own metric, or of a metric whose higher scores are
    # better, are assumed to be shares. Distances below 1 mm are not shares. If all distances are 0, their scale is
    # unknown, so an upper bound of 1 is assumed.
    may_be_share = metric.has_own_code or metric.direction is Direction.HIGHER or high == 0
    if low >= 0 and high <= 1 and may_be_share:
        return 0.0, 1.0
    return max(0.0, 2 * low - high) if low >= 0 else 2 * low - high, 2 * high - low


def _extreme_sums(sums: list[Floats], metric: MetricConfig) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """Return, for each class, the sums of the clusters with the lowest and the highest score.

    `FewClusters` adds a cluster with the worst or best possible score. For a metric with its own method `sums`, it is
    unknown which sums give such a score. So the sums of the worst or best observed cluster are used instead.

    Args:
        sums: arrays (clusters, classes), one for each result of the method `sums`.
        metric: section `metric` of the YAML.
    """
    scores = np.asarray(score_from_counts(metric, *sums), np.float64)
    chosen = (
        np.where(np.isfinite(scores), scores, inf).argmin(0),
        np.where(np.isfinite(scores), scores, -inf).argmax(0),
    )
    low, high = (tuple(np.take_along_axis(total, rows[None], 0)[0] for total in sums) for rows in chosen)
    return low, high


def expanded_interval(
    table: ScoreTable,
    clusters: Clusters,
    n: int,
    level: float,
    draw: Callable[[int], Draws],
    draws: int = 0,
    minus: tuple[ScoreTable, ScoreTable] | None = None,
) -> tuple[float, float]:
    """Return the expanded percentile interval of a table's score, or of the difference of two tables' scores.

    Args:
        table: scores of the cases. If `minus` is given, only the number of cases in this table is used.
        clusters: clusters of the cases.
        n: number of bootstrap samples.
        level: confidence level.
        draw: function that takes a number of samples and returns cluster indices (samples, draws).
        draws: number of clusters in each sample, which limits how many samples are computed at a time.
        minus: two tables. If given, the interval is that of the first table's score minus the second table's score.

    Returns:
        Lower and upper end of the interval; nan if there are fewer than two clusters.
    """
    from scipy.special import ndtr, stdtrit  # importing scipy.stats instead would take a second

    if clusters.count < 2:
        return nan, nan
    values: list[Floats] = []
    chunk = max(1, MAX_WEIGHTS // max(len(table.ids), clusters.count, draws))
    for start in range(0, n, chunk):
        count = min(chunk, n - start)
        drawn = draw(count) + clusters.count * np.arange(count)[:, None]
        multiplicity = np.bincount(drawn.ravel(), minlength=count * clusters.count).reshape(count, clusters.count)
        weights = multiplicity[:, clusters.index].astype(np.float64)
        values.append(
            table.statistic(weights) if minus is None else minus[0].statistic(weights) - minus[1].statistic(weights)
        )
    samples = np.concatenate(values)
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return nan, nan
    degrees = clusters.count - 1
    tail = float(ndtr(np.sqrt(clusters.count / degrees) * stdtrit(degrees, (1 - level) / 2)))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def divide(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    """Return numerator / denominator, or nan where the denominator is 0."""
    out = np.full(np.shape(denominator), nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)
