"""Compute scores over all cases with bootstrap intervals, and compare two runs on the same cases.

With fewer than 50 cases (`FEW_CASES`), bootstrap intervals are too narrow, because few cases often contain none of the
network's failures. `FewClusters` describes the interval that is used instead. `benchmarks/coverage.py` measures for
each of the two kinds of interval how often it contains the true score.
"""

# This module does not use scipy.stats.bootstrap, although that function is nearly as fast (61 ms instead of 44 ms:
# python benchmarks/libraries.py bootstrap). scipy's function draws neither groups of cases nor test sets. It also
# lacks the expanded percentile interval.

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import isnan, nan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.metrics.resampling import Draws, FewClusters, ScoreTable, expanded_interval
from competition.seeding import rng

if TYPE_CHECKING:
    import pandas as pd

FEW_CASES = 50  # with fewer cases (or groups), intervals take into account failures that occur in none of the cases
PLAIN_MEAN = MetricConfig(both_empty=None)  # section `metric` for the plain mean over all finite values


def cv_score(scores: pd.DataFrame, metric: MetricConfig, counted: Collection[str] = ()) -> float:
    """Compute the competition's metric over all cases.

    A class that occurs in no truth and no prediction is left out, because empty masks say nothing about the network.
    If all classes are left out, the score is the mean of the cases' scores, which all equal `metric.both_empty`.

    To compare the scores of several predictions of the same cases, pass `counted=classes_of(table_1, table_2, …)`.
    Otherwise, a class that only one of the predictions contains, and no truth, would count only in the score of this
    prediction. Then its false positives could even raise this score, compared with the other scores.

    Args:
        scores: rows of `competition.metrics.scoring.score_case` with the columns id, class, score and dice. The
            setting `average: global` also needs tp, fp and fn. A metric with a term that is averaged over slices also
            needs pooled and items.
        metric: section `metric` of the YAML. Its setting `average` defines the mean over cases and classes.
        counted: names of classes that are not left out.

    Returns:
        The score. It is nan if there is no scored case, or if no case has a class and `both_empty` is null.

    Raises:
        MaskfoldError: a case has two scores of the same class, or the metric does not support `average: global`.
    """
    table = ScoreTable.from_scores(scores, metric, counted)
    if not table.classes:
        return float(scores["score"].mean())
    return float(table.statistic(np.ones((1, len(table.ids))))[0])


def classes_of(*tables: pd.DataFrame) -> set[str]:
    """Return the names of the classes that occur in the truth or prediction of a case in at least one score table."""
    return {str(name) for table in tables for name in table.loc[table["dice"].notna(), "class"].unique()}


def dice_per_class(scores: pd.DataFrame, classes: Iterable[str]) -> dict[str, float | None]:
    """Return the mean Dice of each class over the cases that have the class in truth or prediction.

    Args:
        scores: rows with the columns class and dice.
        classes: names of the classes.

    Returns:
        Mean Dice by name of the class, or None for a class that no case has.
    """
    means = scores.groupby("class")["dice"].mean()
    values = {name: float(means.get(name, nan)) for name in classes}
    return {name: None if isnan(value) else value for name, value in values.items()}


