"""Selection of the previous best run, and its difference from the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from competition.report.results import RunResults
from competition.report.run import experiment_section, find_previous_best, gain_over_run, get_end_time, yaml_key_lines
from competition.runs.find import find_run
from competition.runs.summary import write_summary
from tests.report.conftest import Page


def change(run, **values):
    summary = json.loads((run.folder / "summary.json").read_text())
    write_summary(run.folder, {**summary, **values})


def test_previous_best_is_among_runs_that_ended_before(made, tiny):
    runs = {
        name: made(tiny(2, f"training.batch_size={size}"), name, time=time)
        for size, (name, time) in enumerate((("low", 10), ("high", 20), ("mine", 30), ("later", 40)), 3)
    }
    for name, score in (("low", 0.3), ("high", 0.6), ("mine", 0.5), ("later", 0.9)):
        change(runs[name], score=score)
    assert {name: get_end_time(run.folder) for name, run in runs.items()} == {
        "low": 10,
        "high": 20,
        "mine": 30,
        "later": 40,
    }
    best = find_previous_best(runs["mine"])
    assert (
        best is not None and best.name == f"high/{runs['high'].folder.name}" and best.score == 0.6 and best.cases == 10
    )
    assert find_previous_best(runs["high"]).name.startswith("low/") and find_previous_best(runs["low"]) is None
    change(runs["high"], metric="iou")  # not comparable
    assert find_previous_best(runs["mine"]).name.startswith("low/")
    (runs["low"].folder / "fold_1" / "result.json").unlink()
    change(runs["low"], folds=json.loads((runs["low"].folder / "summary.json").read_text())["folds"][:1])
    assert find_previous_best(runs["mine"]) is None  # low is not finished
    (runs["high"].folder / "summary.json").write_text("{")
    assert find_previous_best(runs["mine"]) is None


def test_runs_of_other_competitions_are_ignored(made, tiny):
    made(tiny(2, "competition.name=other"), "other", time=1)
    assert find_previous_best(made(tiny(2), "mine", time=2)) is None


def test_runs_with_other_settings_of_the_metric_are_ignored(made, tiny):
    """Their scores, although of the same metric, have another meaning."""
    first = made(tiny(2, "competition.metric={name: fbeta, beta: 2}"), "first", time=1)
    made(tiny(2, "competition.metric={name: fbeta, beta: 0.5}"), "second", time=2)
    third = made(tiny(2, "competition.metric={name: fbeta, beta: 2}", "training.epochs=7"), "third", time=3)
    assert find_previous_best(third).folder == first.folder.resolve()


def test_run_of_selected_folds_counts_as_finished(made, tiny):
    first = made(tiny(2, "folds.run=[1]", "training.epochs=7"), "first", time=1)
    assert find_previous_best(made(tiny(2), "mine", time=2)).folder == first.folder.resolve()


def test_page_shows_the_yaml_difference_and_the_gain(made, tiny, tmp_path):
    made(tiny(2, "training.batch_size=3"), "before", noise=0.9, time=1)
    mine = made(tiny(2, "training.batch_size=5", "patch.foreground=0.25"), "after", noise=0.3, time=2)
    results = RunResults.load(mine)
    (tmp_path / "x.html").write_text(experiment_section(results))
    page = Page(tmp_path / "x.html")
    text = page.text
    assert "\n-  batch_size: 3\n" in text and "\n+  batch_size: 5\n" in text
    assert "\n-  foreground: 0.5\n" in text and "\n+  foreground: 0.25\n" in text
    assert text.count("\n- ") == 2 == text.count("\n+ ")
    assert '<span class="cut">-  batch_size: 3</span>' in page.source
    assert (mine.folder / "experiment.yaml").read_text() in text
    best = find_previous_best(mine)
    gain, cases, _ = gain_over_run(results, best.folder)
    other = RunResults.load(find_run(str(best.folder)))
    assert cases == 10 and gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(
        np.mean([np.nanmean(results.table["dice"]) - np.nanmean(other.table["dice"])]), abs=1e-9
    )
    assert f"{gain.value:+.4f} (95 % {gain.low:+.4f} to {gain.high:+.4f}" in text


def test_messages_for_the_first_run_and_an_equal_yaml(made, tiny):
    first = made(tiny(2), "first", time=1)
    assert "No earlier finished run of the competition demo2d" in experiment_section(RunResults.load(first))
    assert "The two YAML files are equal." in experiment_section(RunResults.load(made(tiny(2), "second", time=2)))


def test_key_lines_are_equivalent_yaml():
    text = "a: {b: [1, 2], c: {d: null, e: 'x: y'}}\nf: [-]\ng: {}\nh: [{i: 1}, {j: é}]\nk: 1.0e-3\nl: 'null'\n"
    lines = yaml_key_lines(text)
    assert lines[:5] == ["a:", "  b: [1, 2]", "  c:", "    d: null", "    e: 'x: y'"]
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load(text)
    assert yaml_key_lines("a:\n  b: [1,\n   2]\n") == ["a:", "  b: [1, 2]"]
