"""Paired comparison of two runs: measures of their stored masks, and invalid inputs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from competition.config.postprocess import PostprocessConfig
from competition.data.masks import load_mask
from competition.ensembling.compare import compare_two_runs
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.metrics.overlap import count_overlap, dice
from competition.report.compare import write_comparison
from competition.runs.blend import Ensemble
from competition.runs.oof import OofStore
from competition.runs.run import load_run
from competition.training.cross_validate import summarize_run
from tests.postprocessing.test_tuning import islands


@pytest.mark.parametrize("dimensions", [2, 3])
def test_numbers_are_those_of_the_masks(finished, tiny, dimensions, tmp_path):
    runs = [
        finished(tiny(dimensions, *words), f"demo{dimensions}d-tiny", noise=noise, seed=place)
        for place, (words, noise) in enumerate(((["postprocess.tune=false"], 0.5), (["seed=2"], 0.7)))
    ]
    found = compare_two_runs(*runs)
    overall = found.differences[0]
    assert (overall.a, overall.b) == pytest.approx([summarize_run(run).score for run in runs], abs=1e-9)
    comp = runs[0].exp.competition
    rows = runs[0].rows()
    case = next(iter(found.rows))
    truth = load_mask(comp, rows[case])[0]
    for side, table in zip((found.a, found.b), found.tables, strict=True):
        probabilities = side.oof.read(case)
        for index, name in enumerate(comp.classes):
            mask = probabilities.argmax(axis=0) == index + 1
            line = table[(table["id"] == case) & (table["class"] == name)].iloc[0]
            assert line["dice"] == pytest.approx(dice(*count_overlap(mask, truth == index + 1)), nan_ok=True)
    table = found.table()
    assert len(table) == len(runs[0].cases) * len(comp.classes)
    known = table["dice_difference"]
    np.testing.assert_allclose(known, table["dice_b"] - table["dice_a"])
    means = table.groupby("id")["score_difference"].mean()
    expected = means.abs().sort_values(ascending=False).index.tolist()
    assert [name for name, _ in found.most_changed(3)] == expected[:3]
    assert found.most_changed(1)[0][1] == pytest.approx(means[expected[0]])
    assert any("the folds of the runs differ" in note for note in found.notes), "the seed deals other folds"

    page = write_comparison(found, tmp_path / "out", 2)
    pictures = sorted(path.name for path in (tmp_path / "out" / "compare").iterdir())
    assert pictures == ["case_1.png", "case_2.png", "differences.png"]
    assert expected[0] in page.read_text() and "Wilcoxon" in page.read_text()
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out" / "cases.csv", dtype={"id": str}), table.astype({"id": str}), check_dtype=False
    )
    assert write_comparison(found, tmp_path / "out", 1) == page
    assert not (tmp_path / "out" / "compare" / "case_2.png").exists(), "of an earlier page"


def test_a_measure_that_is_the_metric_is_listed_once(finished, tiny):
    metric = "competition.metric={name: hd95, average: case_class}"
    found = compare_two_runs(finished(tiny(2, metric), noise=0.4), finished(tiny(2, metric, "seed=2"), noise=0.8))
    assert [line.measure for line in found.differences if line.cls == ""] == ["score", "dice", "surface_dice"]


def test_steps_are_each_runs_own(finished, tiny):
    plain = finished(tiny(2), noise=1.2)
    stepped = finished(tiny(2, "seed=2"), noise=1.2)
    steps = load_run(stepped.folder, overrides=["postprocess.steps=[{remove_small: 5000}]"])
    found = compare_two_runs(plain, steps)
    assert "no post-processing" in found.notes[0] and "the steps of its YAML" in found.notes[1]
    assert (found.tables[1]["tp"] == 0).all() and found.tables[0]["tp"].sum() > 0, "nothing is that large"
    tuned = load_run(stepped.folder, overrides=["postprocess.tune=true"])
    assert "A and B have none" in compare_two_runs(plain, tuned).notes[-1]


def test_a_run_tuned_on_the_cases_is_not_better_than_itself(finished, tiny):
    """Tuned masks next to raw ones would be far better (p = 0.002), although the networks are the same."""
    run = finished(tiny(2, "postprocess.tune=true"), noise=0.1, spoil=islands)
    raw = replace(one_again(run), exp=run.exp.model_copy(update={"postprocess": PostprocessConfig(tune=False)}))
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20).tuning
    assert tuned.kept and tuned.nested > tuned.before + 0.02
    for pair in ((run, raw), (raw, run)):
        found = compare_two_runs(*pair)
        assert all((line.value, line.better, line.worse, line.p) == (0, 0, 0, 1) for line in found.differences)
        assert found.differences[0].a == pytest.approx(tuned.before, abs=1e-9)
        assert "none of which was tuned on these cases" in found.notes[-1]


def test_two_tuned_runs_have_the_steps_of_the_other_folds(finished, tiny, monkeypatch):
    """Fold 1 alone has islands, so only the steps found on fold 0, which know none, meet them."""
    exp = tiny(2, "postprocess.tune=true")
    run = finished(exp, noise=0.1, spoil=islands)
    monkeypatch.setattr("competition.postprocessing.tuning.MIN_GAIN", -1.0)
    monkeypatch.setattr("competition.postprocessing.tuning.is_significant", lambda _: True)
    store = OofStore(run.folder / "fold_0" / "oof", exp.inference.store)
    smooth = finished(exp, "demo2d-smooth", noise=0.1)
    clean = OofStore(smooth.folder / "fold_0" / "oof", exp.inference.store)
    for case in store.ids():
        store.write(case, clean.read(case))
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20).tuning
    assert tuned.kept and tuned.nested < tuned.after - 0.02
    found = compare_two_runs(run, one_again(run))
    assert "tuned on the other folds" in found.notes[-1]
    assert found.differences[0].a == found.differences[0].b == pytest.approx(tuned.nested, abs=1e-9)
    file = run.folder / "postprocess.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "nested_steps": {}}))  # as an older version wrote it
    notes = compare_two_runs(run, one_again(run)).notes
    assert "none of which was tuned on these cases" in notes[-1] and "A and B have none" in notes[-1]


def test_one_run_is_not_better_than_itself(finished, tiny):
    one = finished(tiny(2))
    found = compare_two_runs(one, one_again(one))
    assert not any("folds of the runs differ" in note for note in found.notes)
    part = compare_two_runs(one, fold_0_of(one))
    assert len(part.rows) < len(found.rows) and "that both runs predicted" in part.notes[2] and len(part.notes) == 4
    assert all((line.value, line.better, line.worse, line.p) == (0, 0, 0, 1) for line in found.differences)
    assert found.most_changed(10) == []


def one_again(run):
    """A copy of a run in another folder."""
    folder = Path(shutil.copytree(run.folder, run.folder.with_name("copy"), dirs_exist_ok=True))
    return replace(run, folder=folder)


def fold_0_of(run):
    """A copy of a run in which fold 1 is not finished."""
    folder = Path(shutil.copytree(run.folder, run.folder.with_name("part")))
    (folder / "fold_1" / "result.json").unlink()
    return replace(run, folder=folder)


def test_a_class_that_only_one_run_imagines(finished, tiny, demo2d, tmp_path):
    import cv2

    data = Path(shutil.copytree(demo2d, tmp_path / "data"))
    file = sorted((data / "masks").iterdir())[0]
    truth = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(file), np.where(truth == 1, 0, truth))

    def all_background(soft, _):
        soft = np.zeros_like(soft)
        soft[0] = 1
        return soft

    def one_pixel(soft, _):
        soft = all_background(soft, _)
        soft[:, 0, 0] = [0, 1, 0]
        return soft

    exp, other = (tiny(2, f"competition.root={data}", f"seed={seed}") for seed in (1, 2))
    silent, loud = finished(exp, spoil=all_background), finished(other, spoil=one_pixel)
    found = compare_two_runs(silent, loud)
    comp, rows = exp.competition, silent.rows()
    a, b = found.tables
    absent = [case for case, row in rows.items() if not (load_mask(comp, row)[0] == 1).any()]
    assert file.stem in absent and len(absent) < len(rows)
    for table, value in ((a, (1.0, 0.0)), (b, (0.0, None))):
        lines = table[table["id"].isin(absent) & (table["class"] == comp.classes[0])]
        assert (lines["dice"] == value[0]).all()
        assert value[1] is None or (lines["hd95"] == value[1]).all()
    there = [case for case in rows if case not in absent]
    missed = a[a["id"].isin(there) & (a["class"] == comp.classes[0])]
    diagonal = np.linalg.norm(json.loads(rows[there[0]].shape))
    assert (missed["dice"] == 0).all() and missed["hd95"].iloc[0] == pytest.approx(diagonal)


def test_what_cannot_be_compared_is_refused(finished, tiny, monkeypatch, capfd):
    one = finished(tiny(2))
    with pytest.raises(MaskfoldError, match=r"competition\.name is demo3d"):
        compare_two_runs(one, finished(tiny(3), "demo3d-tiny"))
    other = finished(tiny(2, "seed=2"))
    cases = other.cases.copy()
    cases.loc[3, "hash"] = "0" * 64
    with pytest.raises(MaskfoldError, match=f"case {cases['id'][3]} differ") as refused:
        compare_two_runs(one, replace(other, cases=cases))
    assert refused.value.status == 2
    first, second = (
        finished(tiny(2, "seed=3", "folds.run=[0]")),
        finished(tiny(2, "seed=3", "folds.run=[1]", "training.epochs=3")),
    )
    with pytest.raises(MaskfoldError, match="no out-of-fold case in common"):
        compare_two_runs(first, second)
    from competition.cli.main import main

    monkeypatch.setattr(sys, "argv", ["maskfold", "compare", str(one.folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "found 1 run, expected 2" in capfd.readouterr().err


def test_objects_have_the_hosts_metric(finished, nuclei):
    exp = nuclei("postprocess.tune=false")
    runs = finished(exp, "discs-a", noise=0.3), finished(nuclei("seed=2"), "discs-b", noise=0.6)
    found = compare_two_runs(*runs)
    assert found.differences[0].measure == "score" and exp.competition.metric.name == "mean_ap"
    assert (found.differences[0].a, found.differences[0].b) == pytest.approx(
        [summarize_run(run).score for run in runs], abs=1e-9
    )
    assert [line.measure for line in found.differences] == ["score", "dice", "surface_dice", "hd95"], (
        "one class: no lines of classes"
    )
