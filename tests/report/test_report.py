"""The whole page of runs of all kinds, against numbers found another way."""

from __future__ import annotations

import base64
import json
import shutil
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from competition.cli.main import main
from competition.config import MaskfoldError
from competition.config.postprocess import Step
from competition.data.table import load_mask
from competition.report import write_report
from competition.report.calibration import calibration_section
from competition.report.canvas import fold_colour
from competition.report.cases import cases_section, choose, ranked
from competition.report.learning import learning_section, member_curves
from competition.report.reliability import evenly
from competition.report.results import Results
from competition.report.scores import headline, postprocessing, scores_section
from competition.scoring.summary import Gain
from competition.submission.remembered import remember
from competition.submission.tune import Tuned
from competition.training.cv import summarise
from competition.training.find import find_run
from competition.training.oof import OutOfFold
from tests.report.conftest import Page, loads_nothing, write_member

PICTURES = {"scores", "learning", "learning_classes", "calibration", "thresholds", "sizes"}


def report(run, **how) -> Page:
    page = Page(write_report(run, run.folder / "report.html", **how))
    loads_nothing(page)
    inside = {base64.b64decode(value.partition(",")[2]) for tag, name, value in page.attributes if (tag, name) == ("img", "src")}
    assert inside == {path.read_bytes() for path in (run.folder / "report").glob("*.png")}
    return page


def slow_dice(run):
    """Dice of each case and class, from the stored probabilities and the truth."""
    oof, found = OutOfFold(run), []
    for row in oof.cases.itertuples(index=False):
        truth, best = load_mask(run.exp.competition, row)[0], oof.read(row.id).argmax(axis=0)
        for index, name in enumerate(run.exp.competition.classes, 1):
            total = int((truth == index).sum() + (best == index).sum())
            found.append((row.id, oof.fold_of[row.id], name,
                          2 * int(((truth == index) & (best == index)).sum()) / total if total else np.nan))
    return pd.DataFrame(found, columns=["id", "fold", "class", "dice"])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_numbers_on_the_page_are_those_of_the_predictions(made, tiny, dimensions):
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
        for column, part in (("fold 0", table["fold"] == 0), ("fold 1", table["fold"] == 1), ("all", table["fold"] >= 0)):
            assert row[column].split(" ")[0] == f"{table[part & (table['class'] == name)]['dice'].mean():.4f}"
    names = {path.stem for path in (run.folder / "report").glob("*.png")}
    assert names >= PICTURES and any(name.endswith("_worst") for name in names)
    assert page.tags.count("h2") == 6 and "<h1>demo-tiny</h1>" in page.source


def test_cases_from_the_best_to_the_worst(made, tiny):
    run = made(tiny(2), noise=0.9)
    page = report(run)
    order = slow_dice(run).groupby("id")["dice"].mean().dropna().sort_values(ascending=False)
    found, of = ranked(Results.of(run))
    assert of == len(order) == len(found) and [case for case, _ in found] == order.index.tolist()
    for place, kind in ((0, "best"), (1, "best"), (of - 3, "worst"), (of - 1, "worst")):
        assert f"{kind}, number {place + 1} of {of} · case {order.index[place]} · fold" in page.text
    assert f"dice {order.iloc[0]:.4f} · Dice: " in page.text
    assert page.text.count(", number ") == 7
    folder = run.folder / "report"
    for name in ("case_9_best.png", "case_of_mine.png"):
        (folder / name).write_bytes(b"")
    cases_section(Results.of(run), OutOfFold(run), folder)
    assert not (folder / "case_9_best.png").exists()  # of an earlier page
    assert (folder / "case_of_mine.png").exists() and len(list(folder.glob("case_*.png"))) == 8


@pytest.mark.parametrize(("count", "kinds"), [
    (0, ""), (1, "b"), (2, "bw"), (3, "bmw"), (4, "bmw"), (6, "bmw"), (7, "bbmmwww"), (9, "bbmmwww"), (200, "bbmmwww")])
