"""The weights of a fold with and without `training.weights: best`, and the best run of a competition."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.export.mlflow_model import describe_run, version_tags
from competition.metrics.scoring import read_scores
from competition.postprocessing.ranking import best_run
from competition.report.results import RunResults
from competition.report.run import experiment_section, find_previous_best, gain_over_run
from competition.report.scores import postprocessing_section, score_headline
from competition.runs.blend import Ensemble
from competition.runs.run import RUNS_FOLDER, load_run
from competition.runs.summary import _tuned_rows, run_scores
from competition.submission.submit import write_oof_submission
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.evaluator import Evaluator
from competition.training.fold import run_fold
from tests.postprocessing.test_tuning import islands


@pytest.mark.parametrize("planned", [(0.5, 0.99, 0.2), (-0.3, -0.1, -0.2)])
def test_the_best_validation_leaves_no_weights_that_nothing_reads(tiny, tmp_path, monkeypatch, planned):
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, "training.epochs=4", "run.threads=1"), "demo2d-tiny")
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    seen = []
    validate = Evaluator.validate

    def judged(self, network, fold):
        scores = validate(self, network, fold)
        scores["score"] = planned[len(seen)]
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return scores

    monkeypatch.setattr(Evaluator, "validate", judged)
    run_fold(job, lambda _: None)
    assert len(seen) == 3  # the last epoch is judged by the out-of-fold prediction
    assert [path.name for path in job.folder.rglob("*.safetensors")] == ["weights.safetensors"]
    found = load_file(job.folder / "weights.safetensors")
    assert not any(all(torch.equal(found[name], old[name]) for name in found) for old in seen)


@pytest.mark.parametrize(("planned", "best"), [((0.1, 0.9), 1), ((0.9, 0.1), 0)])
def test_the_last_epoch_may_be_the_best(tiny, tmp_path, monkeypatch, planned, best):
    monkeypatch.chdir(tmp_path)
    run = open_run(
        tiny(2, "training.epochs=3", "training.validate_every=2", "training.weights=best", "run.threads=1"),
        "demo2d-tiny",
    )
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    seen = []
    validate = Evaluator.validate

    def judged(self, network, fold):
        scores = validate(self, network, fold)
        scores["score"] = planned[len(seen)]
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return scores

    monkeypatch.setattr(Evaluator, "validate", judged)
    run_fold(job, lambda _: None)
    assert len(seen) == 2  # epochs 2 and 3
    found = load_file(job.folder / "weights.safetensors")
    assert all(torch.equal(tensor, seen[best][name]) for name, tensor in found.items())
    assert not all(torch.equal(tensor, seen[1 - best][name]) for name, tensor in found.items())


@pytest.fixture
def runs(tiny, tmp_path, monkeypatch):
    """`runs(0.8, [0, 1], "training.epochs=3")`: the folder of a run with a summary, without training."""
    monkeypatch.chdir(tmp_path)

    def make(score: float | None, folds: list[int], *overrides: str, name: str = "demo2d-tiny") -> Path:
        run = open_run(tiny(2, *overrides), name)
        run.write()
        plain = {"metric": "dice", "score": score, "folds": [{"fold": fold} for fold in folds]}
        (run.folder / "summary.json").write_text(json.dumps(plain))
        for fold in folds:
            run.member_folder(fold, 0).mkdir()
            (run.member_folder(fold, 0) / "result.json").write_text(
                json.dumps(
                    {
                        "fold": fold,
                        "seed": 0,
                        "score": score,
                        "dice": {},
                        "epochs": 1,
                        "steps": 1,
                        "minutes": 1.0,
                        "peak_gib": 1.0,
                        "threads": 1,
                        "precision": "32-true",
                        "device": "cpu",
                        "torch": "2",
                        "stopped": "done",
                    }
                )
            )
        return run.folder

    return make


def test_the_best_run_is_the_highest_score_that_can_be_compared(runs):
    named = runs(0.7, [0, 1])
    best = runs(0.8, [0, 1], "training.epochs=3", name="demo2d-trials")
    runs(0.9, [0], "training.epochs=4")  # one fold of two
    runs(0.95, [0, 1], "competition.metric.name=iou")
    runs(0.97, [0, 1], "competition.name=demo2d-other")
    runs(None, [-1], "folds.run=full", "training.epochs=5")
    (RUNS_FOLDER / "demo2d-broken" / ("0" * 12)).mkdir(parents=True)
    (RUNS_FOLDER / "demo2d-broken" / ("0" * 12) / "summary.json").write_text("{")
    said: list[str] = []
    found = best_run(str(named), say=said.append)
    assert found.folder == best
    assert "best of 2 finished trained runs" in said[-1] and "0.8000" in said[-1]


def test_without_a_comparable_score_there_is_no_best(runs):
    named = runs(0.9, [0])
    with pytest.raises(MaskfoldError, match="has finished all its folds"):
        best_run(str(named))


def test_the_best_run_is_the_one_that_would_score_best_when_submitted(finished, tiny, monkeypatch):
    """Raw, the run with islands is worse than the noisy one; its tuned steps remove them, also nested."""
    exp = tiny(2, "postprocess.tune=true")
    noisy = finished(tiny(2, "postprocess.tune=true", "seed=2"), noise=0.4)
    cured = finished(exp, noise=0.1, spoil=islands)
    raw = {run.folder: json.loads((run.folder / "summary.json").read_text())["score"] for run in (noisy, cured)}
    assert raw[noisy.folder] > raw[cured.folder]
    assert best_run(str(noisy.folder)).folder == noisy.folder
    tuned = {run.folder: estimate_score(Ensemble((run,), (1.0,)), 20).tuning for run in (noisy, cured)}
    assert tuned[cured.folder].kept and tuned[cured.folder].nested > tuned[noisy.folder].score
    said: list[str] = []
    assert best_run(str(noisy.folder), say=said.append).folder == cured.folder
    assert f"{tuned[cured.folder].nested:.4f} (post-processing tuned on the other folds)" in said[-1]
    counted = run_scores(noisy)
    assert (counted.value, counted.is_nested) == (tuned[noisy.folder].score, tuned[noisy.folder].kept)
    # an interval depends on the order of the rows: without tuned steps it is that of `scores.csv`
    assert _tuned_rows(noisy)["id"].tolist() == read_scores(noisy.folder / "scores.csv")["id"].tolist()
    counted = run_scores(cured)
    assert counted.counting == "nested" and counted.counted == counted.nested and counted.raw.value == raw[cured.folder]
    assert counted.nested.low < counted.nested.value < counted.nested.high
    headline = score_headline(RunResults.load(cured))
    assert f"<b>{tuned[cured.folder].nested:.4f}</b>" in headline and f"{raw[cured.folder]:.4f} without" in headline
    assert version_tags(cured)["counted_score"] == f"{tuned[cured.folder].nested:.6f}"
    assert f"{tuned[cured.folder].nested:.4f} with post-processing tuned" in describe_run(cured)
    plain = load_run(cured.folder, overrides=["postprocess.tune=false"])
    assert (run_scores(plain).value, run_scores(plain).counting) == (raw[cured.folder], "raw")
    assert best_run(str(noisy.folder), ["postprocess.tune=false"]).folder == noisy.folder

    monkeypatch.setattr("competition.report.run.get_end_time", lambda folder: float(Path(folder).name == "later"))
    later = finished(tiny(2, "postprocess.tune=true", "seed=3"), noise=0.35)
    later = replace(later, folder=later.folder.rename(later.folder.with_name("later")))
    assert find_previous_best(later).folder == cured.folder.resolve()
    assert "both scores are without post-processing" in experiment_section(RunResults.load(later))
    estimate_score(Ensemble((later,), (1.0,)), 20)
    assert "both scores are with post-processing." in experiment_section(RunResults.load(later))
    gain, cases, _ = gain_over_run(RunResults.load(later), cured.folder)
    expected = run_scores(later).value - tuned[cured.folder].nested
    assert cases == 10 and gain.value == pytest.approx(expected, abs=1e-9)


def test_a_run_counts_with_the_post_processing_of_its_yaml(finished, tiny):
    noisy = finished(tiny(2, "seed=2"), noise=0.4)
    cured = finished(tiny(2, "postprocess.steps=[{remove_small: 60}]"), noise=0.1, spoil=islands)
    raw = json.loads((cured.folder / "summary.json").read_text())["score"]
    assert run_scores(cured).counting == "raw" and best_run(str(noisy.folder)).folder == noisy.folder
    expected = estimate_score(Ensemble((cured,), (1.0,)), 20, store_untuned=True)
    assert expected.tuning is None and expected.score > raw + 0.01
    scores = run_scores(cured)
    assert (scores.counting, scores.value, scores.nested) == ("processed", pytest.approx(expected.score), None)
    assert scores.processed == scores.counted and scores.raw.value == raw
    assert scores.counted.low < scores.value < scores.counted.high
    said: list[str] = []
    assert best_run(str(noisy.folder), say=said.append).folder == cured.folder
    assert f"{expected.score:.4f} (post-processing of the YAML)" in said[-1]
    assert f"{raw:.4f} without it" in score_headline(RunResults.load(cured))
    again = estimate_score(Ensemble((cured,), (1.0,)), 20)  # the stored result
    assert (again.score, again.low, again.high) == (expected.score, expected.low, expected.high)
    assert run_scores(load_run(cured.folder, overrides=["postprocess.steps=[]"])).value == raw


def test_a_stored_search_survives_commands_that_score_without_tuning(finished, tiny, tmp_path):
    run = finished(tiny(2, "postprocess.tune=true", "postprocess.steps=[{remove_small: 60}]"), noise=0.1, spoil=islands)
    estimate_score(Ensemble((run,), (1.0,)), 20)
    stored, counted = (run.folder / "postprocess.json").read_bytes(), run_scores(run).counted
    write_oof_submission(run, tmp_path / "oof.csv")
    for override in ("postprocess.tune=false", "postprocess.steps=[{remove_small: 3}]"):
        other = load_run(run.folder, overrides=["postprocess.tune=false", override])
        estimate_score(Ensemble((other,), (1.0,)), 20)
        estimate_score(Ensemble((other,), (1.0,)), 20, store_untuned=True)
    assert (run.folder / "postprocess.json").read_bytes() == stored and run_scores(run).counted == counted


def test_only_cv_and_studies_store_the_score_of_fixed_steps(finished, tiny, monkeypatch):
    run = finished(tiny(2, "postprocess.steps=[{remove_small: 60}]"), noise=0.1, spoil=islands)
    estimate_score(Ensemble((run,), (1.0,)), 20)
    assert not (run.folder / "postprocess.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("competition.postprocessing.tuning.cv_score", lambda rows, metric: math.nan)
        estimate_score(Ensemble((run,), (1.0,)), 20, store_untuned=True)
    assert not (run.folder / "postprocess.json").exists()  # nan cannot be stored
    estimate_score(Ensemble((run,), (1.0,)), 20, store_untuned=True)
    page = postprocessing_section(run)
    assert "with the post-processing of the YAML: score" in page and "Nested" not in page
    outdated = load_run(run.folder, overrides=["postprocess.steps=[{remove_small: 3}]"])
    assert "since it was computed" in postprocessing_section(outdated)
