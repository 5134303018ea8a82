"""Pages of unusual runs: special names, absent classes, empty truth, objects, one fold, no fold, several seeds."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pandas as pd

from competition.data.masks import load_mask
from competition.report.learning import read_member_curves
from competition.report.results import RunResults
from competition.report.scores import scores_section
from competition.runs.oof import OofPredictions
from tests.report.conftest import Page, report, slow_dice, write_member


def test_names_with_html_are_escaped(made, tiny, demo2d, tmp_path):
    root = shutil.copytree(demo2d, tmp_path / "data")
    bad = "<img src=x onerror=alert(1)>$x_$ & 'q'"
    for folder in ("images", "masks"):
        first = sorted((root / folder).glob("*.png"))[0]
        first.rename(first.with_name(f"{bad}.png"))
    cls = ["<script>alert(1)<br>", "_$oops{$"]  # the second is mathematics that no one can draw
    # with noise that only this case has, it is the worst, so that it is on the page
    run = made(
        tiny(2, f"competition.root={root}", f"competition.classes={json.dumps(cls)}"),
        predict=lambda truth, row, rng: (np.stack([truth[0] == k for k in range(3)]) ^ (row.id == bad)).astype(
            np.float16
        ),
    )
    page = report(run)
    assert "<script>alert" not in page.source and "<img src=x" not in page.source
    assert page.text.count(bad) >= 1 and page.rows(cls[0], "class", "ECE")
    assert cls[0] in page.text and json.loads(page.scripts[0])["classes"] == cls


def test_class_without_cases_is_shown_as_absent(made, tiny):
    run = made(tiny(2, "competition.classes=[ring, grain, ghost]"), noise=0.0)
    page = report(run)
    rows = page.rows("ghost", "class")
    assert len(rows) == 4  # by class; by fold; calibration; thirds of sizes
    for row in rows:
        cells = [
            cell
            for name, cell in row.items()
            if name not in ("class", "missed", "cases with it", "false alarms")
            and cell
            and not (name == "cases without" and cell == str(len(run.cases)))
        ]
        assert cells and set(cells) == {"absent"}, row
    (row,) = page.rows("ghost", "class", "false alarms")
    assert (row["cases with it"], row["missed"], row["false alarms"]) == ("0", "0", "0")
    (all_cases,) = page.rows("all", "fold", "score (dice)")  # the mean is of the two that are there
    dice = slow_dice(run)
    assert dice[dice["class"] == "ghost"]["dice"].isna().all()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert all_cases["score (dice)"] == f"{summary['score']:.4f}"


def test_counts_of_missed_classes_and_false_alarms(made, tiny, demo2d, tmp_path):
    """One empty case has a false alarm, another one has an empty prediction, and a third case misses all classes."""
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
    assert "1 of 10 cases have no class in truth or prediction" in page.text
    (row,) = page.rows("ring", "class", "best threshold")
    assert 0.0 < float(row["Dice at argmax"]) < 1.0 and "Dotted: share of the cases without the class" in page.text


def test_overlapping_labels(made, tiny):
    run = made(
        tiny(2, "competition.labels=overlapping", "competition.metric.average=class"),
        predict=lambda truth, row, rng: np.clip(truth + rng.normal(0, 0.35, truth.shape), 0, 1).astype(np.float16),
    )
    page = report(run)
    oof, comp = OofPredictions(run), run.exp.competition
    for index, name in enumerate(comp.classes):
        values = []
        for row in oof.cases.itertuples(index=False):
            truth, mask = load_mask(comp, row)[index] == 1, oof.read(row.id)[index] > 0.5
            if truth.any():
                values.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
        (line,) = page.rows(name, "class", "Dice at 0.5")
        assert line["Dice at 0.5"] == f"{np.mean(values):.4f}" and line["ECE"] != "absent"
    assert "2 overlapping" in page.text and "(threshold 0.5)" in page.text


def test_page_of_a_competition_with_instances(made, nuclei):
    exp = nuclei("folds.k=2")

    def predict(truth, row, rng):
        inside = truth[0].astype(np.float16)
        return np.stack([1 - inside, 0.5 * inside, 0.5 * inside])  # the boundary belongs to the discs

    run = made(exp, predict=predict)
    page = report(run)
    (row,) = page.rows("disc", "class", "true objects")
    assert row["true objects"] == "32" and int(row["predicted"]) < 32
    assert "scored by object" in page.text and "boundary class is merged" in page.text
    (row,) = page.rows("disc", "class", "ECE")
    assert row["ECE"] == "0.0000" and row["Dice at argmax"] == "1.0000"  # merged, the prediction is the truth
    (row,) = page.rows("disc", "class", "smallest third")
    assert row["smallest third"].startswith("recall ")


def test_run_with_one_finished_fold(made, tiny):
    run = made(tiny(2, "folds.run=[1]"))
    page = report(run)
    assert "1 of 2 folds has no result (fold numbers: 0)" in page.text
    assert not page.rows("0", "fold", "score (dice)") and page.rows("1", "fold", "score (dice)")
    assert "Dice by class and fold" not in page.text


def test_fit_on_all_cases_has_no_score(made, tiny):
    run = made(tiny(2, "folds.run=full"))
    page = report(run)
    assert "fitted on all cases" in page.text
    assert page.rows("all cases (fit)", "fold", "epochs") and "Learning curves" in page.text
    assert "Calibration" not in page.text and "absent" not in page.text
    assert {path.stem for path in (run.folder / "report").glob("*.png")} == {"learning", "learning_classes"}


def test_additional_fit_on_all_cases_is_a_row_without_score(made, tiny, tmp_path):
    run = made(tiny(2))
    write_member(run, -1, 0, None, [{"train/loss": 1.0}], 1.0)
    (tmp_path / "x.html").write_text(scores_section(RunResults.load(run), tmp_path))
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
    assert sorted(read_member_curves(run)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
