"""Promote the best trials of a study: train them on all folds, and compare them with the unchanged YAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from competition.context import Context
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import ScoreGain, cv_score, paired_gain
from competition.study.study import StudySession, best_trials
from competition.study.trial import check_study_data, trial_overrides, trial_runs_name, tune_if_set

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PromotionResult:
    """Hold the scores of a trial that was trained on all folds.

    Attributes:
        number: number of the trial.
        overrides: `key=value` overrides of the trial.
        run_folder: folder of the trial's run on all folds.
        score: score over all folds.
        unseen_score: score over the folds that the study did not use; None if the study used all folds.
        gain: gain over trial 0, with its paired 95 % interval; None for trial 0 itself. It is measured on the folds
            that the study did not use. If the study used all folds, it is measured on all cases, and is too optimistic,
            because the study selected the trial on the same cases.
    """

    number: int
    overrides: list[str]
    run_folder: str
    score: float
    unseen_score: float | None
    gain: ScoreGain | None


def promote_best_trials(session: StudySession, count: int, say: Callable[[str], None]) -> list[PromotionResult]:
    """Train the best trials of a study, and trial 0 (the unchanged YAML), on all folds.

    The study has selected the trials by their scores on the folds that it used, so these scores are too optimistic. The
    scores on all other folds are unbiased. Folds that are already finished are not trained again.

    Args:
        session: the study.
        count: number of best trials to train.
        say: function that receives messages for the user.

    Returns:
        The result of trial 0, then the results of the best trials.

    Raises:
        MaskfoldError: no trial is complete, trial 0 is not finished, or the training of a fold fails.
    """
    selected = list(best_trials(session, count))
    trials_0 = [trial for trial in session.finished if trial.user_attrs.get("own")]
    if not trials_0:
        raise MaskfoldError(
            f"Trial 0 of the study {session.name} is not finished, so the best trials cannot be compared with it.",
            "If another process runs trial 0, wait until it ends. Otherwise, repeat `maskfold study` with a higher "
            "--trials.",
        )
    trial_0, context = trials_0[0], Context(session.source.trust, say)
    selected_folds = session.source.load().folds.run
    used = set(selected_folds) if isinstance(selected_folds, list) else None  # None: all
    tables: dict[int, pd.DataFrame] = {}
    results: list[PromotionResult] = []
    for trial in [trial_0, *(trial for trial in selected if trial.number != trial_0.number)]:
        run, scores = _train(session, trial_overrides(trial), trial.number, context)
        tables[trial.number] = scores
        metric, groups = run.exp.competition.metric, run.groups()
        if used is not None and set(scores["fold"]) <= used:
            used = None  # the list contains every fold
        unseen, reference = scores, tables[trial_0.number]
        if used is not None:
            unseen, reference = (table[~table["fold"].isin(used)] for table in (unseen, reference))
        gain = None if trial is trial_0 else paired_gain(reference, unseen, metric, groups=groups)
        results.append(
            PromotionResult(
                trial.number,
                trial_overrides(trial),
                str(run.folder),
                cv_score(scores, metric),
                None if used is None else cv_score(unseen, metric),
                gain,
            )
        )
    return results


def _train(session: StudySession, overrides: list[str], number: int, context: Context) -> tuple[Any, pd.DataFrame]:
    """Train a trial on all folds, and tune its post-processing if `postprocess.tune` is set.

    Args:
        session: the study.
        overrides: `key=value` overrides of the trial.
        number: number of the trial.
        context: context with the trusted packages and the log.

    Returns:
        The run, and the table of its out-of-fold scores with one row per case and class.
    """
    from competition.postprocessing.tuning import load_tuning
    from competition.runs.summary import read_run_scores
    from competition.tracking.sync import MlflowSync
    from competition.training.cross_validate import locked_run, open_run, run_cv

    exp = session.source.load(overrides)
    exp = exp.model_copy(update={"folds": exp.folds.model_copy(update={"run": None})})  # None: all folds
    run = open_run(exp, trial_runs_name(session.source, exp.competition.name))
    check_study_data(session.source, run, session.data, session.files)
    context.say(f"trial {number} on all folds: {' '.join(overrides)}")
    with (
        locked_run(run, context.silent()) as run,
        MlflowSync(run.folder, exp, name=f"trial {number} · {run.folder.name}", study=session.folder),
    ):
        tune_if_set(run, run_cv(run, context.indented()), context.indented())
    tuned = load_tuning(run) if run.exp.postprocess.is_scored else None
    return run, read_run_scores(run.folder) if tuned is None else tuned.rows
