"""Fit ensemble weights on the out-of-fold cases that all runs share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.inference.masks import to_masks
from competition.metrics.bootstrap import ScoreGain, cv_score, paired_gain
from competition.metrics.scoring import score_case
from competition.postprocessing.evaluation import scoring_pool, shared_case_rows
from competition.process import ProcessPool
from competition.runs.blend import Ensemble, WeightedMean
from competition.runs.oof import OofPredictions

if TYPE_CHECKING:
    import pandas as pd

Weights = tuple[float, ...]

COARSE_STEPS = 4  # the weights of the grid are multiples of 1/4
FINE_STEPS = 8  # the weights around the best point are multiples of 1/8


@dataclass(frozen=True)
class FittedWeights:
    """Hold the result of the search for weights.

    Attributes:
        weights: the weights to use: the fitted weights or, if the nested gain may be noise, equal weights.
        best_weights: the weights with the best score on all cases.
        single: score of each run alone.
        equal: score with equal weights.
        best: score of `best_weights` on the cases on which they were fitted (optimistic).
        nested: score over all cases when each fold uses the weights that were fitted on the other folds.
        gain: improvement of the nested score over the score with equal weights, with its 95 % interval.
        fold_weights: by fold, the weights that were fitted without this fold; empty if equal weights are used.
    """

    weights: Weights
    best_weights: Weights
    single: tuple[float, ...]
    equal: float
    best: float
    nested: float
    gain: ScoreGain
    fold_weights: dict[int, Weights]

    def report_lines(self, names: Sequence[str]) -> list[str]:
        """Return the report, line by line."""
        single = ", ".join(f"{name} {score:.4f}" for name, score in zip(names, self.single, strict=True))
        best = ", ".join(f"{weight:g}" for weight in self.best_weights)
        if self.weights == self.best_weights:
            verdict = "equal weights are the best" if len(set(self.best_weights)) == 1 else "fitted weights are used"
        else:
            verdict = "equal weights are used, because the gain is within its noise"
        return [
            f"each run alone: {single}",
            f"equal weights {self.equal:.4f}; best on all cases {self.best:.4f} ({best}); nested score "
            f"{self.nested:.4f} (gain {self.gain.value:+.4f}, 95 % {self.gain.low:+.4f} to {self.gain.high:+.4f}): "
            f"{verdict}",
        ]


def fit_weights(
    ensemble: Ensemble,
    seed: int,
    groups: dict[str, str] | None,
    context: Context = Context(),
    workers: int | None = None,
) -> FittedWeights:
    """Search the ensemble weights on a grid in steps of 1/4, then in steps of 1/8 around each fold's best point.

    Each point (one weight per run) is scored once on every case, with the competition's metric and without
    post-processing. For the nested score, the point for each fold is selected only on the cases of the other folds.

    Args:
        ensemble: the runs; the ensemble's weights are ignored.
        seed: seed of the bootstrap.
        groups: group of each case, for the interval.
        context: progress messages go to its log.
        workers: processes; None: one per core.
    """
    import pandas as pd

    count, metric = len(ensemble.runs), ensemble.comp.metric
    equal = tuple([1 / count] * count)
    ensemble = replace(ensemble, weights=equal)
    rows, fold_of = shared_case_rows(ensemble), ensemble.out_of_fold().fold_of()
    folds = sorted({fold_of[case] for case in rows})
    left_out: list[int | None] = [None, *folds]  # the weights are fitted without this fold; None: on all cases
    single_runs = [tuple(float(index == run) for index in range(count)) for run in range(count)]
    tables: dict[Weights, pd.DataFrame] = {}
    scorer = _WeightScorer([run.oof() for run in ensemble.runs], ensemble.comp, rows)
    with scoring_pool(scorer, len(rows), workers) as pool:

        def score(points: Sequence[Weights]) -> None:
            new = tuple(dict.fromkeys(point for point in points if point not in tables))
            if new:
                tables.update(_score_tables(pool, list(rows), new, fold_of))
                context.say(f"scored {len(tables)} weightings of {count} runs")

        def best(fold: int | None) -> Weights:
            def value(point: Weights) -> float:
                table = tables[point]
                return cv_score(table if fold is None else table[table["fold"] != fold], metric)

            return max(tables, key=lambda point: (metric.direction.rank(value(point)), point == equal))

        score([equal, *single_runs, *weight_grid(count, COARSE_STEPS)])
        score([point for fold in left_out for point in neighbouring_weights(best(fold), FINE_STEPS)])
        chosen = {fold: best(fold) for fold in left_out}
    several = len(folds) > 1
    nested = pd.concat([tables[chosen[fold if several else None]].query("fold == @fold") for fold in folds])
    gain = paired_gain(tables[equal], nested, metric, seed=seed, groups=groups)
    better = several and gain.low > 0
    return FittedWeights(
        chosen[None] if better else equal,
        chosen[None],
        tuple(cv_score(tables[point], metric) for point in single_runs),
        cv_score(tables[equal], metric),
        cv_score(tables[chosen[None]], metric),
        cv_score(nested, metric),
        gain,
        {fold: chosen[fold] for fold in folds} if better else {},
    )


def weight_grid(count: int, parts: int) -> Iterator[Weights]:
    """Yield all weights of `count` runs in steps of 1 / parts.

    For more than 4 runs, yield only weights that mix two runs.
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
    """Yield the point and its neighbours, in which 1 / parts of the weight is moved from one run to another."""
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
    """Score weighted means of the runs' predictions, case by case."""

    oofs: list[OofPredictions]
    comp: Any
    rows: dict[str, Any]

    def score(self, case: str, points: Sequence[Weights]) -> list[list[dict[str, Any]]]:
        """Return the score rows of each point, i.e. for each list of weights."""
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
    """Return the score table of each point over all cases."""
    import pandas as pd

    lines: dict[Weights, list[dict[str, Any]]] = {point: [] for point in points}
    for case, scores in zip(cases, pool.map(_WeightScorer.score, cases, points), strict=True):
        for point, rows in zip(points, scores, strict=True):
            lines[point] += [{"id": case, "fold": fold_of[case], **row} for row in rows]
    return {point: pd.DataFrame(rows) for point, rows in lines.items()}
