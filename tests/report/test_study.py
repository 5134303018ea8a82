"""The page of a study, from plain data."""

from __future__ import annotations

from types import SimpleNamespace

from matplotlib.figure import Figure

from competition.report import write_study_report
from competition.report.study import best_trial
from tests.report.conftest import Page, loads_nothing

BAD = "<script>alert(1)</script>"


def trial(number, score, state="complete", **more):
    return {"number": number, "state": state, "score": score, "minutes": 1.5, "params": {"lr": 0.001 * (number + 1)}, **more}


def test_a_table_of_trials_and_figures(tmp_path):
    Figure(figsize=(2, 1)).savefig(tmp_path / "history.png")
    trials = [trial(2, 0.75), trial(0, 0.5), trial(1, 0.9, "pruned"),
              trial(3, None, "failed", reason=f"out of memory {BAD}") | {"minutes": None, "params": {"lr": 0.1, BAD: BAD}}]
    path = write_study_report(tmp_path, f"study {BAD}", trials, [tmp_path.joinpath("history.png").relative_to(tmp_path),
                                                                tmp_path / "importance.png"], tmp_path / "out" / "s.html")
    page = Page(path)
    loads_nothing(page)
    rows = page.tables[0][1:]
    assert page.tables[0][0] == ["trial", "state", "score", "minutes", "lr", BAD, "reason"]
    assert [row[:5] for row in rows] == [["0", "complete", "0.5000", "1.5", "0.001"], ["1", "pruned", "0.9000", "1.5", "0.002"],
                                         ["2", "complete", "0.7500", "1.5", "0.003"], ["3", "failed", "", "", "0.1"]]
    assert rows[3][5:] == [BAD, f"out of memory {BAD}"]
    assert '<tr class="strong"><td class="number">2</td>' in page.source.replace('class="word">2', 'class="number">2')
    assert "0.7500the best score, of trial 2" in page.text and "the best gains +0.2500" in page.text
    assert "The figure importance.png is missing." in page.text
    assert (tmp_path / "out" / "s" / "history.png").read_bytes() == (tmp_path / "history.png").read_bytes()


def test_several_objectives_have_no_single_best(tmp_path):
    trials = [trial(0, [0.5, 12.0]), trial(1, [0.6, 20.0])]
    assert best_trial(trials) is None
    page = Page(write_study_report(tmp_path, "two", trials, [], tmp_path / "s.html"))
    assert page.tables[0][1][2] == "0.5000, 12.0000" and "best score" not in page.text and "in bold" not in page.text


def test_states_of_optuna_and_nothing_finished(tmp_path):
    state = SimpleNamespace(name="COMPLETE")
    assert best_trial([trial(0, 0.5, state), trial(1, 0.25, state), trial(2, 0.5, state)])["number"] == 0
    assert best_trial([trial(0, float("nan")), trial(1, 0.9, "running")]) is None
    page = Page(write_study_report(tmp_path, "none", [], [], tmp_path / "s.html"))
    assert "No trial has begun." in page.text