def test_few_cases_are_not_shown_twice(count, kinds):
    chosen = choose([(str(place), 1 - place / 300) for place in range(count)])
    assert "".join(one.kind[0] for one in chosen) == kinds
    assert len({one.case for one in chosen}) == len(chosen) and all(one.rank == int(one.case) + 1 for one in chosen)
    if count == 200:
        assert [one.rank for one in chosen] == [1, 2, 100, 101, 198, 199, 200]


def test_hostile_names_are_only_text(made, tiny, demo2d, tmp_path):
    root = shutil.copytree(demo2d, tmp_path / "data")
    bad = "<img src=x onerror=alert(1)>$x_$ & 'q'"
    for folder in ("images", "masks"):
        first = sorted((root / folder).glob("*.png"))[0]
        first.rename(first.with_name(f"{bad}.png"))
    cls = ["</td><script>alert(1)</script>$", "_b"]
    # with noise that only this case has, it is the worst, so that it is on the page
    run = made(tiny(2, f"competition.root={root}", f"competition.classes={json.dumps(cls)}"), predict=lambda truth, row, rng: (
        np.stack([truth[0] == k for k in range(3)]) ^ (row.id == bad)).astype(np.float16))
    page = report(run)
    assert "<script" not in page.source and "<img src=x" not in page.source
    assert page.text.count(bad) >= 1 and page.rows(cls[0], "class", "ECE")
    assert cls[0] in page.text and "script" not in page.tags


def test_an_absent_class_is_absent(made, tiny):
    run = made(tiny(2, "competition.classes=[ring, grain, ghost]"), noise=0.0)
    page = report(run)
    rows = page.rows("ghost", "class")
    assert len(rows) == 4  # by class; by fold; calibration; thirds of sizes
    for row in rows:
        cells = [cell for name, cell in row.items() if name not in ("class", "missed", "cases with it", "false alarms")
                 and cell and not (name == "cases without" and cell == str(len(run.cases)))]
        assert cells and set(cells) == {"absent"}, row
    (row,) = page.rows("ghost", "class", "false alarms")
    assert (row["cases with it"], row["missed"], row["false alarms"]) == ("0", "0", "0")
    (all_cases,) = page.rows("all", "fold", "score (dice)")  # the mean is of the two that are there
    dice = slow_dice(run)
    assert dice[dice["class"] == "ghost"]["dice"].isna().all()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert all_cases["score (dice)"] == f"{summary['score']:.4f}"


def test_empty_truth_missed_and_false_alarms(made, tiny, demo2d, tmp_path):
    """In one case no class is true and one is predicted, in one nothing is and nothing is found, in one all is missed."""
    root = shutil.copytree(demo2d, tmp_path / "data")
    names = sorted(path.stem for path in (root / "images").glob("*.png"))
    for name in names[:2]:
        mask = root / "masks" / f"{name}.png"
        cv2.imwrite(str(mask), np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)))

    def predict(truth, row, rng):
        found = np.stack([truth[0] == k for k in range(3)]).astype(np.float16)
        if row.id in (names[0], names[2]):
            found[:] = 0
            found[0] = 1
        if row.id == names[0]:
            found[:, 0, 0] = (0.25, 0.75, 0)
        return found

    exp = tiny(2, f"competition.root={root}", "folds.scheme=kfold")
    run = made(exp, predict=predict)
    page = report(run)
    truth = {row.id: load_mask(exp.competition, row)[0] for row in run.cases.itertuples(index=False)}
    for index, name in enumerate(exp.competition.classes, 1):
        there = [case for case, mask in truth.items() if (mask == index).any()]
        (row,) = page.rows(name, "class", "false alarms")
        assert row["cases with it"] == str(len(there)) and row["cases without"] == str(10 - len(there))
        assert row["missed"] == str(int(names[2] in there)) and row["false alarms"] == ("1" if index == 1 else "0")
    assert "1 of 10 cases have no class, in truth or prediction, and are left out." in page.text
    (row,) = page.rows("ring", "class", "best threshold")
    assert 0.0 < float(row["Dice at argmax"]) < 1.0 and "Dotted: of the cases without the class" in page.text


