"""Estimate the test score of an ensemble from its out-of-fold score, with an interval for the host's test set size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from competition.config.postprocess import PostprocessConfig
from competition.context import Context
from competition.metrics.bootstrap import cv_score, prediction_interval
from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.tuning import TuningResult, load_tuning, save_tuning, tune_postprocessing
from competition.runs.blend import Ensemble

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExpectedScore:
    """The expected score of a test set.

    Attributes:
        metric: name of the competition's metric.
        score: score on the out-of-fold cases; the nested score if steps were tuned.
        low: lower end of the 95 % prediction interval; nan for fewer than two cases.
        high: upper end of it.
        cases: number of out-of-fold cases.
        test_cases: size of the test set.
        settings: the post-processing used.
        tuning: the result of the search for steps; None without one.
        rows: score rows by case and class.
    """

    metric: str
    score: float
    low: float
    high: float
    cases: int
    test_cases: int
    settings: PostprocessConfig
    tuning: TuningResult | None
    rows: pd.DataFrame


def estimate_score(
    ensemble: Ensemble, test_cases: int, context: Context = Context(), workers: int | None = None
) -> ExpectedScore:
    """Score an ensemble out of fold, after tuning its steps if `postprocess.tune` is set.

    Out-of-fold predictions come from single networks; a test case is predicted by all of them together, which is
    usually better, so the estimate tends to be low.

    Args:
        ensemble: the runs; the first one's `postprocess` is used.
        test_cases: size of the test set.
        context: its log takes progress messages.
        workers: processes; None: one per core.
    """
    run, comp = ensemble.runs[0], ensemble.comp
    groups = run.groups()
    settings, seed = run.exp.postprocess, run.exp.seeds[0]
    single_run = len(ensemble.active) == 1 and ensemble.active[0][0] is run and not ensemble.fold_weights
    tuning = load_tuning(run) if settings.tune and single_run else None
    if tuning is None:
        with OofScores(ensemble, workers) as evaluation:
            if settings.tune:
                tuning = tune_postprocessing(evaluation, seed, groups, context)
                if single_run:
                    save_tuning(run, tuning)
            else:
                own = [settings.steps_for(name) for name in comp.classes]
                evaluation.score({index: (steps,) for index, steps in enumerate(own)})
                rows = evaluation.score_table(lambda _, index: own[index])
    if tuning is not None:
        rows, settings = tuning.rows, tuning.settings
    low, high = prediction_interval(rows, comp.metric, test_cases, seed=seed, groups=groups)
    return ExpectedScore(
        comp.metric.name,
        cv_score(rows, comp.metric),
        low,
        high,
        int(rows["id"].nunique()),
        test_cases,
        settings,
        tuning,
        rows,
    )
