"""Scores over all cases with bootstrap intervals, and paired comparisons of two runs.

Every score is a weighted statistic of the cases. All weights are 1 for the score itself; a bootstrap weighs each case
by the number of times that it was drawn, so that one matrix product scores all bootstrap samples.

Below 50 cases (`FEW_CASES`) the bootstrap is too narrow, because a few cases often do not show how a network fails; see
`_FewClusters` for the interval used there, and `benchmarks/coverage.py` for what both cover.
"""

# Not scipy.stats.bootstrap, although it is nearly as fast (61 ms instead of 44 ms: python benchmarks/libraries.py
# bootstrap). It draws neither groups of cases nor test sets, and has no expanded interval, which few cases need.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.errors import MaskfoldError
from competition.metrics.overlap import score_from_counts
from competition.seeding import rng

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]
FEW_CASES = 50  # with fewer cases (or groups), intervals allow for a failure that no case shows
_MAX_WEIGHTS = 4_000_000  # weights in memory at a time: 32 MB
PLAIN_MEAN = MetricConfig(both_empty=None)  # the mean over all finite values


def cv_score(scores: pd.DataFrame, metric: MetricConfig) -> float:
    """Compute the competition's metric over all cases.

    A class that no truth or prediction contains is excluded: its empty masks say nothing about the network, even if the
    host scores each as `both_empty`. If that excludes all classes (healthy cases, all predicted empty), the score is
    the mean of the cases' scores, which is `both_empty`.

    Args:
        scores: rows of `competition.metrics.scoring.score_case` with the columns id, class, score and dice; for
            `average: global` also tp, fp and fn; for a metric with a term averaged over slices also pooled and items.
        metric: its `average` defines the reduction over cases and classes.

    Returns:
        The score; nan without scored cases, or if no case has a class and `both_empty` is null.

    Raises:
        MaskfoldError: a case has two scores, or the metric does not support `average: global`.
    """
    table = _Table.from_scores(scores, metric)
    if not table.classes:
        return float(scores["score"].mean())
    return float(table.statistic(np.ones((1, len(table.ids))))[0])


def class_scores(scores: pd.DataFrame, metric: MetricConfig) -> dict[str, float]:
    """Compute the competition's metric of each class over all cases; nan (never 0 or 1) for a class that no case has.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
    """
    table = _Table.from_scores(scores, metric)
    values = table.per_class(np.ones((1, len(table.ids))))[0]
    return dict.fromkeys(scores["class"].unique().tolist(), nan) | dict(
        zip(table.classes, values.tolist(), strict=True)
    )


