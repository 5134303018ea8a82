"""The page of a study, from trials and from a study's folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from competition.errors import MaskfoldError
from competition.report.study import write_study_page, write_study_report
from tests.report.conftest import Page, check_self_contained

BAD = "<script>alert(1)</script>"


def trial(number, value, state="complete", **more):
    values = value if isinstance(value, list) or value is None else [value]
    return {
        "number": number,
        "state": state,
        "values": values,
        "minutes": 1.5,
        "params": {"lr": 0.001 * (number + 1)},
        **more,
    }


def test_page_lists_trials_and_figures(tmp_path):
    Figure(figsize=(2, 1)).savefig(tmp_path / "history.png")
    trials = [
        trial(2, 0.75),
        trial(0, 0.5),
        trial(1, 0.9, "pruned"),
        trial(3, None, "failed", reason=f"out of memory {BAD}") | {"minutes": None, "params": {"lr": 0.1, BAD: BAD}},
    ]
    path = write_study_report(
        tmp_path,
        f"study {BAD}",
        trials,
        [tmp_path / "history.png", tmp_path / "importance.png"],
        tmp_path / "out" / "s.html",
        best=[2],
    )
    page = Page(path)
    check_self_contained(page)
    rows = page.tables[0][1:]
    assert page.tables[0][0] == ["trial", "state", "score", "minutes", "lr", BAD, "reason"]
    assert [row[:5] for row in rows] == [
        ["0", "complete", "0.5000", "1.5", "0.001"],
        ["1", "pruned", "0.9000", "1.5", "0.002"],
        ["2", "complete", "0.7500", "1.5", "0.003"],
        ["3", "failed", "", "", "0.1"],
    ]
    assert rows[3][5:] == [BAD, f"out of memory {BAD}"]
    assert bold_rows(page) == ["2"]
    assert "0.7500best score, trial 2" in page.text and "differs by +0.2500" in page.text
    assert "The figure importance.png is missing." in page.text
    assert (tmp_path / "out" / "s" / "history.png").read_bytes() == (tmp_path / "history.png").read_bytes()


def bold_rows(page: Page) -> list[str]:
    """Return the first cell of each bold row."""
    return [part.partition("</td>")[0].rpartition(">")[2] for part in page.source.split('<tr class="strong">')[1:]]


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """Return the folder of a study, relative to the working folder as in the command."""
    monkeypatch.chdir(tmp_path)
    folder = Path("mlruns") / "studies" / "demo2d-unet2d-01234567"
    folder.mkdir(parents=True)
    for name in ("slice", "history"):
        Figure(figsize=(2, 1)).savefig(folder / f"{name}.png")
    (folder / "experiment.yaml").write_text("seed: 1\n")
    record = {
        "objectives": ["score"],
        "best": [1],
        "trials": [trial(0, 0.5, own=True, run="a"), trial(1, 0.75, run="b")],
    }
    (folder / "trials.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("output", [None, Path("pages") / "mine.html"])
def test_page_of_a_relative_folder_shows_its_figures(study, output):
    page = Page(write_study_page(study, output or study / "report.html"))
    check_self_contained(page)
    assert page.tags.count("img") == 2 and "missing" not in page.text
    assert page.source.index('alt="history"') < page.source.index('alt="slice"')
    assert page.tables[0][0] == ["trial", "state", "score", "minutes", "lr"] and bold_rows(page) == ["1"]
    assert "Study demo2d-unet2d-01234567" in page.text and "the unchanged YAML, has the score 0.5000" in page.text


def test_best_trial_of_a_minimised_objective(study):
    record = json.loads((study / "trials.json").read_text())
    record.update(objectives=["minutes"], best=[0])
    (study / "trials.json").write_text(json.dumps(record))
    page = Page(write_study_page(study, study / "report.html"))
    assert bold_rows(page) == ["0"] and "0.5000best minutes, trial 0" in page.text
    assert page.tables[0][0] == ["trial", "state", "minutes", "minutes in total", "lr"]
    del record["best"]  # as a file that names none
    (study / "trials.json").write_text(json.dumps(record))
    assert bold_rows(Page(write_study_page(study, study / "report.html"))) == ["0"]


def test_study_without_a_finished_trial_is_an_error(study):
    (study / "trials.json").unlink()
    with pytest.raises(MaskfoldError, match=study.name) as error:
        write_study_page(study, study / "report.html")
    assert error.value.status == 1 and not (study / "report.html").exists()


def test_several_objectives_have_a_pareto_front(tmp_path):
    trials = [trial(0, [0.5, 12.0]), trial(1, [0.6, 20.0]), trial(2, [0.4, 30.0])]
    page = Page(write_study_report(tmp_path, "two", trials, [], tmp_path / "s.html", ["score", "peak_gib"], [0, 1]))
    assert page.tables[0][:2] == [
        ["trial", "state", "score", "peak_gib", "minutes", "lr"],
        ["0", "complete", "0.5000", "12.0000", "1.5", "0.001"],
    ]
    assert "best score" not in page.text and bold_rows(page) == ["0", "1"]
    assert "2 trials are on the Pareto front of score and peak_gib" in page.text


def test_states_of_trials_and_a_study_without_trials(tmp_path):
    state = SimpleNamespace(name="COMPLETE")
    page = Page(
        write_study_report(tmp_path, "one", [trial(0, 0.5, state), trial(1, None, "running")], [], tmp_path / "s.html")
    )
    assert [row[1] for row in page.tables[0][1:]] == ["complete", "running"] and "bold" not in page.text
    page = Page(write_study_report(tmp_path, "none", [], [], tmp_path / "s.html"))
    assert "No trial has started." in page.text