def test_overlapping_labels(made, tiny):
    run = made(tiny(2, "competition.labels=overlapping", "competition.metric.average=class"), predict=lambda truth, row, rng: (
        np.clip(truth + rng.normal(0, 0.35, truth.shape), 0, 1).astype(np.float16)))
    page = report(run)
    oof, comp = OutOfFold(run), run.exp.competition
    for index, name in enumerate(comp.classes):
        values = []
        for row in oof.cases.itertuples(index=False):
            truth, mask = load_mask(comp, row)[index] == 1, oof.read(row.id)[index] > 0.5
            if truth.any():
                values.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
        (line,) = page.rows(name, "class", "Dice at 0.5")
        assert line["Dice at 0.5"] == f"{np.mean(values):.4f}" and line["ECE"] != "absent"
    assert "2 overlapping" in page.text and "(threshold 0.5)" in page.text


def test_objects(made, nuclei):
    exp = nuclei("folds.k=2")

    def predict(truth, row, rng):
        inside = truth[0].astype(np.float16)
        return np.stack([1 - inside, 0.5 * inside, 0.5 * inside])  # the boundary belongs to the discs

    run = made(exp, predict=predict)
    page = report(run)
    (row,) = page.rows("disc", "class", "true objects")
    assert row["true objects"] == "32" and int(row["predicted"]) < 32
    assert "counted by object" in page.text and "The boundary class is shared out among the classes." in page.text
    (row,) = page.rows("disc", "class", "ECE")
    assert row["ECE"] == "0.0000" and row["Dice at argmax"] == "1.0000"  # merged, the prediction is the truth
    (row,) = page.rows("disc", "class", "smallest third")
    assert row["smallest third"].startswith("recall ")


def test_one_fold_of_several(made, tiny):
    run = made(tiny(2, "folds.run=[1]"))
    page = report(run)
    assert "1 of 2 folds are not finished (0): all numbers are of the others." in page.text
    assert not page.rows("0", "fold", "score (dice)") and page.rows("1", "fold", "score (dice)")
    assert "Dice by class and fold" not in page.text


def test_a_fit_on_all_cases_has_no_score_and_says_so(made, tiny):
    run = made(tiny(2, "folds.run=full"))
    page = report(run)
    assert "fitted on all cases: nothing was predicted out of fold, so it has no score of its own" in page.text
    assert page.rows("all cases (fit)", "fold", "epochs") and "Learning curves" in page.text
    assert "Calibration" not in page.text and "absent" not in page.text
    assert {path.stem for path in (run.folder / "report").glob("*.png")} == {"learning", "learning_classes"}


def test_a_fit_beside_folds_is_a_row_without_score(made, tiny, tmp_path):
    run = made(tiny(2))
    write_member(run, -1, 0, None, [{"train/loss": 1.0}], 1.0)
    (tmp_path / "x.html").write_text(scores_section(Results.of(run), tmp_path))
    (row,) = Page(tmp_path / "x.html").rows("all cases (fit)", "fold", "score (dice)")
    assert row["score (dice)"] == "" and row["cases"] == "" and row["epochs"] == "1"


def test_several_seeds_are_scored_by_their_mean(made, tiny):
    run = made(tiny(2, "seed=[1, 2]", "competition.metric.both_empty=null"), noise=0.9)
    page = report(run)
    assert (run.folder / "fold_0_seed_1" / "oof").is_dir()
    together = slow_dice(run)["dice"].mean()
    alone = [pd.read_csv(run.folder / folder / "scores.csv")["dice"].mean() for folder in ("fold_0", "fold_0_seed_1")]
    (row,) = page.rows("all", "fold", "score (dice)")
    assert row["score (dice)"] == f"{together:.4f}" and together > max(alone)
    (row,) = page.rows("0", "fold", "score (dice)")
    assert row["epochs"] == "3, 3" and row["minutes"] == "3.0"
    assert sorted(member_curves(run)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_stale_summary_is_not_believed(made, tiny):
    """A fold that ended after the last `maskfold cv` counts."""
    run = made(tiny(2))
    whole = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps({**whole, "score": 0.1111, "folds": whole["folds"][:1]}))
    expected = pytest.approx([whole["score"], whole["low"], whole["high"]], abs=1e-12)
    assert list(Results.of(run).score()) == expected and f"<b>{whole['score']:.4f}</b>" in headline(Results.of(run))
    (run.folder / "summary.json").unlink()
    (run.folder / "scores.csv").unlink()
    assert list(Results.of(run).score()) == expected
    assert not (run.folder / "summary.json").exists()  # looking changes nothing


