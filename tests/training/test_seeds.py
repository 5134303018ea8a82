"""Several seeds of each fold: means over members, by hand, through training, a kill, the score and the submission."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from competition.context import Context
from competition.data.cases import case_rows, case_table
from competition.ensembling.ensemble import EnsemblePredictor
from competition.metrics.bootstrap import cv_score
from competition.models.build import build_network
from competition.runs.blend import Ensemble
from competition.runs.oof import OofPredictions, OofStore
from competition.submission.submit import submit
from competition.training.cross_validate import (
    _dice_interval,
    format_seed_gain,
    make_jobs,
    open_run,
    prepare_run,
    summarize_run,
    unfinished_jobs,
)
from competition.training.evaluator import Evaluator
from competition.training.fold import run_fold, setup_fold
from competition.training.trainer import Trainer


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dies(patch, after: int) -> None:
    real, count = Trainer.training_step, [0]

    def step(self, batches):
        count[0] += 1
        if count[0] > after:
            raise Killed
        return real(self, batches)

    patch.setattr(Trainer, "training_step", step)


@pytest.mark.slow
def test_two_folds_of_two_seeds_from_training_to_the_submission(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp = tiny(
        2,
        "seed=[1, 2]",
        "run.threads=1",
        "training.checkpoint_minutes=0",
        "training.steps_per_epoch=2",
        "inference.tta=[]",
    )
    run = open_run(exp, "demo2d-tiny")
    prepare_run(run)
    jobs = {job.folder.name: job for job in make_jobs(run)}
    assert list(jobs) == ["fold_0", "fold_0_seed_1", "fold_1", "fold_1_seed_1"]
    for name in ("fold_0", "fold_1", "fold_1_seed_1"):
        jobs[name].folder.mkdir(exist_ok=True)
        run_fold(jobs[name], quiet)
    partly = summarize_run(run)
    assert partly.seeds["folds"] == 1 and partly.cases == 10
    last = jobs["fold_0_seed_1"]
    assert [job.folder.name for job in unfinished_jobs(run)] == [last.folder.name]
    last.folder.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        dies(patch, 3)
        with pytest.raises(Killed):
            run_fold(last, quiet)
    run_fold(last, quiet)
    undisturbed = dataclasses.replace(last, folder=tmp_path / "undisturbed")
    undisturbed.folder.mkdir()
    run_fold(undisturbed, quiet)
    name = "weights.safetensors"
    assert (undisturbed.folder / name).read_bytes() == (last.folder / name).read_bytes()
    weights = [load_file(job.folder / name) for job in jobs.values()]
    assert all(any(not torch.equal(one[key], other[key]) for key in one) for one, other in pairwise(weights))
    out_of_fold_by_hand(run, jobs)
    submission_by_hand(run, jobs)


def out_of_fold_by_hand(run, jobs) -> None:
    """The mean of the members' probabilities, scored; each seed alone; and the gain."""
    summary, comp = summarize_run(run), run.exp.competition
    judge = Evaluator(run.exp, run.cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    lines: list[dict] = []
    kept = OofPredictions(run)
    for row in judge.iter_cases():
        fold = int(run.folds.set_index("id")["fold"][row.id])
        each = [
            OofStore(jobs[name].folder / "oof").read(row.id).astype(np.float64)
            for name in (f"fold_{fold}", f"fold_{fold}_seed_1")
        ]
        assert not np.array_equal(*each)
        np.testing.assert_allclose(kept.read(row.id), np.mean(each, axis=0), atol=6e-4)
        lines += judge.score(np.mean(each, axis=0).astype(np.float16), row, fold)[0]
    score = cv_score(pd.DataFrame(lines), comp.metric)
    assert summary.score == pytest.approx(score, abs=1e-6) and summary.cases == 10
    alone = []
    for seed, names in (("1", ("fold_0", "fold_1")), ("2", ("fold_0_seed_1", "fold_1_seed_1"))):
        alone.append(
            cv_score(
                pd.concat([pd.read_csv(jobs[name].folder / "scores.csv", dtype={"id": str}) for name in names]),
                comp.metric,
            )
        )
        assert summary.seeds["alone"][seed]["score"] == pytest.approx(alone[-1], abs=1e-9)
    assert summary.seeds["one"] == pytest.approx(np.mean(alone), abs=1e-9) and summary.seeds["folds"] == 2
    assert summary.seeds["gain"] == pytest.approx(score - np.mean(alone), abs=1e-6)
    assert summary.seeds["low"] <= summary.seeds["gain"] <= summary.seeds["high"]
    assert (
        f"{score:.4f} with all seeds together, {np.mean(alone):.4f} with one seed" in format_seed_gain(summary.seeds)[0]
    )


def submission_by_hand(run, jobs) -> None:
    """A test case's probabilities are the mean of the four networks'."""
    rows = case_rows(case_table(run.exp.competition, "test"))
    ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0])
    assert [(one.fold, one.seed) for one in ensemble.checkpoints[str(run.folder)]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    training = setup_fold(jobs["fold_0"], run, Context(), 0.0)
    prepared = case_probabilities(run, training, rows[0])
    each = []
    for job in jobs.values():
        network = build_network(run.exp, 1, pretrained=False)
        network.load_state_dict(load_file(job.folder / "weights.safetensors"))
        each.append(prepared(network.eval()))
    np.testing.assert_allclose(ensemble.probabilities(rows[0]), np.mean(each, axis=0), atol=2e-3)
    done = submit([run])
    assert len(json.loads(done.summary_path.read_text())["runs"][0]["checkpoints"]) == 4


def case_probabilities(run, training, row):
    """What one network says of a test case."""
    from competition.data.cache import PreprocessedCase
    from competition.data.preprocessing import preprocess_case
    from competition.inference.predict import predict_case

    case = PreprocessedCase.open(preprocess_case(row, run.exp, run.folder / "test-case"))
    return lambda network: predict_case(
        [network], case, run.exp, training.fabric.device, training.fabric.autocast
    ).astype(np.float64)


def test_the_share_that_nobody_trained_on_is_scored_by_the_mean_of_the_seeds(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp = tiny(
        2,
        "seed=[1, 2]",
        "run.threads=1",
        "training.epochs=1",
        "inference.tta=[]",
        "folds={scheme: holdout, shares: [0.6, 0.2, 0.2]}",
    )
    run = open_run(exp, "demo2d-tiny")
    prepare_run(run)
    jobs = make_jobs(run)
    for job in jobs:
        job.folder.mkdir(exist_ok=True)
        run_fold(job, quiet)
    summary = summarize_run(run)
    held = run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == -2, "id"])]
    judge = Evaluator(exp, held, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    lines: list[dict] = []
    for row in judge.iter_cases():
        each = [OofStore(job.folder / "test").read(row.id).astype(np.float64) for job in jobs]
        lines += judge.score(np.mean(each, axis=0).astype(np.float16), row, -2)[0]
    assert summary.test_score == pytest.approx(cv_score(pd.DataFrame(lines), exp.competition.metric), abs=1e-6)


def test_a_share_that_several_folds_hold_out_is_scored_by_the_mean_of_their_networks(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = sorted(open_run(tiny(2), "demo2d-tiny").cases["id"])
    rows = [f"{case},{-2 if index < 2 else index % 2}" for index, case in enumerate(ids)]
    (tmp_path / "own.csv").write_text("\n".join(["id,fold", *rows]))
    exp = tiny(2, "run.threads=1", "training.epochs=1", "folds.scheme=file", f"folds.file={tmp_path}/own.csv")
    run = prepare_run(open_run(exp, "demo2d-tiny"))
    jobs = make_jobs(run)
    for job in jobs:
        job.folder.mkdir(exist_ok=True)
        run_fold(job, quiet)
    summary = summarize_run(run)
    judge = Evaluator(exp, run.test_share(), {}, torch.device("cpu"), torch.no_grad, lambda: None)
    lines: list[dict] = []
    for row in judge.iter_cases():
        each = [OofStore(job.folder / "test").read(row.id).astype(np.float64) for job in jobs]
        lines += judge.score(np.mean(each, axis=0).astype(np.float16), row, -2)[0]
    assert len(jobs) == 2 and len({line["id"] for line in lines}) == 2
    assert summary.test_score == pytest.approx(cv_score(pd.DataFrame(lines), exp.competition.metric), abs=1e-6)


def test_cases_of_a_single_group_have_no_interval():
    scores = pd.DataFrame({"id": ["a", "b"], "class": "one", "score": 0.5, "dice": [0.4, 0.6]})
    assert _dice_interval(scores, "one", 0, {"a": "x", "b": "x"}) == (None, None)
    low, high = _dice_interval(scores, "one", 0, {"a": "x", "b": "y"})
    assert 0 <= low < 0.5 < high <= 1
