"""The complete path from finished runs to the host's file."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from competition.config.profiles import profile_of
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask
from competition.ensembling.ensemble import EnsemblePredictor
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.inference.masks import merge_boundary_class
from competition.io import sha256_of_file
from competition.metrics.bootstrap import cv_score
from competition.postprocessing.pipeline import postprocess
from competition.records import SUBMISSION_DIGEST, is_unedited
from competition.runs.blend import Ensemble, WeightedMean
from competition.runs.find import find_run
from competition.submission.reader import read_submission
from competition.submission.submit import _expectation, submit, write_oof_submission
from competition.training.cross_validate import summarize_run


@pytest.mark.parametrize("dimensions", [2, 3])
def test_submit_writes_the_samples_rows_and_says_what_it_did(finished, tiny, dimensions):
    run = finished(tiny(dimensions), f"demo{dimensions}d-tiny")
    comp = run.exp.competition
    lines: list[str] = []
    done = submit([run], say=lines.append)
    assert done.path == Path("submissions") / comp.name / f"tiny-{run.folder.name}.csv"
    with open(done.path, newline="") as stream, open(comp.root / "sample_submission.csv", newline="") as sample:
        assert [row[:2] for row in csv.reader(stream)] == [row[:2] for row in csv.reader(sample)]
    said = json.loads(done.summary_path.read_text())
    assert SUBMISSION_DIGEST in said["digests"] and is_unedited(said, SUBMISSION_DIGEST)
    assert [len(one["checkpoints"]) for one in said["runs"]] == [2] and said["runs"][0]["weight"] == 1
    assert all(len(one["sha256"]) == 64 for one in said["runs"][0]["checkpoints"])
    summary = summarize_run(run)
    assert said["expected"]["score"] == pytest.approx(summary.score, abs=1e-9)
    assert said["expected"]["low"] < summary.score < said["expected"]["high"]
    kept = pd.read_csv(done.path.with_suffix(".scores.tsv"), sep="\t", dtype={"id": str})
    assert list(done.path.parent.glob("*.csv")) == [done.path], "no other file looks like one for the host"
    assert cv_score(kept, comp.metric) == pytest.approx(summary.score), "the cases behind the expected score"
    assert lines[0].startswith("2 networks of 1 run will predict ")


def test_a_submission_without_an_expected_score_says_null(finished, tiny):
    """The score is NaN if no class occurs and `both_empty` is null; `upload` must find a number or nothing."""
    expected = replace(estimate_score(Ensemble((finished(tiny(2)),), (1.0,)), 20), score=float("nan"))
    assert _expectation(expected, tiny(2).competition.metric) is None


def test_the_files_masks_are_those_of_all_folds_networks_together(finished, tiny):
    run = finished(tiny(2))
    done = submit([run])
    comp = run.exp.competition
    rows = {row.id: row for row in case_rows(case_table(comp, "test"))}
    shapes = {name: tuple(json.loads(row.shape)) for name, row in rows.items()}
    ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), next(iter(rows.values())))
    checked = 0
    for entry in read_submission(done.path, profile_of(comp), shapes):
        probabilities = ensemble.probabilities(rows[entry.case_id])
        index = comp.classes.index(entry.class_name) + 1
        np.testing.assert_array_equal(entry.mask, probabilities.astype(np.float32).argmax(axis=0) == index)
        checked += int(entry.mask.any())
    assert checked


def test_out_of_fold_masks_through_the_file_have_the_cv_score(finished, tiny, tmp_path):
    from competition.submission.score import score_submission

    for dimensions in (2, 3):
        run = finished(tiny(dimensions), f"demo{dimensions}d-tiny", noise=0.6)
        verdict, score = write_oof_submission(run, tmp_path / f"oof{dimensions}.csv")
        assert verdict.ok
        card = score_submission(tmp_path / f"oof{dimensions}.csv", run.exp.competition, None)
        assert 0.3 < card.score < 1
        assert card.score == pytest.approx(summarize_run(run).score, abs=1e-9) == pytest.approx(score, abs=1e-9)


def test_a_run_is_found_by_yaml_folder_and_hash(finished, tiny, tmp_path):
    from tests.conftest import ROOT

    run = finished(tiny(2), "demo2d-unet2d")
    file = ROOT / "experiments" / "demo2d" / "unet2d.yaml"
    notes: list[str] = []
    for word in (str(file), str(run.folder), run.folder.name, run.folder.name[:6], f"demo2d-unet2d/{run.folder.name}"):
        found = find_run(word, [f"competition.root={run.exp.competition.root}"], say=notes.append)
        assert found.folder.resolve() == run.folder.resolve(), word
    assert (
        len(notes) == 1 and "model.target" in notes[0] and "own experiment.yaml" in notes[0]
    )  # the shipped network is no toy
    with pytest.raises(MaskfoldError, match="0123456789ab"):
        find_run("0123456789ab")
    with pytest.raises(MaskfoldError, match="no finished run of"):
        find_run(str(ROOT / "experiments" / "demo3d" / "unet3d.yaml"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing weights", ["Cannot read the weights", "fold_1/weights.safetensors"]),
        ("truncated weights", ["weights.safetensors cannot be read"]),
        ("missing image", ["no test image has this id"]),
        ("unknown id", ["requires the id stranger"]),
        ("doubled id", ["is a duplicate of line"]),
        ("truncated image", ["Cannot read the test case", "cannot be read", "Copy the file again"]),
        ("class row missing", ["has no row for the id", "rows for other classes"]),
        ("folder is a file", ["No file can be written to the folder"]),
        ("other competition", ["competition.name is demo3d"]),
        ("twice", ["is named twice"]),
    ],
)
def test_what_is_wrong_is_told_before_any_work_and_leaves_no_csv(
    finished, tiny, demo2d, tmp_path, monkeypatch, what, words
):
    data = Path(shutil.copytree(demo2d, tmp_path / "data"))
    runs = [finished(tiny(2, f"competition.root={data}"))]
    weights = runs[0].folder / "fold_1" / "weights.safetensors"
    sample = data / "sample_submission.csv"
    lines = sample.read_text().splitlines()
    if what == "missing weights":
        weights.unlink()
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "missing image":
        next(iter(sorted((data / "test").iterdir()))).unlink()
    elif what == "unknown id":
        sample.write_text("\n".join([*lines, "stranger,ring,"]) + "\n")
    elif what == "doubled id":
        sample.write_text("\n".join([*lines, lines[1]]) + "\n")
    elif what == "truncated image":
        last = sorted((data / "test").iterdir())[-1]
        last.write_bytes(last.read_bytes()[:-200])
    elif what == "class row missing":
        sample.write_text("\n".join(lines[:-1]) + "\n")
    elif what == "folder is a file":
        (tmp_path / "out").write_text("")
    elif what == "other competition":
        runs.append(finished(tiny(3), "demo3d-tiny"))
    else:
        runs *= 2
    monkeypatch.setattr(EnsemblePredictor, "predict", lambda *_: pytest.fail("predicted"))
    monkeypatch.setattr("competition.submission.submit.estimate_score", lambda *_: pytest.fail("scored"))
    with pytest.raises(MaskfoldError) as refusal:
        submit(runs, output=tmp_path / "out" / "s.csv")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert not list((tmp_path / "out").glob("*")) and not list(Path("submissions").rglob("*.csv"))


@pytest.mark.parametrize(("name", "found"), [("s.txt", "found "), ("folder.csv", "found the folder ")])
def test_an_output_is_a_file_that_ends_in_csv(finished, tiny, tmp_path, name, found):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(MaskfoldError, match=re.escape(f"{found}{tmp_path / name}, expected a file name")):
        submit([finished(tiny(2))], output=tmp_path / name)


def test_no_csv_is_there_without_its_json(finished, tiny, monkeypatch):
    run = finished(tiny(2))

    def full(*_):
        raise MaskfoldError("The disk is full.", "Free some space.")

    monkeypatch.setattr("competition.submission.submit.write_json", full)
    with pytest.raises(MaskfoldError, match="disk is full"):
        submit([run], output=Path("out/s.csv"))
    assert not list(Path("out").iterdir())


def test_a_failure_in_mid_way_leaves_the_former_file(finished, tiny, tmp_path, monkeypatch):
    run = finished(tiny(2))
    done = submit([run])
    before = done.path.read_bytes()
    real, calls = EnsemblePredictor.predict, []

    def fails(self, row):
        calls.append(row.id)
        if len(calls) == 2:
            raise MaskfoldError("The image is gone.", "Put it back.")
        return real(self, row)

    monkeypatch.setattr(EnsemblePredictor, "predict", fails)
    with pytest.raises(MaskfoldError, match="gone"):
        submit([run])
    assert done.path.read_bytes() == before and sorted(done.path.parent.iterdir()) == sorted(
        [done.path, done.summary_path, done.path.with_suffix(".scores.tsv")]
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.5], "found 1 numbers, expected 2"),
        ([1.0, -1.0], "found 1.0, -1.0, expected"),
        ([0.0, 0.0], "found 0.0, 0.0, expected"),
        ([float("nan"), 1.0], "found nan, 1.0, expected"),
    ],
)
def test_weights_that_make_no_sense(finished, tiny, weights, words):
    runs = [finished(tiny(2)), finished(tiny(2, "seed=2"), seed=1)]
    with pytest.raises(MaskfoldError, match=words):
        submit(runs, weights)


def test_a_run_of_weight_0_plays_no_part(finished, tiny):
    one, other = finished(tiny(2)), finished(tiny(2, "seed=2"), seed=1)
    alone = submit([one], output=Path("alone.csv"))
    both = submit([one, other], [1, 0], output=Path("both.csv"))
    assert alone.path.read_bytes() == both.path.read_bytes()
    mixed = submit([one, other], output=Path("mixed.csv"))
    assert mixed.path.read_bytes() != alone.path.read_bytes()
    assert [run["weight"] for run in json.loads(mixed.summary_path.read_text())["runs"]] == [0.5, 0.5]


def test_several_seeds_are_averaged(finished, tiny):
    run = finished(tiny(2, "seed=[1,2]"))
    expected = estimate_score(Ensemble((run,), (1.0,)), 3)
    assert expected.score == pytest.approx(summarize_run(run).score, abs=1e-9)
    done = submit([run])
    assert len(json.loads(done.summary_path.read_text())["runs"][0]["checkpoints"]) == 4


def test_a_mixture_with_and_without_a_boundary_class(nuclei):
    comp = nuclei().competition
    generator = np.random.default_rng(0)
    plain = generator.dirichlet([1, 1], (8, 9)).transpose(2, 0, 1).astype(np.float16)
    edged = generator.dirichlet([1, 1, 1], (8, 9)).transpose(2, 0, 1).astype(np.float16)
    alone = WeightedMean(comp)
    alone.add(edged, 1.0)
    np.testing.assert_array_equal(alone.result(), edged)
    both = WeightedMean(comp)
    both.add(edged, 0.5)
    both.add(edged, 0.5)
    np.testing.assert_allclose(both.result(), edged, atol=2e-3)
    mixed = WeightedMean(comp)
    mixed.add(plain, 0.25)
    mixed.add(edged, 0.75)
    found = mixed.result().astype(np.float32)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=4e-3)
    np.testing.assert_allclose(
        found[0], 0.25 * plain[0].astype(np.float32) + 0.75 * edged[0].astype(np.float32), atol=2e-3
    )
    np.testing.assert_allclose(found[2], np.minimum(edged[2].astype(np.float32), 1 - found[0]), atol=3e-3)


def test_the_confidence_of_an_object_is_its_class_probability_including_its_boundary(finished, nuclei):
    exp = nuclei(
        "postprocess.steps=[{split: {distance: 1.0}}]",
        "competition.train.rle_format={}",
        "competition.submission={profile: hubmap-vasculature, sample: sample.csv}",
    )
    comp = exp.competition
    rows = case_rows(case_table(comp, "test"))
    sample = [f"{row.id},40,48," for row in rows]
    (comp.root / "sample.csv").write_text("\n".join(["id,height,width,prediction_string", *sample]) + "\n")
    run = finished(exp, "discs-tiny")
    table = pd.read_csv(submit([run]).path, dtype=str, keep_default_na=False).set_index("id")
    predictor = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0])
    found, expected = [], []
    for row in rows:
        probabilities, presence = predictor.predict(row)
        assert len(probabilities) == 3, "background, disc and boundary"
        labels = postprocess(probabilities, comp, exp.postprocess, row, presence).object_labels(0)
        disc = merge_boundary_class(probabilities, comp)[1]
        expected += [disc[labels == number].mean() for number in np.unique(labels[labels > 0])]
        found += [float(word) for word in table.loc[row.id, "prediction_string"].split(" ")[1::3]]
    assert len(found) >= 1
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=1e-4)


def test_memory_does_not_grow_with_the_cases_of_a_mixture(finished, tiny):
    """Weights that do not fit in memory are read again for each case, with the same result."""
    import competition.ensembling.ensemble as members

    run = finished(tiny(2))
    rows = case_rows(case_table(run.exp.competition, "test"))
    whole = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0]).probabilities(rows[0])
    before, members.MAX_WEIGHT_BYTES_IN_MEMORY = members.MAX_WEIGHT_BYTES_IN_MEMORY, 1
    try:
        ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0])
    finally:
        members.MAX_WEIGHT_BYTES_IN_MEMORY = before
    assert not ensemble.weighted_runs[0][0].networks
    np.testing.assert_allclose(ensemble.probabilities(rows[0]), whole, atol=2e-3)
    assert not list(Path("mlruns/prepared").glob(".test-*"))


def test_truth_is_never_read_from_the_test_cases(finished, tiny, demo2d, tmp_path):
    data = Path(shutil.copytree(demo2d, tmp_path / "data"))
    (data / "solution.csv").unlink()
    run = finished(tiny(2, f"competition.root={data}"))
    assert submit([run]).validation.ok
    assert load_mask(run.exp.competition, next(run.cases.itertuples(index=False))).any()


def test_a_file_next_to_the_csv_that_is_no_scores_file_stays(finished, tiny):
    run = finished(tiny(2))
    other = submit([run], output=Path("best.scores.csv")).path
    before = other.read_bytes()
    submit([run], output=Path("best.csv"))
    assert other.read_bytes() == before
    other.write_text("id,fold,class,score,dice,iou\n")  # by a version before 0.2
    submit([run], output=Path("best.csv"))
    assert not other.exists()


def test_a_submission_without_an_expected_score_leaves_no_scores_of_an_earlier_one(finished, tiny, monkeypatch):
    run = finished(tiny(2))
    done = submit([run], output=Path("s.csv"))
    assert Path("s.scores.tsv").exists()
    monkeypatch.setattr("competition.submission.submit._has_oof_predictions", lambda ensemble: False)
    submit([run], output=Path("s.csv"))
    assert not Path("s.scores.tsv").exists() and json.loads(done.summary_path.read_text())["expected"] is None


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(finished, tiny):
    run = finished(tiny(2))
    done = submit([run], output=Path("s.csv"))
    before = done.path.read_bytes(), done.summary_path.read_bytes()
    Path("s.scores.tsv").unlink()
    Path("s.scores.tsv").mkdir()
    with pytest.raises(MaskfoldError, match=r"s\.scores\.tsv"):
        submit([run], output=Path("s.csv"))
    assert (done.path.read_bytes(), done.summary_path.read_bytes()) == before


def test_at_every_instant_the_json_is_of_the_csv_that_exists(finished, tiny, monkeypatch):
    run = finished(tiny(2))
    done = submit([run], output=Path("s.csv"))
    done.path.write_text("id,rle\n")  # other content than what follows
    done.summary_path.write_text(json.dumps({"sha256": sha256_of_file(done.path)}))
    real, seen = os.replace, []

    def watched(source, target):
        if Path(target).suffix in (".csv", ".json", ".tsv") and Path(target).parent == Path():
            seen.append(Path(target).name)
            if done.path.exists():
                assert json.loads(done.summary_path.read_text())["sha256"] == sha256_of_file(done.path)
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    submit([run], output=Path("s.csv"))
    assert seen[-1] == "s.csv" and json.loads(done.summary_path.read_text())["sha256"] == sha256_of_file(done.path)
