"""A search for post-processing (`postprocess.json`) that was edited or damaged is refused, not taken for none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.config.postprocess import StepConfig
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import ScoreGain
from competition.postprocessing.tuning import TuningResult, load_tuning, save_tuning
from competition.report.results import RunResults
from competition.report.scores import postprocessing_section
from competition.runs.find import find_run
from competition.runs.run import Run
from competition.runs.summary import TUNING_FILE, TUNING_SCORES_FILE, run_scores
from competition.submission.label_files import label_file_settings


@pytest.fixture
def tuned(finished: Callable[..., Run], tiny: Callable[..., Any]) -> Run:
    """A run that `submit` would submit with a threshold."""
    run = finished(tiny(2, "postprocess.tune=true"))
    step = StepConfig(threshold=0.35)
    settings = run.exp.postprocess.model_copy(update={"steps": [step]})
    gain, rows = ScoreGain(0.1, 0.05, 0.15), RunResults.load(run).rows()
    save_tuning(run, TuningResult(settings, {"ring": (step,)}, 0.61111, 0.73333, 0.72222, gain, True, rows))
    assert label_file_settings([run]) == settings != run.exp.postprocess
    return run


def test_the_lines_of_a_search_without_an_interval_say_so(tiny: Callable[..., Any], tuned: Run) -> None:
    found = RunResults.load(tuned).rows()
    gain = ScoreGain(0.1, math.nan, math.nan)
    result = TuningResult(tuned.exp.postprocess, {}, 0.6, 0.8, 0.7, gain, False, found, gain)
    lines = " ".join(result.report_lines())
    assert "nan" not in lines and lines.count("no interval, because there are too few cases or groups") == 2


def edit_steps(run: Run) -> None:
    edit(run, settings=run.exp.postprocess.model_dump())


def edit_score(run: Run) -> None:
    edit(run, nested=0.98765)


def edit(run: Run, **changes: Any) -> None:
    path = run.folder / TUNING_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def damage(run: Run) -> None:
    (run.folder / TUNING_FILE).write_text("{")


def edit_table(run: Run) -> None:
    table = run.folder / TUNING_SCORES_FILE
    table.write_text(table.read_text() + "\n")


def remove_table(run: Run) -> None:
    (run.folder / TUNING_SCORES_FILE).unlink()


@pytest.mark.parametrize("change", [edit_steps, edit_score, damage, edit_table, remove_table])
def test_predictions_are_not_made_without_the_tuned_steps(tuned: Run, change: Callable[[Run], None]) -> None:
    """`predict`, `export` and `register` do not search again, so they would use the steps of the YAML."""
    change(tuned)
    with pytest.raises(MaskfoldError, match=r"postprocess\.json is damaged") as caught:
        label_file_settings([tuned])
    assert f"maskfold submit {tuned.folder}" in caught.value.hint


@pytest.mark.parametrize("change", [edit_steps, edit_score, damage, edit_table, remove_table])
def test_a_run_is_not_ranked_by_the_score_without_tuned_steps(tuned: Run, change: Callable[[Run], None]) -> None:
    found = run_scores(tuned)
    assert found is not None and found.value == 0.72222 and found.is_nested
    change(tuned)
    with pytest.raises(MaskfoldError, match=r"postprocess\.json is damaged"):
        run_scores(tuned)


def test_the_report_does_not_show_an_edited_score_as_that_of_an_older_search(tuned: Run) -> None:
    assert "nested score 0.7222" in postprocessing_section(tuned)
    edit_score(tuned)
    text = postprocessing_section(tuned)
    assert "0.9877" not in text and "postprocess.json cannot be read" in text


def test_a_search_of_other_settings_is_no_damage(tuned: Run) -> None:
    """The steps of the YAML were changed on purpose."""
    other = find_run(str(tuned.folder), ["postprocess.steps=[{fill_holes: true}]"])
    assert load_tuning(other) is None and label_file_settings([other]) == other.exp.postprocess
    (Path(tuned.folder) / TUNING_FILE).unlink()
    assert label_file_settings([tuned]) == tuned.exp.postprocess