def bootstrap_interval(
    scores: pd.DataFrame,
    metric: MetricConfig,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute a confidence interval of `cv_score` by drawing cases (or groups of cases) with replacement.

    From `FEW_CASES` cases or groups on, it is Hesterberg's expanded percentile interval ("What Teachers Should Know
    About the Bootstrap", 2015, https://arxiv.org/abs/1411.5279). With fewer, cases that fail are often missing from the
    sample, so the interval includes what one more case of the worst or best possible score would change.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: group of each case id, for dependent cases such as those of one patient.
        level: confidence level, the share of such intervals that contain the true score.

    Returns:
        (low, high); nan for fewer than two cases or groups.
    """
    table = _Table.from_scores(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 0, "bootstrap")
    few = _FewClusters.from_table(table, clusters)
    if few.count < FEW_CASES:
        return few.interval(generator.standard_exponential((n, few.count + 1)), level)
    return _interval(
        table, clusters, n, level, lambda count: generator.integers(0, clusters.count, (count, clusters.count))
    )


def prediction_interval(
    scores: pd.DataFrame,
    metric: MetricConfig,
    n_test: int,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute a prediction interval for the score of a test set of `n_test` cases from the same distribution.

    It is wider than `bootstrap_interval`, because the test set is a random sample too: each iteration draws a bootstrap
    sample of the cases, and a test set from that sample. With fewer than `FEW_CASES` cases, a test set may also have
    cases of the worst or best possible score; see `bootstrap_interval`.

    Args:
        scores: as in `cv_score`.
        metric: as in `cv_score`.
        n_test: number of test cases.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: as in `bootstrap_interval`; assumes that groups of the test set have the same size.
        level: share of test sets whose score such intervals contain.

    Returns:
        (low, high); nan for fewer than two cases or groups.
    """
    table = _Table.from_scores(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 1, "bootstrap")
    few = _FewClusters.from_table(table, clusters)
    if few.count < FEW_CASES:
        chances = generator.standard_exponential((n, few.count + 1))
        size = max(1, round(n_test * few.count / max(1, len(table.ids))))
        test_sets = generator.multinomial(size, chances / chances.sum(axis=1, keepdims=True))
        return few.interval(test_sets.astype(np.float64), level)
    size = max(1, round(n_test * clusters.count / max(1, len(table.ids))))

    def draw(count: int) -> Draws:
        sample = generator.integers(0, clusters.count, (count, clusters.count))
        return np.take_along_axis(sample, generator.integers(0, clusters.count, (count, size)), axis=1)

    return _interval(table, clusters, n, level, draw, size)


# Two runs on the same cases


class ScoreGain(NamedTuple):
    """By how much a score is better than another one on the same cases, with its confidence interval.

    In the metric's unit, and positive for an improvement: for a distance, `before` minus `after`.
    """

    value: float
    low: float
    high: float

    def as_difference(self, direction: Direction) -> ScoreGain:
        """Return `after` minus `before` with its interval, which is negative for a lower distance."""
        return self if direction is Direction.HIGHER else ScoreGain(-self.value, -self.high, -self.low)


def paired_gain(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: MetricConfig,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> ScoreGain:
    """Compute by how much `after` is better than `before` on the same cases, with its paired bootstrap interval.

    The interval is that of the bootstrap for few cases too: failures are mostly common to both, so it holds better than
    that of a score, and decisions on steps, weights and soups depend on it.

    Args:
        before: scores as in `cv_score`.
        after: scores of the same cases and classes.
        metric: as in `cv_score`.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: as in `bootstrap_interval`.
        level: confidence level.

    Returns:
        The gain, positive if `after` is better in the metric's direction; its interval is nan for fewer than two cases
        or groups.

    Raises:
        ValueError: the case ids of the tables differ.
    """
    if metric.direction is Direction.LOWER:
        before, after = after, before
    tables = _paired_tables(before, after, metric)
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
    return ScoreGain(cv_score(after, metric) - cv_score(before, metric), low, high)


def paired_difference_noise(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: MetricConfig,
    n_test: int,
    n: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> float:
    """Estimate the sampling noise of the difference of two scores on the same `n_test` test cases.

    The result is half the width of the interval that contains the share `level` of the differences over test sets of
    `n_test` cases, each drawn with replacement from the given cases. For a mean over cases it is about
    1.96 s / √n_test, where s is the standard deviation of the differences per case.

    Args:
        before: scores as in `cv_score`.
        after: scores of the same cases and classes.
        metric: as in `cv_score`.
        n_test: number of test cases.
        n: number of bootstrap samples.
        seed: seed of the draws.
        groups: as in `prediction_interval`.
        level: share of test sets.

    Returns:
        Half the width of the interval; nan for fewer than two cases or groups.

    Raises:
        ValueError: the case ids of the tables differ.
    """
    tables = _paired_tables(before, after, metric)
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


def _paired_tables(before: pd.DataFrame, after: pd.DataFrame, metric: MetricConfig) -> list[_Table]:
    tables = [_Table.from_scores(scores.sort_values("id", kind="stable"), metric) for scores in (before, after)]
    if tables[0].ids != tables[1].ids:
        raise ValueError("a paired difference requires scores of the same cases.")
    return tables


class PairedDifference(NamedTuple):
    """Difference of a measure between two runs, on cases that both predicted.

    Attributes:
        measure: e.g. `dice`.
        cls: the class; empty: all classes.
        cases: number of cases for which both runs have the measure.
        a: value of the first run.
        b: value of the second run.
        value: b − a.
        low: lower end of the 95 % paired bootstrap interval of `value`; nan for fewer than two cases.
        high: upper end of that interval.
        p: two-sided p-value of Wilcoxon's signed-rank test on the differences per case; nan without cases, 1 if all
            differences are 0.
        better: number of cases in which the second run is better.
        worse: number of cases in which the second run is worse; ties are in neither.
    """

    measure: str
    cls: str
    cases: int
    a: float
    b: float
    value: float
    low: float
    high: float
    p: float
    better: int
    worse: int


def paired_difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    measure: str,
    metric: MetricConfig = PLAIN_MEAN,
    cls: str = "",
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    direction: Direction | None = None,
) -> PairedDifference:
    """Compare the scores of two runs.

    Args:
        a: rows of the first run with the columns id, class, dice, `measure`, and for `average: global` tp, fp, fn.
        b: rows of the second run with the same cases and classes.
        measure: the column to compare.
        metric: defines the average over cases and classes; the plain mean by default.
        cls: one class; empty: all classes.
        groups: group of each case, see `bootstrap_interval`; the test then uses the mean of each group.
        seed: seed of the bootstrap.
        direction: whether higher or lower values of the measure are better; None: as for `metric`.
    """
    tables = []
    for table in (a, b):
        rows = table if not cls else table[table["class"] == cls]
        tables.append(rows if measure == "score" else rows.assign(score=rows[measure], dice=rows[measure]))
    gain = paired_gain(tables[0], tables[1], metric, seed=seed, groups=groups).as_difference(metric.direction)
    values = [_mean_value(rows, metric, cls) for rows in tables]
    differences = (mean_score_per_case(tables[1]) - mean_score_per_case(tables[0])).dropna()
    sign = (direction or metric.direction).value
    return PairedDifference(
        measure,
        cls,
        len(differences),
        values[0],
        values[1],
        values[1] - values[0],
        gain.low,
        gain.high,
        wilcoxon_p(_group_means(differences, groups)),
        int((sign * differences > 0).sum()),
        int((sign * differences < 0).sum()),
    )


def mean_score_per_case(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the mean of `score` over the classes of each case, by id; nan if all its scores are nan."""
    means: pd.Series[float] = rows.groupby("id")["score"].mean()
    return means


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; zeros are dropped, as in Wilcoxon (1945).

    Args:
        differences: one for each pair.

    Returns:
        The p-value; nan without pairs; 1 if all differences are 0.
    """
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return nan
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences[differences != 0]).pvalue)


def _mean_value(rows: pd.DataFrame, metric: MetricConfig, cls: str) -> float:
    if not rows["score"].notna().any():
        return nan
    return class_scores(rows, metric)[cls] if cls else cv_score(rows, metric)


def _group_means(differences: pd.Series[float], groups: Mapping[str, str] | None) -> NDArray[np.float64]:
    """Return the differences per case, or their means per group: cases of one patient are not independent."""
    if groups is None:
        return np.asarray(differences, np.float64)
    names = np.array([groups[str(case)] for case in differences.index])
    return np.asarray(differences.groupby(names).mean(), np.float64)


# The bootstrap


@dataclass(frozen=True)
class _Table:
    """Scores as arrays (cases, classes), without classes that no case has."""

    metric: MetricConfig
    ids: list[str]
    classes: list[str]
    score: Floats
    counts: tuple[Floats, ...]  # tp, fp, fn for `average: global`, else empty
    pooled: tuple[Floats, ...] = ()  # the sum over items and their number, if the metric has a pooled term

    @classmethod
    def from_scores(cls, scores: pd.DataFrame, metric: MetricConfig) -> _Table:
        if metric.average == "global" and not metric.from_counts:
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
        kept = scores[present]
        # Codes in order of appearance: a pivot would sort and drop nan.
        ids, classes = scores["id"].unique().tolist(), kept["class"].unique().tolist()
        rows, columns = (
            kept[name].map({value: code for code, value in enumerate(values)}).to_numpy(np.int64)
            for name, values in (("id", ids), ("class", classes))
        )

        def as_array(name: str, fill: float) -> Floats:
            values = np.full((len(ids), len(classes)), fill)
            values[rows, columns] = kept[name].to_numpy(np.float64)
            return values

        counts = tuple(as_array(name, 0.0) for name in ("tp", "fp", "fn")) if metric.average == "global" else ()
        score, pooled = as_array("score", nan), tuple[Floats, ...]()
        if metric.has_pooled_term and "pooled" in scores.columns and scores["pooled"].notna().all():
            part, items = as_array("pooled", 0.0), as_array("items", 0.0)
            score, pooled = score - part, (part * items, items)
        return cls(metric, ids, classes, score, counts, pooled)

    def clusters(self, groups: Mapping[str, str] | None) -> _Clusters:
        names = [groups[case] for case in self.ids] if groups is not None else self.ids
        codes: dict[Any, int] = {}
        index = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
        return _Clusters(index, len(codes))

    def statistic(self, weights: Floats) -> Floats:
        """Return the score (samples,) for weights (samples, cases)."""
        if self.metric.average == "case_class":
            finite = np.isfinite(self.score)
            rest = _divide(weights @ np.where(finite, self.score, 0.0).sum(axis=1), weights @ finite.sum(axis=1))
            return self._add_pooled(rest, *(weights @ values.sum(axis=1) for values in self.pooled))
        values = self.per_class(weights)
        finite = np.isfinite(values)
        return _divide(np.where(finite, values, 0.0).sum(axis=1), finite.sum(axis=1))

    def per_class(self, weights: Floats) -> Floats:
        """Return the score (samples, classes) for weights (samples, cases)."""
        if self.counts:
            return np.asarray(score_from_counts(self.metric, *(weights @ count for count in self.counts)))
        finite = np.isfinite(self.score)
        rest = _divide(weights @ np.where(finite, self.score, 0.0), weights @ finite)
        return self._add_pooled(rest, *(weights @ values for values in self.pooled))

    @staticmethod
    def _add_pooled(rest: Floats, *sums: Floats) -> Floats:
        """Add the term that is averaged over items, if the metric has one: `sums` are that of the term and of items."""
        return rest + _divide(*sums) if sums else rest


@dataclass(frozen=True)
class _Clusters:
    """Clusters of cases that the bootstrap draws together."""

    index: Draws  # (cases,), cluster index of each case
    count: int


@dataclass(frozen=True)
class _FewClusters:
    """Few clusters of cases, and one imagined cluster more, for intervals that hold.

    Eight of eight good cases are no evidence that fewer than a third of all cases fail, but the bootstrap only repeats
    the cases that it has. Here the weights of the clusters are exponential (a Bayesian bootstrap), and one more cluster
    of mean size has the worst possible score for the lower end and the best possible one for the upper end. For a mean
    of scores within bounds this is Gaffke's interval, for scores of 0 and 1 that of Clopper and Pearson, which never
    covers less than its level. See Learned-Miller and Thomas, "A New Confidence Interval for the Mean of a Bounded
    Random Variable" (2019, https://arxiv.org/abs/1905.06208).

    Attributes:
        metric: the metric.
        sums: arrays (clusters, classes): sum and number of scores, and for a pooled term its sum and number of items;
            for `average: global` tp, fp and fn.
        low: the imagined cluster for the one end: arrays (classes,) like those of `sums`.
        high: the imagined cluster for the other end.
    """

    metric: MetricConfig
    sums: tuple[Floats, ...]
    low: tuple[Floats, ...]
    high: tuple[Floats, ...]

    @classmethod
    def from_table(cls, table: _Table, clusters: _Clusters) -> _FewClusters:
        """Sum the cases of each cluster; clusters without a score are omitted."""
        finite = np.isfinite(table.score)
        cells = table.counts or (np.where(finite, table.score, 0.0), finite.astype(np.float64), *table.pooled)
        sums = [np.zeros((clusters.count, len(table.classes))) for _ in cells]
        for total, values in zip(sums, cells, strict=True):
            np.add.at(total, clusters.index, values)
        has_class: NDArray[np.bool_] = np.greater(np.sum(sums, axis=0) if table.counts else sums[1], 0)
        kept = has_class.any(axis=1)
        # For `case_class` as many scores as a cluster has on average; else those of the clusters that have the class.
        number = kept.sum() if table.metric.average == "case_class" else has_class.sum(axis=0)
        low: tuple[Floats, ...]
        high: tuple[Floats, ...]
        means = [total.sum(axis=0) / np.maximum(1, number) for total in sums]
        if table.counts:
            tp, fp, fn = means
            low, high = (0 * tp, tp + fp, tp + fn), (tp + fn, 0 * fp, 0 * fn)
        else:
            # The imagined cluster has the mean of a pooled term, and what the bounds of the whole score leave.
            term = (
                _divide(*(values.sum(axis=0) for values in table.pooled)) if table.pooled else np.zeros_like(means[1])
            )
            whole = table.score + np.nan_to_num(_divide(*table.pooled)) if table.pooled else table.score
            worst, best = _score_bounds(whole[finite])
            pooled = (term * means[3], means[3]) if table.pooled else ()
            low = ((worst - term) * means[1], means[1], *pooled)
            high = ((best - term) * means[1], means[1], *pooled)
        return cls(table.metric, tuple(total[kept] for total in sums), low, high)

    @property
    def count(self) -> int:
        """Number of clusters that have a score."""
        return len(self.sums[0])

    def interval(self, weights: Floats, level: float) -> tuple[float, float]:
        """Return the interval from weights (samples, clusters + 1) of the clusters and of the imagined one."""
        if self.count < 2:
            return nan, nan
        ends = np.stack([self._statistic(weights, imagined) for imagined in (self.low, self.high)])
        ends = np.sort(ends[:, np.isfinite(ends).all(axis=0)], axis=0)  # the counts of a failure may be the higher end
        if not ends.size:
            return nan, nan
        tail = (1 - level) / 2
        return float(np.quantile(ends[0], tail)), float(np.quantile(ends[1], 1 - tail))

    def _statistic(self, weights: Floats, imagined: tuple[Floats, ...]) -> Floats:
        """Return the score (samples,) of the clusters and an imagined one."""
        totals = [weights[:, :-1] @ sums + weights[:, -1:] * one for sums, one in zip(self.sums, imagined, strict=True)]
        if self.metric.average == "case_class":
            sums = [total.sum(axis=1) for total in totals]
            return _Table._add_pooled(_divide(*sums[:2]), *sums[2:])
        if self.metric.average == "global":
            values = np.asarray(score_from_counts(self.metric, *totals))
        else:
            values = _Table._add_pooled(_divide(*totals[:2]), *totals[2:])
        finite = np.isfinite(values)
        return _divide(np.where(finite, values, 0.0).sum(axis=1), finite.sum(axis=1))


def _score_bounds(scores: Floats) -> tuple[float, float]:
    """Return the lowest and highest possible score: 0 and 1 for shares; else the ends of the scores, moved outwards.

    The largest possible distance is unknown. It is taken to be above the largest one by as much as that is above the
    smallest.
    """
    if not len(scores):
        return nan, nan
    low, high = float(scores.min()), float(scores.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return max(0.0, 2 * low - high) if low >= 0 else 2 * low - high, 2 * high - low


def _interval(
    table: _Table,
    clusters: _Clusters,
    n: int,
    level: float,
    draw: Callable[[int], Draws],
    draws: int = 0,
    minus: tuple[_Table, _Table] | None = None,
) -> tuple[float, float]:
    """Return the expanded percentile interval of the statistic, or of `minus[0]`'s statistic minus `minus[1]`'s.

    `draw(count)` returns cluster indices (count, draws); `draws` bounds the memory of a chunk.
    """
    from scipy.stats import norm, t

    if clusters.count < 2:
        return nan, nan
    values: list[Floats] = []
    chunk = max(1, _MAX_WEIGHTS // max(len(table.ids), clusters.count, draws))
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
    tail = float(norm.cdf(np.sqrt(clusters.count / degrees) * t.ppf((1 - level) / 2, degrees)))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _divide(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    """Return numerator / denominator; nan where the denominator is 0."""
    out = np.full(np.shape(denominator), nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)
