"""Fit the weights of an ensemble on the cases of which all its runs have an out-of-fold prediction."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.inference.masks import to_masks
from competition.metrics.bootstrap import ScoreGain, classes_of, cv_score, paired_gain
from competition.metrics.scoring import score_case
from competition.postprocessing.evaluation import scoring_pool, shared_case_rows
from competition.process import ProcessPool
from competition.runs.blend import Ensemble, WeightedMean
from competition.runs.oof import OofPredictions

if TYPE_CHECKING:
    import pandas as pd

Weights = tuple[float, ...]

COARSE_STEPS = 4  # first, weights in multiples of 1/4 are tried
FINE_STEPS = 8  # then, 1/8 of the weight is moved between two runs, starting from the best weights


@dataclass(frozen=True)
class FittedWeights:
    """Hold the result of the search for weights.

    Attributes:
        weights: the weights to use, one per run: `best_weights` if the interval of `gain` lies above 0, otherwise equal
            weights.
        best_weights: the weights with the best score on all cases.
        single: score of each run alone.
        equal: score with equal weights.
        best: score of `best_weights` on the cases on which they were fitted; too optimistic.
        nested: score over all cases, where each fold uses the weights that were fitted on the other folds. If all cases
            are in one fold, no weights can be fitted on other folds, so this is the score with equal weights.
        gain: improvement of `nested` over `equal`, with its 95 % interval.
        fold_weights: for each fold, the weights that were fitted on the other folds. Empty if equal weights are used.
        one_fold: whether all cases are in one fold.
    """

    weights: Weights
    best_weights: Weights
    single: tuple[float, ...]
    equal: float
    best: float
    nested: float
    gain: ScoreGain
    fold_weights: dict[int, Weights]
    one_fold: bool = False

    def report_lines(self, names: Sequence[str]) -> list[str]:
        """Return the result as lines for the user.

        Args:
            names: names of the runs.
        """
        single = ", ".join(f"{name} {score:.4f}" for name, score in zip(names, self.single, strict=True))
        best = ", ".join(f"{weight:g}" for weight in self.best_weights)
        if self.weights == self.best_weights:
            verdict = "equal weights are the best" if len(set(self.best_weights)) == 1 else "fitted weights are used"
        elif self.one_fold:
            verdict = (
                "equal weights are used, because all cases are in one fold, so there are no other cases on which the "
                "fitted weights could be tested"
            )
        else:
            verdict = "equal weights are used, because the gain of the fitted weights is not significant"
        nested = (
            f"; nested score {self.nested:.4f} (gain {self.gain.value:+.4f} over equal weights, 95 % interval "
            f"{self.gain.low:+.4f} to {self.gain.high:+.4f})"
        )
        return [
            f"each run alone: {single}",
            (
                f"score with equal weights {self.equal:.4f}; best score on all cases {self.best:.4f}, with the "
                f"weights {best}{'' if self.one_fold else nested}: {verdict}"
            ),
        ]


def fit_weights(
    ensemble: Ensemble,
    seed: int,
    groups: dict[str, str] | None,
    context: Context = Context(),
    workers: int | None = None,
) -> FittedWeights:
    """Search for the weights that give an ensemble the best out-of-fold score.

    First, weights on a grid in steps of 1/4 are tried. Then, 1/8 of the weight is moved between two runs, starting from
    the best weights so far. All weights are scored on every case, with the competition's metric and without
    post-processing.

    The search uses all cases. For the nested score, the search is repeated once per fold, without the cases of this
    fold. If all cases are in one fold, equal weights are used.

    Args:
        ensemble: the runs; their current weights are ignored.
        seed: seed of the bootstrap.
        groups: group of each case by id, or None. The bootstrap for the interval of `gain` draws whole groups; with
            None, it draws single cases.
        context: context whose log receives progress messages.
        workers: number of processes; None for one per core.
    """
    import pandas as pd

    count, metric = len(ensemble.runs), ensemble.comp.metric
    equal = tuple([1 / count] * count)
    ensemble = replace(ensemble, weights=equal)
    rows, fold_of = shared_case_rows(ensemble), ensemble.out_of_fold().fold_of()
    folds = sorted({fold_of[case] for case in rows})
    left_out: list[int | None] = [None, *folds]  # fold that a search leaves out; None for the search on all cases
    single_runs = [tuple(float(index == run) for index in range(count)) for run in range(count)]
    tables: dict[Weights, pd.DataFrame] = {}
    scorer = _WeightScorer([run.oof() for run in ensemble.runs], ensemble.comp, rows)
    with scoring_pool(scorer, len(rows), workers) as pool:

        def score(points: Sequence[Weights]) -> None:
            new = tuple(dict.fromkeys(point for point in points if point not in tables))
            if new:
                tables.update(_score_tables(pool, list(rows), new, fold_of))
                context.say(f"scored {len(tables)} combinations of weights of {count} runs")

        def best(fold: int | None) -> Weights:
            used = {point: table if fold is None else table[table["fold"] != fold] for point, table in tables.items()}
            counted = classes_of(*used.values())

            def value(point: Weights) -> float:
                return cv_score(used[point], metric, counted)

            return max(used, key=lambda point: (metric.direction.rank(value(point)), point == equal))

        score([equal, *single_runs, *weight_grid(count, COARSE_STEPS)])
        score([point for fold in left_out for point in neighbouring_weights(best(fold), FINE_STEPS)])
        chosen = {fold: best(fold) for fold in left_out}
    several = len(folds) > 1
    nested = pd.concat([tables[chosen[fold] if several else equal].query("fold == @fold") for fold in folds])
    gain = paired_gain(tables[equal], nested, metric, seed=seed, groups=groups)
    counted = classes_of(*tables.values())
    better = several and gain.low > 0
    return FittedWeights(
        chosen[None] if better else equal,
        chosen[None],
        tuple(cv_score(tables[point], metric, counted) for point in single_runs),
        cv_score(tables[equal], metric, counted),
        cv_score(tables[chosen[None]], metric, counted),
        cv_score(nested, metric, counted),
        gain,
        {fold: chosen[fold] for fold in folds} if better else {},
        one_fold=not several,
    )


def weight_grid(count: int, parts: int) -> Iterator[Weights]:
    """Yield combinations of weights of several runs, in steps of 1 / `parts`; each combination adds up to 1.

    For up to 4 runs, all combinations are yielded. More runs have too many combinations, so only those are yielded in
    which one or two runs have a weight above 0.

    Args:
        count: number of runs.
        parts: number of steps from 0 to 1.
    """
    if count > 4:
        for first in range(count):
            for second in range(count):
                for share in range(parts + 1):
                    weights = [0.0] * count
                    weights[first] += share / parts
                    weights[second] += 1 - share / parts
                    yield tuple(weights)
        return
    for numbers in np.ndindex(*[parts + 1] * (count - 1)):
        if sum(numbers) <= parts:
            yield tuple(number / parts for number in (*numbers, parts - sum(numbers)))


def neighbouring_weights(point: Weights, parts: int) -> Iterator[Weights]:
    """Yield the given weights, and all weights that result if 1 / `parts` is moved from one run to another.

    A run with a smaller weight than 1 / `parts` gives all its weight.

    Args:
        point: the weights, one per run.
        parts: reciprocal of the weight that is moved.
    """
    yield point
    for source in range(len(point)):
        for target in range(len(point)):
            if source != target and point[source] > 0:
                moved = min(1 / parts, point[source])
                weights = list(point)
                weights[source] -= moved
                weights[target] += moved
                yield tuple(round(weight, 9) for weight in weights)


@dataclass(frozen=True)
class _WeightScorer:
    """Score weighted means of the predictions of several runs, case by case.

    Attributes:
        oofs: out-of-fold predictions of each run.
        comp: the competition.
        rows: rows of the case table by id.
    """

    oofs: list[OofPredictions]
    comp: Any
    rows: dict[str, Any]

    def score(self, case: str, points: Sequence[Weights]) -> list[list[dict[str, Any]]]:
        """Score one case with several lists of weights.

        Args:
            case: id of the case.
            points: the lists of weights, with one weight per run.

        Returns:
            For each list of weights, the scores of the case, one dictionary per class.
        """
        comp, row = self.comp, self.rows[case]
        truth = load_unchanged_mask(comp, row)
        objects = load_unchanged_objects(comp, row) if comp.instances else None
        probabilities = [oof.read(case) for oof in self.oofs]
        scores = []
        for point in points:
            mean = WeightedMean(comp)
            for values, weight in zip(probabilities, point, strict=True):
                if weight > 0:
                    mean.add(values, weight)
            scores.append(score_case(to_masks(mean.result(), comp), truth, comp, json.loads(row.spacing), objects))
        return scores


def _score_tables(
    pool: ProcessPool, cases: Sequence[str], points: tuple[Weights, ...], fold_of: dict[str, int]
) -> dict[Weights, pd.DataFrame]:
    """Score all cases with several lists of weights, in several processes.

    Args:
        pool: pool of processes that score cases.
        cases: ids of the cases.
        points: the lists of weights.
        fold_of: number of the fold that predicted each case, by id.

    Returns:
        For each list of weights, a table with one row per case and class.
    """
    import pandas as pd

    lines: dict[Weights, list[dict[str, Any]]] = {point: [] for point in points}
    for case, scores in zip(cases, pool.map(_WeightScorer.score, cases, points), strict=True):
        for point, rows in zip(points, scores, strict=True):
            lines[point] += [{"id": case, "fold": fold_of[case], **row} for row in rows]
    return {point: pd.DataFrame(rows) for point, rows in lines.items()}
