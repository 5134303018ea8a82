"""Two runs on the same cases: the difference of a measure, its interval, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config import Metric
from competition.scoring.summary import class_scores, cv_score, gain_interval

if TYPE_CHECKING:
    import pandas as pd

MEAN = Metric(name="dice", both_empty=None)  # how `summary` calls a mean over what is known


class Difference(NamedTuple):
    """A measure of two runs, on cases that both predicted.

    Attributes:
        measure: e.g. `dice`.
        cls: the class; empty: all of them.
        cases: with the measure in both.
        a: of the first run.
        b: of the second.
        value: b − a.
        low: lower end of its 95 % paired bootstrap interval; nan for fewer than two cases.
        high: upper end.
        p: of Wilcoxon's signed-rank test on the cases' differences, two-sided; nan without cases, 1 where all are 0.
        better: cases in which the second run is better.
        worse: in which it is worse; in the others the two are equal.
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


def difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    measure: str,
    metric: Metric = MEAN,
    cls: str = "",
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    lower_is_better: bool = False,
) -> Difference:
    """Compares two tables of scores.

    Args:
        a: rows of the first run, with the columns id, class, dice, the measure, and for `average: global` tp, fp, fn.
        b: the same cases and classes of the second run.
        measure: the column.
        metric: how cases and classes are put together; the mean by default.
        cls: one class; empty: all.
        groups: of each case, see `summary.bootstrap_interval`; the test then looks at the mean of each group.
        seed: of the bootstrap.
        lower_is_better: a distance.
    """
    known = "score" if measure == "score" else measure
    sides = []
    for table in (a, b):
        rows = table if not cls else table[table["class"] == cls]
        sides.append(rows if measure == "score" else rows.assign(score=rows[known], dice=rows[known]))
    gain = gain_interval(sides[0], sides[1], metric, seed=seed, groups=groups)
    values = [_value(rows, metric, cls) for rows in sides]
    each = per_case(sides[1]) - per_case(sides[0])
    each = each.dropna()
    sign = -1 if lower_is_better else 1
    return Difference(
        measure,
        cls,
        len(each),
        values[0],
        values[1],
        values[1] - values[0],
        gain.low,
        gain.high,
        wilcoxon_p(_by_group(each, groups)),
        int((sign * each > 0).sum()),
        int((sign * each < 0).sum()),
    )


def per_case(rows: pd.DataFrame) -> pd.Series[float]:
    """The mean of `score` over the classes of each case, by id; nan where no class has one."""
    means: pd.Series[float] = rows.groupby("id")["score"].mean()
    return means


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """p of Wilcoxon's signed-rank test, two-sided; pairs that are equal are left out, as Wilcoxon (1945) did.

    Args:
        differences: of the pairs.

    Returns:
        nan without any pair; 1 where all are equal.
    """
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return nan
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences[differences != 0]).pvalue)


def _value(rows: pd.DataFrame, metric: Metric, cls: str) -> float:
    if not rows["score"].notna().any():
        return nan
    return class_scores(rows, metric)[cls] if cls else cv_score(rows, metric)


def _by_group(each: pd.Series[float], groups: Mapping[str, str] | None) -> NDArray[np.float64]:
    """A difference of each case, or of each group: cases of one patient are no independent witnesses."""
    if groups is None:
        return np.asarray(each, np.float64)
    names = np.array([groups[str(case)] for case in each.index])
    return np.asarray(each.groupby(names).mean(), np.float64)