def test_an_unfinished_fold_is_in_the_curves_only(made, tiny, tmp_path):
    run = made(tiny(2))
    (run.folder / "fold_1" / "result.json").unlink()
    summarise(run)
    assert list(member_curves(run)) == [(0, 0), (1, 0)]
    assert Results.of(run).folds == [0] and Results.of(run).table["id"].nunique() == 5
    learning_section(run, tmp_path)
    picture = imread(tmp_path / "learning.png")[..., :3]
    for fold in (0, 1):
        assert (np.abs(picture - np.asarray(fold_colour(fold))).max(axis=-1) < 0.05).sum() > 100, fold


def test_post_processing_is_told_and_marked_where_it_is_old(made, tiny):
    run = made(tiny(2, "postprocess.tune=true"))
    assert postprocessing(run) == []
    found = {"ring": (Step(threshold=0.35), Step(fill_holes=True)), "grain": ()}
    remember(run, Tuned(run.exp.postprocess, found, 0.61111, 0.73333, 0.72222, Gain(0.11111, 0.0512, 0.1634), True,
                        Results.of(run).rows()))
    text = " ".join(postprocessing(run))
    assert "0.6111 untouched, 0.7333 tuned on all cases, 0.7222 nested (gain +0.1111, 95 % +0.0512 to +0.1634)" in text
    assert "ring: threshold 0.35, fill holes" in text and "grain: no step" in text and "earlier state" not in text
    other = find_run(str(run.folder), ["postprocess.steps=[{fill_holes: true}]"])
    text = " ".join(postprocessing(other))
    assert "0.7222 nested" in text and "ring: threshold 0.35" in text and "earlier state of the run" in text
    (run.folder / "postprocess.json").write_text("{")
    assert "postprocess.json cannot be read." in " ".join(postprocessing(run))


def test_many_cases_are_sampled_and_the_page_says_so(made, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("competition.report.reliability.evenly.__defaults__", (4,))
    run = made(tiny(2))
    words = calibration_section(Results.of(run), OutOfFold(run), tmp_path, lambda _: None)
    assert "Pixel probabilities of 4 of 10 cases, evenly chosen, in 15 bins." in words
    rows = [row for row in run.cases.itertuples(index=False) if row.id in evenly(run.cases["id"].tolist(), 4)]
    pixels = sum(int((load_mask(run.exp.competition, row)[0] == 1).sum()) for row in rows)
    assert len(rows) == 4 and f'<td class="number">{pixels:,}</td>' in words


def test_the_command(made, tiny, tmp_path, monkeypatch, capsys):
    run = made(tiny(2))

    def maskfold(*words):
        monkeypatch.setattr(sys, "argv", ["maskfold", "report", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr()

    root = run.exp.competition.root
    status, said = maskfold(run.folder.name, f"competition.root={root}")
    assert status == 0 and (run.folder / "report.html").exists() and "whole in itself" in said.out, said
    assert (run.folder / "report" / "sizes.png").exists()
    places = []
    monkeypatch.setattr("competition.report.write_report", lambda run, output, say: places.append(output) or
                        run.folder / "report.html")
    assert maskfold(run.folder, f"competition.root={root}", "-o", tmp_path / "there" / "page.html")[0] == 0
    assert places == [tmp_path / "there" / "page.html"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for words, reason in (((run.folder, run.folder), "one run"), ((run.folder, "-o", "page.pdf"), "ends in .html"),
                          (("nothing-like-it",), "is no run")):
        status, said = maskfold(*words)
        assert status == 2 and said.err.startswith("error: ") and reason in said.err


def test_missing_images_are_an_error_with_a_cure(made, tiny, tmp_path):
    run = made(tiny(2))
    moved = find_run(str(run.folder), [f"competition.root={tmp_path}"])
    with pytest.raises(MaskfoldError):
        write_report(moved, run.folder / "report.html")
    assert not (run.folder / "report.html").exists()
