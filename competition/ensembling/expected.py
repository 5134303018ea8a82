"""Estimate the test score of an ensemble from its out-of-fold score, with an interval for a test set of N cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from competition.config.postprocess import PostprocessConfig
from competition.context import Context
from competition.data.content.unchanged import check_truth_unchanged
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import cv_score, prediction_interval
from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.tuning import TuningResult, load_tuning, save_tuning, tune_postprocessing
from competition.runs.blend import Ensemble
from competition.runs.lock import lock_if_free
from competition.runs.run import Run
from competition.runs.summary import run_scores, tuning_key

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExpectedScore:
    """Hold the expected score of a test set.

    Attributes:
        metric: name of the competition's metric.
        score: score on the out-of-fold cases; if post-processing was tuned, the nested score.
        low: lower end of the 95 % prediction interval; nan for fewer than two cases.
        high: upper end of the interval.
        cases: number of out-of-fold cases.
        test_cases: size of the test set.
        settings: the post-processing that is used.
        tuning: result of tuning the post-processing steps; None without tuning.
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


def better_alone(ensemble: Ensemble, expected: ExpectedScore) -> list[str]:
    """Return a line for each run of an ensemble whose stored score, for as many cases, is better than the ensemble's.

    Weights are fitted before post-processing. So tuned steps may improve a single run by more than the ensemble.

    Args:
        ensemble: the runs and their weights.
        expected: the expected score of the ensemble.
    """
    lines: list[str] = []
    metric = ensemble.comp.metric
    for run, _ in ensemble.active if len(ensemble.active) > 1 else []:
        try:
            scores = run_scores(run)
        except MaskfoldError:  # a damaged record of one run must not stop the submission
            continue
        if scores is None or scores.cases != expected.cases:
            continue
        own = scores.counted.value
        if metric.direction.rank(own) > metric.direction.rank(expected.score):
            lines.append(
                f"note: {run.name}/{run.folder.name} alone has a better {metric.label}, {own:.4f}, than these runs "
                f"together, {expected.score:.4f}"
            )
    return lines


def estimate_score(
    ensemble: Ensemble, test_cases: int, context: Context = Context(), workers: int | None = None
) -> ExpectedScore:
    """Score an ensemble out of fold; first tune its post-processing if `postprocess.tune` is set.

    A single network predicts each out-of-fold case. All networks together predict a test case, and usually better, so
    the estimate tends to be too low (for a distance: too high).

    The tuning result is stored in the run's folder, unless another process works there. A stored result is used again
    only if the truth of its cases has not changed.

    Args:
        ensemble: the runs; `postprocess` of the first run is used.
        test_cases: size of the test set.
        context: progress messages go to its log.
        workers: number of processes; None: one per core.

    Raises:
        ChangedDataError: the truth of a case has changed since the run began.
        MaskfoldError: a prediction or the truth of a case cannot be read.
    """
    run, comp = ensemble.runs[0], ensemble.comp
    groups = run.groups()
    settings, seed = run.exp.postprocess, run.exp.seeds[0]
    single_run = len(ensemble.active) == 1 and ensemble.active[0][0] is run and not ensemble.fold_weights
    tuning = _remembered_tuning(run, context) if settings.tune and single_run else None
    if tuning is None:
        with OofScores(ensemble, workers) as evaluation:
            if settings.tune:
                key = tuning_key(run) if single_run else {}
                tuning = tune_postprocessing(evaluation, seed, groups, context)
                if single_run:
                    _remember_tuning(run, tuning, key, context)
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


def _remembered_tuning(run: Run, context: Context) -> TuningResult | None:
    """Return the stored tuning result of a run, after checking the truth of its cases; None if there is no result.

    Raises:
        ChangedDataError: the truth of a case has changed since the run began.
    """
    tuning = load_tuning(run)
    if tuning is None:
        return None
    rows = run.oof().rows().values()
    if missing := check_truth_unchanged(run.exp.competition, rows):
        context.say(f"note: the masks of {missing} of {len(rows)} cases are missing, so the remembered search is used")
        return tuning
    return load_tuning(run, with_data=True)  # without a record of the data, the search is repeated


def _remember_tuning(run: Run, tuning: TuningResult, key: dict[str, Any], context: Context) -> None:
    """Save the tuning result of a run if no other process works in the run's folder."""
    with lock_if_free(run.folder) as is_held:
        if is_held:
            save_tuning(run, tuning, key)
        else:
            context.say(f"note: the search is not remembered, because another process works in {run.folder}")