def class_scores(scores: pd.DataFrame, metric: MetricConfig) -> dict[str, float]:
    """Compute the competition's metric of each class over all cases.

    Args:
        scores: as in `cv_score`.
        metric: section `metric` of the YAML.

    Returns:
        Score by name of the class, or nan for a class that no case has.
    """
    table = ScoreTable.from_scores(scores, metric)
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
    """Compute a confidence interval of `cv_score` from bootstrap samples of the cases (or groups of cases).

    With at least `FEW_CASES` cases or groups, this is Hesterberg's expanded percentile interval ("What Teachers Should
    Know About the Bootstrap", 2015, https://arxiv.org/abs/1411.5279). With fewer cases, the given cases often contain
    none of the failures. So the interval then also includes the effect of one more case with the worst or best possible
    score.

    Args:
        scores: as in `cv_score`.
        metric: section `metric` of the YAML.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: case id -> group. Use groups for cases that depend on each other, such as the cases of one patient.
            None means that all cases are independent.
        level: confidence level, e.g. 0.95.

    Returns:
        Lower and upper end of the interval; nan if there are fewer than two cases or groups.
    """
    table = ScoreTable.from_scores(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 0, "bootstrap")
    few = FewClusters.from_table(table, clusters)
    if few.count < FEW_CASES:
        return few.interval(generator.standard_exponential((n, few.count + 1)), level)
    return expanded_interval(
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
    """Compute a prediction interval for the score of a test set from the same distribution as the cases.

    The interval is wider than the interval of `bootstrap_interval`, because the test set is a random sample too. Each
    iteration draws a bootstrap sample of the cases, and then a test set from this sample. With fewer than `FEW_CASES`
    cases, the test set may also contain cases with the worst or best possible score; see `bootstrap_interval`.

    Args:
        scores: as in `cv_score`.
        metric: section `metric` of the YAML.
        n_test: number of test cases.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: as in `bootstrap_interval`. The groups of the test set are assumed to be as large on average as these
            groups.
        level: share of test sets whose score is expected to lie in the interval.

    Returns:
        Lower and upper end of the interval; nan if there are fewer than two cases or groups.
    """
    table = ScoreTable.from_scores(scores, metric)
    clusters = table.clusters(groups)
    generator = rng(seed, 0, 0, 1, "bootstrap")
    few = FewClusters.from_table(table, clusters)
    if few.count < FEW_CASES:
        chances = generator.standard_exponential((n, few.count + 1))
        size = max(1, round(n_test * few.count / max(1, len(table.ids))))
        test_sets = generator.multinomial(size, chances / chances.sum(axis=1, keepdims=True))
        return few.interval(test_sets.astype(np.float64), level)
    size = max(1, round(n_test * clusters.count / max(1, len(table.ids))))

    def draw(count: int) -> Draws:
        sample = generator.integers(0, clusters.count, (count, clusters.count))
        return np.take_along_axis(sample, generator.integers(0, clusters.count, (count, size)), axis=1)

    return expanded_interval(table, clusters, n, level, draw, size)


# Two runs on the same cases


class ScoreGain(NamedTuple):
    """Hold the improvement from one score to another on the same cases, with its confidence interval.

    All values have the metric's unit. An improvement is positive. If lower scores are better, as for a distance, the
    gain is the first score minus the second.

    Attributes:
        value: the improvement.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def as_difference(self, direction: Direction) -> ScoreGain:
        """Convert the gain to the second score minus the first, which is negative if a distance decreases."""
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
    """Compute the gain of `after` over `before` on the same cases, with its paired bootstrap interval.

    The interval is a bootstrap interval even for few cases. Most failures lower both scores and hardly change their
    difference. So failures that do not occur in the few cases matter less here than for the interval of a single score.
    Maskfold uses this interval to decide whether to accept tuned post-processing, ensemble weights and soups.

    A class that occurs in only one of the two tables counts in the scores of both tables. `cv_score` of a single table
    may leave out such a class. So the gain may differ from the difference of two results of `cv_score`.

    Args:
        before: scores as in `cv_score`.
        after: scores of the same cases and classes.
        metric: section `metric` of the YAML.
        n: number of bootstrap samples.
        seed: seed of the experiment.
        groups: as in `bootstrap_interval`.
        level: confidence level.

    Returns:
        The gain, which is positive if `after` is better. The ends of its interval are nan if there are fewer than two
        cases or groups.

    Raises:
        ValueError: the case ids of the two tables differ.
    """
    if metric.direction is Direction.LOWER:
        before, after = after, before
    tables = _paired_tables(before, after, metric)
    clusters = tables[0].clusters(groups)
    generator = rng(seed, 0, 0, 2, "bootstrap")
    low, high = expanded_interval(
        tables[0],
        clusters,
        n,
        level,
        lambda count: generator.integers(0, clusters.count, (count, clusters.count)),
        minus=(tables[1], tables[0]),
    )
    counted = classes_of(before, after)
    return ScoreGain(cv_score(after, metric, counted) - cv_score(before, metric, counted), low, high)


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

    Test sets of `n_test` cases are drawn with replacement from the given cases. The result is half the width of the
    interval that contains the share `level` of the differences on these test sets. For a mean over cases, the result is
    about 1.96 s / √n_test, where s is the standard deviation of the differences per case.

    Args:
        before: scores as in `cv_score`.
        after: scores of the same cases and classes.
        metric: section `metric` of the YAML.
        n_test: number of test cases.
        n: number of test sets that are drawn.
        seed: seed of the draws.
        groups: as in `prediction_interval`.
        level: share of test sets whose difference lies in the interval.

    Returns:
        Half the width of the interval; nan if there are fewer than two cases or groups.

    Raises:
        ValueError: the case ids of the two tables differ.
    """
    tables = _paired_tables(before, after, metric)
    clusters = tables[0].clusters(groups)
    generator = rng(seed, 0, 0, 3, "bootstrap")
    size = max(1, round(n_test * clusters.count / max(1, len(tables[0].ids))))
    low, high = expanded_interval(
        tables[0],
        clusters,
        n,
        level,
        lambda count: generator.integers(0, clusters.count, (count, size)),
        size,
        minus=(tables[1], tables[0]),
    )
    return (high - low) / 2


def _paired_tables(before: pd.DataFrame, after: pd.DataFrame, metric: MetricConfig) -> list[ScoreTable]:
    counted = classes_of(before, after)
    tables = [
        ScoreTable.from_scores(scores.sort_values("id", kind="stable"), metric, counted) for scores in (before, after)
    ]
    if tables[0].ids != tables[1].ids:
        raise ValueError("a paired difference requires scores of the same cases.")
    return tables


class PairedDifference(NamedTuple):
    """Hold the difference of a measure between two runs, on the cases that both runs predicted.

    Attributes:
        measure: name of the measure, e.g. `dice`.
        cls: name of the class. An empty name means all classes.
        cases: number of cases for which both runs have the measure.
        a: value of the first run.
        b: value of the second run.
        value: b − a.
        low: lower end of the 95 % paired bootstrap interval of `value`; nan if there are fewer than two cases.
        high: upper end of this interval.
        p: two-sided p-value of Wilcoxon's signed-rank test on the differences per case. The value is nan without
            cases, and 1 if all differences are 0.
        better: number of cases in which the second run is better.
        worse: number of cases in which the second run is worse. Cases with equal values are in neither number.
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
    """Compare a measure of two runs on the same cases.

    Args:
        a: rows of the first run with the columns id, class, dice and `measure`. The setting `average: global` also
            needs tp, fp and fn.
        b: rows of the second run with the same cases and classes.
        measure: name of the column to compare.
        metric: section `metric`, which defines the average over cases and classes. The default is the plain mean.
        cls: name of one class. An empty name means all classes.
        groups: group of each case, as in `bootstrap_interval`. With groups, Wilcoxon's test compares the mean of each
            group.
        seed: seed of the bootstrap.
        direction: whether higher or lower values of the measure are better. None means the direction of `metric`.

    Returns:
        The difference with its bootstrap interval and p-value, and the numbers of better and worse cases.
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
    """Return the mean `score` of each case over its classes, by case id; nan if all scores of the case are nan."""
    means: pd.Series[float] = rows.groupby("id")["score"].mean()
    return means


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test.

    Differences of zero are dropped, as in Wilcoxon (1945).

    Args:
        differences: one difference per pair.

    Returns:
        The p-value. The result is nan if there are no pairs, and 1 if all differences are 0.
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
    """Return the mean difference of each group; without groups, return the difference of each case."""
    if groups is None:
        return np.asarray(differences, np.float64)
    names = np.array([groups[str(case)] for case in differences.index])
    return np.asarray(differences.groupby(names).mean(), np.float64)
