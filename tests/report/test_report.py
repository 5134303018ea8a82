"""The page of a run against independent calculations."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from competition.cli.main import main
from competition.config.postprocess import StepConfig
from competition.context import Context
from competition.data.masks import load_mask
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import ScoreGain
from competition.postprocessing.tuning import TuningResult, save_tuning
from competition.report.calibration import calibration_section, sample_evenly
from competition.report.learning import cases_section, learning_section, rank_cases, read_member_curves, select_cases
from competition.report.results import RunResults
from competition.report.run import write_report
from competition.report.scores import postprocessing_section, score_headline
from competition.runs.find import find_run
from competition.runs.oof import OofPredictions
from competition.runs.summary import write_summary
from competition.training.cross_validate import summarize_run
from competition.viz.style import fold_colour
from tests.report.conftest import report, slow_dice

PICTURES = {"scores", "folds", "learning", "learning_classes", "calibration", "thresholds", "sizes"}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_numbers_on_the_page_match_the_predictions(made, tiny, dimensions):
    run = made(tiny(dimensions, "competition.metric.both_empty=null"), noise=0.6)
    page, table = report(run), slow_dice(run)
    classes = run.exp.competition.classes
    assert f"{table['dice'].mean():.4f}dice, out of fold · 95 % interval " in page.text
    summary = json.loads((run.folder / "summary.json").read_text())
    (all_cases,) = page.rows("all", "fold", "score (dice)")
    assert all_cases["score (dice)"] == f"{table['dice'].mean():.4f}" and all_cases["cases"] == str(len(run.cases))
    assert all_cases["95 % interval"] == f"{summary['low']:.3f} – {summary['high']:.3f}"
    for fold in (0, 1):
        (row,) = page.rows(str(fold), "fold", "score (dice)")
        mine = table[table["fold"] == fold]
        assert row["score (dice)"] == f"{mine['dice'].mean():.4f}" and row["cases"] == str(mine["id"].nunique())
        low, high = map(float, row["95 % interval"].split(" – "))
        assert low < mine["dice"].mean() < high and row["epochs"] == "3" and row["minutes"] == "1.5"
    for name in classes:
        (row,) = page.rows(name, "class", "fold 0", "all")
        for column, part in (
            ("fold 0", table["fold"] == 0),
            ("fold 1", table["fold"] == 1),
            ("all", table["fold"] >= 0),
        ):
            assert row[column].split(" ")[0] == f"{table[part & (table['class'] == name)]['dice'].mean():.4f}"
    names = {path.stem for path in (run.folder / "report").glob("*.png")}
    assert names >= PICTURES and any(name.endswith("_worst") for name in names)
    assert page.tags.count("h2") == 9 and "<h1>demo-tiny</h1>" in page.source


def test_ranking_of_cases(made, tiny):
    run = made(tiny(2), noise=0.9)
    page = report(run)
    order = slow_dice(run).groupby("id")["dice"].mean().dropna().sort_values(ascending=False)
    ranking = rank_cases(RunResults.load(run))
    assert [case for case, _ in ranking] == order.index.tolist()
    total = len(ranking)
    for place, kind in ((0, "best"), (1, "best"), (total - 3, "worst"), (total - 1, "worst")):
        assert f"{kind}, rank {place + 1} of {total} · case {order.index[place]} · fold" in page.text
    assert f"dice {order.iloc[0]:.4f} · Dice: " in page.text
    assert page.text.count(", rank ") == 7
    folder = run.folder / "report"
    for name in ("case_9_best.png", "case_of_mine.png"):
        (folder / name).write_bytes(b"")
    cases_section(RunResults.load(run), OofPredictions(run), folder)
    assert not (folder / "case_9_best.png").exists()  # from an earlier report
    assert (folder / "case_of_mine.png").exists() and len(list(folder.glob("case_*.png"))) == 8


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (0, ""),
        (1, "b"),
        (2, "bw"),
        (3, "bmw"),
        (4, "bmw"),
        (6, "bmw"),
        (7, "bbmmwww"),
        (9, "bbmmwww"),
        (200, "bbmmwww"),
    ],
)
def test_selected_cases_are_distinct(count, kinds):
    chosen = select_cases([(str(place), 1 - place / 300) for place in range(count)])
    assert "".join(one.kind[0] for one in chosen) == kinds
    assert len({one.case for one in chosen}) == len(chosen) and all(one.rank == int(one.case) + 1 for one in chosen)
    if count == 200:
        assert [one.rank for one in chosen] == [1, 2, 100, 101, 198, 199, 200]


def test_outdated_summary_is_ignored(made, tiny):
    """A fold that ended after the summary was written is included."""
    run = made(tiny(2))
    whole = json.loads((run.folder / "summary.json").read_text())
    write_summary(run.folder, {**whole, "score": 0.1111, "folds": whole["folds"][:1]})
    expected = pytest.approx([whole["score"], whole["low"], whole["high"]], abs=1e-12)
    assert list(RunResults.load(run).score()) == expected and f"<b>{whole['score']:.4f}</b>" in score_headline(
        RunResults.load(run)
    )
    (run.folder / "summary.json").write_text(json.dumps({**whole, "score": 0.1111}))  # edited by hand
    assert list(RunResults.load(run).score()) == expected
    (run.folder / "summary.json").unlink()
    (run.folder / "scores.csv").unlink()
    assert list(RunResults.load(run).score()) == expected
    assert not (run.folder / "summary.json").exists()  # reading writes nothing


def test_unfinished_fold_is_only_in_the_learning_curves(made, tiny, tmp_path):
    run = made(tiny(2))
    (run.folder / "fold_1" / "result.json").unlink()
    summarize_run(run)
    assert list(read_member_curves(run)) == [(0, 0), (1, 0)]
    assert RunResults.load(run).folds == [0] and RunResults.load(run).table["id"].nunique() == 5
    learning_section(run, tmp_path)
    picture = imread(tmp_path / "learning.png")[..., :3]
    for fold in (0, 1):
        assert (np.abs(picture - np.asarray(fold_colour(fold))).max(axis=-1) < 0.05).sum() > 100, fold


def test_postprocessing_is_shown_and_marked_if_outdated(made, tiny):
    run = made(tiny(2, "postprocess.tune=true"))
    assert postprocessing_section(run) == ""
    found = {"ring": (StepConfig(threshold=0.35), StepConfig(fill_holes=True)), "grain": ()}
    save_tuning(
        run,
        TuningResult(
            run.exp.postprocess,
            found,
            0.61111,
            0.73333,
            0.72222,
            ScoreGain(0.11111, 0.0512, 0.1634),
            True,
            RunResults.load(run).rows(),
        ),
    )
    text = postprocessing_section(run)
    assert "0.6111 before tuning, 0.7333 after tuning on the same cases; nested score 0.7222 (gain +0.1111" in text
    assert "95 % interval +0.0512 to +0.1634)" in text
    assert "ring: threshold 0.35, fill holes" in text and "grain: no step" in text and "outdated" not in text
    other = find_run(str(run.folder), ["postprocess.steps=[{fill_holes: true}]"])
    text = postprocessing_section(other)
    assert "nested score 0.7222" in text and "ring: threshold 0.35" in text and "outdated" in text
    (run.folder / "postprocess.json").write_text("{")
    assert "postprocess.json cannot be read or was edited" in postprocessing_section(run)


def test_calibration_samples_many_cases(made, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("competition.report.calibration.sample_evenly.__defaults__", (4,))
    run = made(tiny(2))
    words = calibration_section(RunResults.load(run), OofPredictions(run), tmp_path, Context())
    assert "Pixel probabilities of 4 of 10 cases, evenly sampled, in 15 bins." in words
    rows = [row for row in run.cases.itertuples(index=False) if row.id in sample_evenly(run.cases["id"].tolist(), 4)]
    pixels = sum(int((load_mask(run.exp.competition, row)[0] == 1).sum()) for row in rows)
    assert len(rows) == 4 and f'<td class="number">{pixels:,}</td>' in words


def test_report_command(made, tiny, tmp_path, monkeypatch, capsys):
    run = made(tiny(2))

    def maskfold(*words):
        monkeypatch.setattr(sys, "argv", ["maskfold", "report", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr()

    root = run.exp.competition.root
    status, said = maskfold(run.folder.name, f"competition.root={root}")
    assert status == 0 and (run.folder / "report.html").exists() and "report.html (a single file" in said.out, said
    assert (run.folder / "report" / "sizes.png").exists()
    places = []
    monkeypatch.setattr(
        "competition.report.run.write_report",
        lambda run, output, context: places.append(output) or run.folder / "report.html",
    )
    assert maskfold(run.folder, f"competition.root={root}", "-o", tmp_path / "there" / "page.html")[0] == 0
    assert places == [tmp_path / "there" / "page.html"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for words, named in (
        ((run.folder, run.folder), "1"),
        ((run.folder, "-o", "page.pdf"), "page.pdf"),
        (("nothing-like-it",), "nothing-like-it"),
    ):
        status, said = maskfold(*words)
        assert status == 2 and said.err.startswith("error: ") and named in said.err


def test_missing_images_are_an_error(made, tiny, tmp_path):
    run = made(tiny(2))
    moved = find_run(str(run.folder), [f"competition.root={tmp_path}"])
    with pytest.raises(MaskfoldError):
        write_report(moved, run.folder / "report.html")
    assert not (run.folder / "report.html").exists()


def test_a_refused_report_changes_no_figure(made, tiny, monkeypatch):
    run = made(tiny(2))
    write_report(run, run.folder / "report.html")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"}

    def refuse(*_):
        raise MaskfoldError("The masks changed.", "Restore them.")

    monkeypatch.setattr("competition.report.run.calibration_section", refuse)
    with pytest.raises(MaskfoldError, match="masks changed"):
        write_report(run, run.folder / "report.html")
    assert before == {
        path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"
    }
