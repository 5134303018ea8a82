"""A study ranks trials by the score that counts, and never mixes tuned and untuned scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from competition.config.study import StudyConfig
from competition.runs.run import Run
from competition.runs.summary import RunScores, ScoreEstimate
from competition.study import trial as study_trial
from competition.study.trial import _as_ranked, measure_objectives


def make_run(exp: object) -> Run:
    return Run(Path("mlruns/runs/demo2d-tiny/0123456789ab"), exp, pd.DataFrame(), pd.DataFrame(), "demo2d-tiny")  # type: ignore[arg-type]


def complete(**attributes: bool) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(name="COMPLETE"), user_attrs=attributes)


@pytest.mark.parametrize(
    ("trials", "is_tuned", "expected"),
    [
        ([], True, True),
        ([], False, False),
        ([complete()], True, False),  # an older version began the study
        ([complete(tuned=True)], False, True),
        ([complete(tuned=False), complete(tuned=True)], True, False),
    ],
)
def test_all_trials_are_tuned_as_the_first_one(tiny, trials, is_tuned, expected) -> None:
    run = make_run(tiny(2, f"postprocess.tune={str(is_tuned).lower()}"))
    trial = SimpleNamespace(study=SimpleNamespace(get_trials=lambda deepcopy: trials))
    assert _as_ranked(run, trial).exp.postprocess.tune is expected


@pytest.mark.parametrize(
    ("trials", "is_scored"), [([], True), ([complete(tuned=False)], False), ([complete(postprocessed=True)], True)]
)
def test_all_trials_have_the_post_processing_of_the_yaml_or_none(tiny, trials, is_scored) -> None:
    run = make_run(tiny(2, "postprocess.steps=[{remove_small: 9}]"))
    trial = SimpleNamespace(study=SimpleNamespace(get_trials=lambda deepcopy: trials))
    assert _as_ranked(run, trial).exp.postprocess.is_scored is is_scored


def test_the_objective_of_a_tuned_trial_is_the_nested_score(tiny, monkeypatch) -> None:
    nested = ScoreEstimate(0.911)
    scores = RunScores("dice", "nested", nested, ScoreEstimate(0.788), nested)
    monkeypatch.setattr(study_trial, "run_scores", lambda run: scores)
    summary = SimpleNamespace(score=0.788, folds=[], dice={})
    config = StudyConfig.model_validate({"space": {"patch.foreground": {"low": 0.1, "high": 0.5}}})
    for is_tuned, value in ((True, 0.911), (False, 0.788)):
        run = make_run(tiny(2, f"postprocess.tune={str(is_tuned).lower()}"))
        assert measure_objectives(run, summary, config) == {"score": value}  # type: ignore[arg-type]
