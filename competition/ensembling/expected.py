"""Estimate the score of an ensemble on a test set of a given size, from its out-of-fold score, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from competition.config.postprocess import PostprocessConfig
from competition.context import Context
from competition.data.content.unchanged import check_truth_unchanged
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import cv_score, prediction_interval
from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.tuning import (
    TuningResult,
    load_tuning,
    save_tuning,
    score_own_steps,
    tune_postprocessing,
)
from competition.records import parse_json_object
from competition.runs.blend import Ensemble
from competition.runs.lock import lock_if_free
from competition.runs.run import Run
from competition.runs.summary import TUNING_FILE, run_scores, tuning_key

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExpectedScore:
    """Hold the expected score of an ensemble on a test set.

    Attributes:
        metric: name of the competition's metric.
        score: score on the out-of-fold cases. If post-processing was tuned, this is the nested score: each fold is
            scored with steps that were tuned on the other folds.
        low: lower end of the 95 % prediction interval for the score of the test set; nan for fewer than two cases.
        high: upper end of this interval.
        cases: number of out-of-fold cases.
        test_cases: number of cases of the test set.
        settings: the post-processing to use for the submission.
        tuning: result of tuning post-processing; None if it was not tuned.
        rows: scores of the out-of-fold cases, a table with one row per case and class.
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
    """Return one line for the user about each run that scores better alone than the whole ensemble.

    A run can be better because the weights are fitted before post-processing: tuned steps may improve a single run more
    than the ensemble. A run is not compared if its number of out-of-fold cases differs from that of the ensemble.

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
                f"note: {run.name}/{run.folder.name} alone has a better {metric.label} ({own:.4f}) than these "
                f"runs together ({expected.score:.4f})"
            )
    return lines


def estimate_score(
    ensemble: Ensemble,
    test_cases: int,
    context: Context = Context(),
    workers: int | None = None,
    *,
    store_untuned: bool = False,
) -> ExpectedScore:
    """Estimate the score of an ensemble on a test set, from its out-of-fold predictions.

    If `postprocess.tune` is true, post-processing is tuned first. For a single run, the tuning result is stored in the
    run's folder, except while another process works there. A stored result is used again if the labels of its cases
    have not changed.

    The estimate tends to be slightly pessimistic. An out-of-fold case is predicted by one network of each run. A test
    case is predicted by the networks of all folds together, which are usually better.

    Args:
        ensemble: the runs and their weights; the section `postprocess` of the first run is used.
        test_cases: number of cases of the test set.
        context: context whose log receives progress messages.
        workers: number of processes; None for one per core.
        store_untuned: whether to also store the score of a single run with the post-processing of its YAML if this is
            not tuned. A stored tuning result is never replaced by such a score.

    Raises:
        ChangedDataError: the labels of a case have changed since the run began.
        MaskfoldError: a prediction or the labels of a case cannot be read.
    """
    run, comp = ensemble.runs[0], ensemble.comp
    groups = run.groups()
    settings, seed = run.exp.postprocess, run.exp.seeds[0]
    single_run = len(ensemble.active) == 1 and ensemble.active[0][0] is run and not ensemble.fold_weights
    may_be_stored = single_run and settings.is_scored
    is_stored = may_be_stored and (settings.tune or (store_untuned and not _has_tuning_result(run)))
    result = _remembered_tuning(run, context) if may_be_stored else None
    if result is None:
        key = tuning_key(run) if is_stored else {}
        with OofScores(ensemble, workers) as evaluation:
            result = (
                tune_postprocessing(evaluation, seed, groups, context) if settings.tune else score_own_steps(evaluation)
            )
        if is_stored and not math.isnan(result.before):
            _remember_tuning(run, result, key, context)
    rows = result.rows
    low, high = prediction_interval(rows, comp.metric, test_cases, seed=seed, groups=groups)
    return ExpectedScore(
        comp.metric.name,
        cv_score(rows, comp.metric),
        low,
        high,
        int(rows["id"].nunique()),
        test_cases,
        result.settings,
        result if settings.tune else None,
        rows,
    )


def _remembered_tuning(run: Run, context: Context) -> TuningResult | None:
    """Return the stored tuning result of a run, after checking that the labels of its cases have not changed.

    Labels whose files are missing are not checked. Return None if there is no valid result.

    Raises:
        ChangedDataError: the labels of a case have changed since the run began.
    """
    tuning = load_tuning(run)
    if tuning is None:
        return None
    rows = run.oof().rows().values()
    if missing := check_truth_unchanged(run.exp.competition, rows):
        context.say(
            f"note: the masks of {missing} of {len(rows)} cases are missing, so they cannot be checked for changes; "
            "the stored result of post-processing is used"
        )
        return tuning
    return load_tuning(run, with_data=True)  # without a record of the data, the search is repeated


def _has_tuning_result(run: Run) -> bool:
    """Return whether the run's folder contains the result of a search, even if it is outdated or damaged."""
    try:
        return bool(parse_json_object((run.folder / TUNING_FILE).read_bytes())["settings"]["tune"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _remember_tuning(run: Run, tuning: TuningResult, key: dict[str, Any], context: Context) -> None:
    """Store the tuning result in the run's folder; if another process works there, only tell the user.

    Args:
        run: the run.
        tuning: the result.
        key: result of `tuning_key`, which was computed before the search.
        context: context whose log receives the message.
    """
    with lock_if_free(run.folder) as is_held:
        if is_held:
            save_tuning(run, tuning, key)
        else:
            context.say(
                f"note: the result of post-processing is not stored, because another process works in {run.folder}, or "
                "because the folder is not writable"
            )
