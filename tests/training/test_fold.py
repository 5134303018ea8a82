"""A fold is idempotent, resumable to the last bit, and draws the same samples whatever loads them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from competition.cli.console import cv_table
from competition.context import Context
from competition.errors import ChangedDataError, MaskfoldError
from competition.io import sha256_of_file
from competition.runs.fold import FoldResult
from competition.runs.lock import is_free, run_lock
from competition.runs.oof import OofStore
from competition.training import evaluator as evaluator_module
from competition.training import fold as fold_module
from competition.training.cross_validate import format_seed_gain, locked_run, make_jobs, open_run, summarize_run
from competition.training.fold import run_fold, setup_fold
from competition.training.soup_selection import format_soup
from competition.training.trainer import Trainer
from tests.host import flip_png
from tests.training.clock import FakeClock


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def start(exp, folder: Path, cache: Path, number: int = 0):
    run = open_run(exp, "tiny", root=folder)
    run.write()
    job = dataclasses.replace(make_jobs(run)[number], cache=cache, threads=1)
    job.folder.mkdir(parents=True, exist_ok=True)
    return run, job


def losses(folder: Path) -> list[float]:
    metrics = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "val/score" in metrics[-1] or not (folder / "scores.csv").exists()
    return [line["train/loss"] for line in metrics if "train/loss" in line]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def killed_after(monkeypatch, steps: int) -> None:
    real = Trainer.training_step
    count = {"steps": 0}

    def step(self, batches):
        if count["steps"] == steps:
            raise Killed
        count["steps"] += 1
        return real(self, batches)

    monkeypatch.setattr(Trainer, "training_step", step)


@pytest.mark.parametrize(
    ("dimensions", "settings"),
    [
        (2, ["schedule={name: onecycle}", "training.ema=0.9", "training.accumulate=2"]),
        (2, ["schedule={name: plateau, patience: 1}", "training.average=2"]),
        (3, ["schedule={name: cosine, warmup: 0.2}", "training.ema=0.9"]),
        (3, ["patch={size: [32, 32], slices: 3, axes: [0, 1, 2]}", "augment={preset: medium, flip: [1, 2]}"]),
    ],
)
def test_a_killed_fold_ends_with_the_same_weights_bit_for_bit(tiny, tmp_path, monkeypatch, dimensions, settings):
    exp = tiny(dimensions, "training.checkpoint_minutes=0", *settings)
    run, job = start(exp, tmp_path / "whole", tmp_path / "cache")
    whole = run_fold(job, say=lambda line: None)
    run2, job2 = start(exp, tmp_path / "killed", tmp_path / "cache")
    for steps in (3, 2):  # in the middle of the first epoch, then in the middle of the second
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(Killed):
                run_fold(job2, say=lambda line: None)
    again = run_fold(job2, say=lambda line: None)
    assert losses(job2.folder) == losses(job.folder)
    one, two = load_file(job.folder / "weights.safetensors"), load_file(job2.folder / "weights.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert again.score == whole.score
    for case in OofStore(job.folder / "oof", exp.inference.store).ids():
        np.testing.assert_array_equal(
            OofStore(job.folder / "oof", "float16").read(case), OofStore(job2.folder / "oof", "float16").read(case)
        )


def test_a_fold_draws_its_curves_and_its_best_and_worst_cases(tiny, tmp_path, figures):
    _, job = start(tiny(2, "training.pictures_every=1"), tmp_path, tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    drawn = sorted(path.name for path in (job.folder / "pictures").iterdir())
    epochs = [name for name in drawn if name.startswith("epoch_")]
    final = [name for name in drawn if name.startswith("final_")]
    assert len(epochs) == 3 and {name[:10] for name in epochs} == {"epoch_0001"}  # the last epoch has the final ones
    assert [name[:12] for name in final] == [f"final_{rank}_of_{len(final)}" for rank in range(1, len(final) + 1)]
    assert len(final) in (3, 4)  # the best, the median and the two worst; the median may be one of them
    assert (job.folder / "curves.png").stat().st_size > 1000


def test_loader_workers_do_not_change_the_loss_curve(tiny, tmp_path):
    curves = []
    for workers in (0, 2):
        _, job = start(tiny(2, f"run.workers={workers}"), tmp_path / str(workers), tmp_path / "cache")
        run_fold(job, say=lambda line: None)
        curves.append(losses(job.folder))
    assert curves[0] == curves[1] and len(curves[0]) == 2


def test_a_finished_fold_is_not_trained_again(tiny, tmp_path, monkeypatch):
    _, job = start(tiny(2), tmp_path, tmp_path / "cache")
    first = run_fold(job, say=lambda line: None)
    monkeypatch.setattr(fold_module, "setup_fold", lambda *a: pytest.fail("trained again"))
    assert run_fold(job, say=lambda line: None) == first == FoldResult.read(job.folder)


def test_the_score_is_the_metric_on_the_stored_probabilities(tiny, tmp_path):
    from competition.data.masks import load_mask
    from competition.inference.masks import to_masks
    from competition.metrics.scoring import score_case

    exp = tiny(2)
    run, job = start(exp, tmp_path, tmp_path / "cache")
    result = run_fold(job, say=lambda line: None)
    store = OofStore(job.folder / "oof", exp.inference.store)
    rows = [row for row in run.cases.itertuples(index=False) if row.id in store.ids()]
    assert {row.id for row in rows} == set(run.folds.loc[run.folds["fold"] == 0, "id"])
    scores = [
        line["score"]
        for row in rows
        for line in score_case(
            to_masks(store.read(row.id), exp.competition),
            load_mask(exp.competition, row),
            exp.competition,
            spacing=json.loads(row.spacing),
        )
    ]
    assert result.score == pytest.approx(float(np.nanmean(scores)), abs=1e-12)


def test_training_lowers_the_loss(tiny, tmp_path):
    _, job = start(
        tiny(
            2,
            "training.epochs=6",
            "training.steps_per_epoch=8",
            "optimizer.args.lr=0.01",
            "training.validate_every=100",
        ),
        tmp_path,
        tmp_path / "cache",
    )
    run_fold(job, say=lambda line: None)
    curve = losses(job.folder)
    assert curve[-1] < 0.9 * curve[0]


def test_a_fit_on_all_cases_has_weights_and_no_score(tiny, tmp_path):
    run, job = start(tiny(2, "folds.run=full"), tmp_path, tmp_path / "cache")
    assert job.folder.name == "full"
    result = run_fold(job, say=lambda line: None)
    assert result.score is None and (job.folder / "weights.safetensors").exists()
    assert summarize_run(run).score is None


def test_a_loss_that_is_not_a_number_names_step_and_cases(tiny, tmp_path, monkeypatch):
    run, job = start(tiny(2), tmp_path, tmp_path / "cache")
    training = setup_fold(job, run, Context(), 0.0)
    real = training.loss

    class Broken(torch.nn.Module):
        def forward(self, outputs, mask):
            total, parts = real(outputs, mask)
            return total * math.nan, parts

    training.loss = Broken()
    with pytest.raises(MaskfoldError, match=r"nan at step 1 of fold 0 \(cases .+\)"):
        training.train()


def test_early_stopping_by_patience_and_by_classes(tiny, tmp_path):
    exp = tiny(2, "training.epochs=9", "early_stopping={all_classes_at_least: 0.0}")
    _, job = start(exp, tmp_path / "classes", tmp_path / "cache")
    result = run_fold(job, say=lambda line: None)
    assert result.epochs == 1 and "every class" in result.stopped
    exp = tiny(2, "training.epochs=9", "early_stopping={patience: 2}", "optimizer.args.lr=1.0e-12")
    _, job = start(exp, tmp_path / "patience", tmp_path / "cache")
    result = run_fold(job, say=lambda line: None)
    assert result.epochs == 3 and "no better score in 2" in result.stopped


def test_weights_of_a_run_with_other_folds_are_refused(tiny, tmp_path):
    source, job = start(tiny(2), tmp_path / "a", tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    _, same = start(tiny(2, f"init_from={source.folder}", "training.epochs=1"), tmp_path / "b", tmp_path / "cache")
    assert run_fold(same, say=lambda line: None).steps == 4
    _, other = start(tiny(2, f"init_from={source.folder}", "seed=77"), tmp_path / "c", tmp_path / "cache")
    with pytest.raises(MaskfoldError, match=r"init_from: .*fold_0"):
        run_fold(other, say=lambda line: None)


def test_a_damaged_checkpoint_is_an_error_and_not_a_fresh_start(tiny, tmp_path, monkeypatch):
    _, job = start(tiny(2, "training.checkpoint_minutes=0"), tmp_path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Killed):
            run_fold(job, say=lambda line: None)
    path = job.folder / "last.pt"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(MaskfoldError, match="last.pt cannot be read"):
        run_fold(job, say=lambda line: None)


def test_several_seeds_are_averaged_out_of_fold(tiny, tmp_path):
    exp = tiny(2, "seed=[1, 2]", "folds.run=[0]")
    run = open_run(exp, "tiny", root=tmp_path)
    run.write()
    jobs = [dataclasses.replace(job, cache=tmp_path / "cache", threads=1) for job in make_jobs(run)]
    assert [job.folder.name for job in jobs] == ["fold_0", "fold_0_seed_1"]
    for job in jobs:
        job.folder.mkdir()
        run_fold(job, say=lambda line: None)
    one, two = (load_file(job.folder / "weights.safetensors") for job in jobs)
    assert any(not torch.equal(one[name], two[name]) for name in one)
    summary = summarize_run(run)
    assert summary.cases == 5 and summary.score is not None


def test_two_and_a_half_dimensions_train_on_neighbouring_slices(tiny, tmp_path):
    exp = tiny(
        3,
        "patch.size=[32,32]",
        "patch.slices=3",
        "model.target=segmentation_models_pytorch.Unet",
        "model.args={encoder_name: resnet18, encoder_depth: 3, decoder_channels: [8, 8, 8]}",
    )
    run, job = start(exp, tmp_path, tmp_path / "cache")
    result = run_fold(job, say=lambda line: None)
    assert result.score is not None
    shapes = {row.id: tuple(json.loads(row.shape)) for row in run.cases.itertuples(index=False)}
    store = OofStore(job.folder / "oof", "float16")
    assert all(store.read(case).shape == (3, *shapes[case]) for case in store.ids())


def test_a_frozen_encoder_keeps_its_weights_in_the_first_steps(tiny, tmp_path):
    network = [
        "model.target=segmentation_models_pytorch.Unet",
        "model.args={encoder_name: resnet18, encoder_depth: 3, decoder_channels: [8, 8, 8]}",
        "training.epochs=1",
    ]
    weights = {}
    for steps in (0, 2, 4):
        _, job = start(tiny(2, *network, f"training.freeze_encoder={steps}"), tmp_path / str(steps), tmp_path / "cache")
        run_fold(job, say=lambda line: None)
        weights[steps] = load_file(job.folder / "weights.safetensors")
    [name] = [name for name in weights[0] if name.endswith("encoder.conv1.weight")]
    [head] = [name for name in weights[0] if name.endswith("segmentation_head.0.weight")]
    assert not torch.equal(weights[4][name], weights[2][name]) and not torch.equal(weights[2][name], weights[0][name])
    assert not torch.equal(weights[4][head], weights[2][head])
    # all four steps were frozen: the encoder is that of the network before training
    again = tiny(2, *network, "training.freeze_encoder=4", "training.steps_per_epoch=1")
    _, job = start(again, tmp_path / "again", tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    assert torch.equal(load_file(job.folder / "weights.safetensors")[name], weights[4][name])


def test_a_held_out_share_is_scored_and_never_trained_on(tiny, tmp_path):
    exp = tiny(2, "folds={scheme: holdout, shares: [0.6, 0.2, 0.2]}")
    run, job = start(exp, tmp_path, tmp_path / "cache")
    training = setup_fold(job, run, Context(), 0.0)
    seen = {training.dataset.case_id(index) for index in range(len(training.dataset))}
    held_out = set(run.folds.loc[run.folds["fold"] == -2, "id"])
    watched = set(run.folds.loc[run.folds["fold"] == 0, "id"])
    assert len(held_out) == len(watched) == 2 and not seen & (held_out | watched)
    run_fold(job, say=lambda line: None)
    summary = summarize_run(run)
    assert summary.cases == 2 and summary.test_dice is not None
    assert set(OofStore(job.folder / "test", "float16").ids()) == held_out


def test_a_fold_without_training_cases_is_an_error(tiny, tmp_path):
    run, job = start(tiny(2), tmp_path, tmp_path / "cache")
    run = dataclasses.replace(run, folds=run.folds.assign(fold=job.fold))
    with pytest.raises(MaskfoldError, match=f"Fold {job.fold} has 0 training cases"):
        setup_fold(job, run, Context(), 0.0)


def test_deep_supervision_loss_parts_and_a_list_of_losses(tiny, tmp_path):
    exp = tiny(
        3,
        "model.target=monai.networks.nets.DynUNet",
        "model.args={kernel_size: [3, 3, 3], strides: [1, 2, 2], upsample_kernel_size: [2, 2], filters: [4, 8, 8], "
        "deep_supervision: true, deep_supr_num: 1}",
        "loss=[{target: monai.losses.DiceLoss, name: overlap, weight: 0.5}, "
        "{target: torch.nn.CrossEntropyLoss, name: entropy}]",
    )
    _, job = start(exp, tmp_path, tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    metrics = json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[0])["metrics"]
    assert metrics["train/loss"] == pytest.approx(0.5 * metrics["train/overlap"] + metrics["train/entropy"], rel=1e-5)


def test_a_replay_of_a_budget_run_takes_the_same_steps_to_the_same_weights(tiny, tmp_path, monkeypatch):
    from competition.config.loading import load_experiment

    clock = FakeClock(monkeypatch, step=0.2, case=0.1)
    exp = tiny(2, "training.budget_minutes=0.2", "training.epochs=1000", "training.ema=0.9")
    _, job = start(exp, tmp_path / "budget", tmp_path / "cache")
    first = run_fold(job, say=lambda line: clock.slow_down() if line.startswith("epoch 1") else None, start_time=0.0)
    assert 4 < first.steps < 60 and first.minutes < 0.5
    replay = load_experiment(job.folder / "experiment.yaml")
    assert len(replay.training.plan) > 1
    _, again = start(replay, tmp_path / "replay", tmp_path / "cache")
    second = run_fold(again, say=lambda line: None)
    assert second.steps == first.steps
    one, two = (load_file(each.folder / "weights.safetensors") for each in (job, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_grows_over_several_commands(tiny, tmp_path):
    for wanted, cases in (("folds.run=[0]", 5), ("folds.run=[1]", 10), ("folds.run=full", 10)):
        run, job = start(tiny(2, wanted), tmp_path, tmp_path / "cache")
        run_fold(job, say=lambda line: None)
        summary = summarize_run(run)
        assert summary.cases == cases and summary.score is not None
    assert [result["fold"] for result in summary.folds] == [0, 1, -1]


def test_masks_that_change_between_two_folds_are_not_mixed_into_one_score(tiny, demo2d, tmp_path):
    root = Path(shutil.copytree(demo2d, tmp_path / "data"))
    run, first = start(tiny(2, f"competition.root={root}"), tmp_path / "runs", tmp_path / "cache")
    result = run_fold(first, say=lambda line: None)
    files = ("scores.csv", "weights.safetensors")
    assert result.digests == {name: sha256_of_file(first.folder / name) for name in files}
    predicted = OofStore(first.folder / "oof").ids()[0]
    OofStore(first.folder / "oof", weights=result.digests["weights.safetensors"]).read(predicted)
    with pytest.raises(MaskfoldError, match="other weights"):
        OofStore(first.folder / "oof", weights="0" * 64).read(predicted)
    case = run.validation_cases(1)["id"].iloc[0]
    flip_png(root / "masks" / f"{case}.png")
    second = dataclasses.replace(make_jobs(run)[1], cache=tmp_path / "cache", threads=1)
    second.folder.mkdir()
    with pytest.raises(ChangedDataError, match=rf"The mask of case {case} \(masks/{case}\.png\) has changed since"):
        run_fold(second, say=lambda line: None)
    assert not (second.folder / "result.json").exists() and summarize_run(run).cases == 5


@pytest.mark.parametrize("words", [("seed=7", "seed=7", 1), ("seed=[7, 8]", "seed=[7, 8]", 1), ("seed=7", "seed=8", 0)])
def test_a_checkpoint_of_another_fold_seed_or_run_is_refused(tiny, tmp_path, words):
    """Fold 0 resumed from the checkpoint of fold 1, which was trained on the cases that fold 0 validates."""
    first, second, number = words
    run, job = start(tiny(2, first), tmp_path, tmp_path / "cache")
    other_run, other = start(tiny(2, second), tmp_path, tmp_path / "cache", number)
    trainer = setup_fold(other, other_run, Context(), 0.0)
    trainer.save_checkpoint()
    shutil.copy(other.folder / "last.pt", job.folder)
    with pytest.raises(
        MaskfoldError, match=rf"fold_0/last\.pt belongs to fold {other.fold} .*, expected fold 0"
    ) as refusal:
        setup_fold(job, run, Context(), 0.0)
    assert f"delete {job.folder}" in refusal.value.hint
    moved = tmp_path / "a copy" / other.folder.name  # in a renamed folder of its run
    shutil.copytree(other.folder, moved)
    assert dataclasses.replace(trainer, folder=moved, model=trainer.unwrapped_model).state.step == 0
    content = torch.load(job.folder / "last.pt")
    del content["origin"]  # as in 0.1
    torch.save(content, job.folder / "last.pt")
    setup_fold(job, run, Context(), 0.0)


def test_a_fold_that_another_process_trains_is_refused(tiny, tmp_path):
    import subprocess
    import sys

    _, job = start(tiny(2), tmp_path, tmp_path / "cache")
    hold = (
        "import sys, time; from pathlib import Path; from competition.runs.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(job.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MaskfoldError, match=f"is in use by process {holder.pid} on"):
            run_fold(job, say=lambda line: None)
    finally:
        holder.kill()
        holder.wait()
    assert run_fold(job, say=lambda line: None).score is not None  # a dead holder holds nothing


def test_a_refused_command_changes_nothing_in_the_run(tiny, demo2d, tmp_path, monkeypatch):
    """The second command reads the same data elsewhere: its run has the same name, its YAML another root."""
    monkeypatch.chdir(tmp_path)
    run, _ = start(tiny(2), tmp_path / "runs", tmp_path / "cache")
    shutil.copytree(demo2d, tmp_path / "elsewhere")
    second = open_run(tiny(2, f"competition.root={tmp_path / 'elsewhere'}"), "tiny", root=tmp_path / "runs")
    assert second.folder == run.folder

    def content():
        return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"}

    before = content()
    with run_lock(run.folder):
        with pytest.raises(MaskfoldError, match="is in use by process"), locked_run(second):
            pytest.fail("the lock was given twice")
        assert content() == before and not (tmp_path / "mlruns").exists()
    with locked_run(second) as prepared:
        assert not is_free(run.folder)
        assert str(tmp_path / "elsewhere") in (prepared.folder / "experiment.yaml").read_text()
    assert is_free(run.folder)


def test_a_new_run_gets_its_folder_only_after_the_checks(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, "init_from=absent"), "tiny", root=tmp_path / "runs")
    with pytest.raises(MaskfoldError, match="absent"), locked_run(run):
        pytest.fail("the checks passed")
    assert not run.folder.exists()


def test_weights_that_are_not_there_are_refused_before_any_work(tiny, tmp_path, monkeypatch):
    from competition.training.cross_validate import prepare_run

    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, "init_from=absent"), "tiny", root=tmp_path / "runs")
    with pytest.raises(MaskfoldError, match="absent"):
        prepare_run(run)
    assert not run.folder.exists() and not (tmp_path / "mlruns").exists()


def test_one_seed_twice_is_refused(tiny):
    with pytest.raises(MaskfoldError, match=r"seed.*\[1, 1\]"):
        tiny(2, "seed=[1, 1]")


@pytest.mark.parametrize(("both_empty", "score"), [("null", None), ("1.0", 1.0)])
def test_a_fold_of_healthy_cases_predicted_empty_finishes(tiny, tmp_path, monkeypatch, both_empty, score):
    """No case of the fold defines a score, unless the metric says what two empty masks score."""
    overrides = (f"competition.metric.both_empty={both_empty}", "training.epochs=1", "training.soup=2", "seed=[1, 2]")
    run, _ = start(tiny(2, *overrides), tmp_path / "runs", tmp_path / "cache")
    healthy = set(run.folds.loc[run.folds["fold"] == 0, "id"])
    real_masks, real_truth = evaluator_module.to_masks, evaluator_module.load_unchanged_mask
    monkeypatch.setattr(evaluator_module, "to_masks", lambda probabilities, comp: 0 * real_masks(probabilities, comp))
    monkeypatch.setattr(
        evaluator_module, "load_unchanged_mask", lambda comp, row: real_truth(comp, row) * (row.id not in healthy)
    )
    for job in make_jobs(run)[:2]:
        assert job.fold == 0
        job = dataclasses.replace(job, cache=tmp_path / "cache", threads=1)
        job.folder.mkdir(parents=True, exist_ok=True)
        result = run_fold(job)
        assert result.score == score and set(result.dice.values()) == {None}
        assert FoldResult.read(job.folder) == result
    summary = summarize_run(run)
    assert summary.score == score and summary.seeds["one"] == score and summary.soup["flattered"] == score
    assert summary.low in (None, score)
    again = summarize_run(run)
    assert again == summary and json.loads((run.folder / "summary.json").read_text())["score"] == score
    lines = [*format_soup(summary.soup), *format_seed_gain(summary.seeds)]
    assert ("absent" in lines[0]) == (score is None) and not any("nan" in line for line in lines)
    console = Console(file=io.StringIO(), width=200)
    console.print(cv_table(summary, run))
    assert "nan" not in console.file.getvalue()
