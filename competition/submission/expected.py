"""What score to expect: a blend's own on its out-of-fold cases, with an interval for a test set of the host's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from competition.config.postprocess import Postprocess
from competition.scoring.summary import cv_score, prediction_interval
from competition.submission.blend import Blend
from competition.submission.evaluate import Evaluation
from competition.submission.remembered import remember, remembered
from competition.submission.tune import Tuned, tune

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Expected:
    """The estimate for a test set.

    Attributes:
        metric: the competition's.
        score: on the out-of-fold cases; where something was tuned, nested.
        low: lower end of the 95 % prediction interval; nan for fewer than two cases.
        high: upper end of it.
        cases: out-of-fold cases it comes from.
        test_cases: the size of the test set.
        settings: the post-processing that is used.
        tuned: what a search found; None without one.
        rows: score rows by case and class.
    """

    metric: str
    score: float
    low: float
    high: float
    cases: int
    test_cases: int
    settings: Postprocess
    tuned: Tuned | None
    rows: pd.DataFrame


def expect(
    blend: Blend, test_cases: int, say: Callable[[str], None] = lambda _: None, workers: int | None = None
) -> Expected:
    """Scores a blend out of fold, after its steps were tuned where `postprocess.tune` asks for it.

    Scores of single networks are what the folds give; a test case is predicted by all of them together, which is
    better as a rule, so the estimate errs on the low side.

    Args:
        blend: the runs; the first one's `postprocess` counts.
        test_cases: of the test set.
        say: takes lines about the progress.
        workers: processes; None: one for each core.
    """
    run, comp = blend.runs[0], blend.comp
    groups = groups_of(blend)
    settings, seed = run.exp.postprocess, run.exp.seeds[0]
    alone = run if len(blend.active) == 1 and blend.active[0][0] is run and not blend.by_fold else None
    tuned = remembered(alone) if settings.tune and alone is not None else None
    if tuned is None:
        with Evaluation(blend, workers) as evaluation:
            if settings.tune:
                tuned = tune(evaluation, seed, groups, say)
                if alone is not None:
                    remember(alone, tuned)
            else:
                own = [settings.of(name) for name in comp.classes]
                evaluation.score({index: (steps,) for index, steps in enumerate(own)})
                rows = evaluation.table(lambda _, index: own[index])
    if tuned is not None:
        rows, settings = tuned.rows, tuned.settings
    low, high = prediction_interval(rows, comp.metric, test_cases, seed=seed, groups=groups)
    return Expected(
        comp.metric.name,
        cv_score(rows, comp.metric),
        low,
        high,
        int(rows["id"].nunique()),
        test_cases,
        settings,
        tuned,
        rows,
    )


def groups_of(blend: Blend) -> dict[str, str] | None:
    """The group of each case, where the competition has groups."""
    cases: Any = blend.runs[0].cases
    return dict(zip(cases["id"], cases["group"], strict=True)) if blend.comp.group else None
