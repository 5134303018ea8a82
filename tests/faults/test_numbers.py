"""A loss or gradient that is not a number: stops, is left out, or sends training back; and leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from safetensors.torch import load_file

from competition.context import Context
from competition.data.dataset import PatchDataset
from competition.data.preprocessing import preprocess_cases
from competition.errors import MaskfoldError
from competition.models.schedules import LRSchedule
from competition.runs.checkpoint import load_checkpoint
from competition.runs.fold import FoldResult
from competition.runs.identity.hashing import run_hash
from competition.tracking.sync_state import FileOffset, read_chunk
from competition.training import fold as fold_module
from competition.training.cross_validate import open_run, prepare_run
from competition.training.executors import LocalExecutor
from competition.training.fold import run_fold, setup_fold
from competition.training.guards import MAX_RESTORES
from competition.training.trainer import Trainer
from tests.training.test_fold import Killed, killed_after, losses, start

pytestmark = pytest.mark.faults

# Batch statistics, averaged weights and momenta: all that a bad step could spoil for good.
FRAIL = [
    "model.args={features: [4, 4, 4, 4, 4, 4], norm: batch}",
    "training.ema=0.9",
    "training.accumulate=2",
    "schedule={name: cosine, warmup: 0.2}",
    "training.checkpoint_minutes=0",
    "training.validate_every=9",
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quiet(line: str) -> None:
    """Nobody listens."""


def poison(exp, run, job) -> tuple[str, list[int]]:
    """Make one training case NaN throughout; its id, and the steps (from 0) that draw it."""
    prepared = preprocess_cases(run.cases, exp, job.cache)
    train = [case for case, fold in zip(run.folds["id"], run.folds["fold"], strict=True) if fold != job.fold]
    image = np.load(prepared[train[0]] / "image.npy", mmap_mode="r+")
    image[...] = np.nan
    image.flush()
    cfg = exp.training
    dataset = PatchDataset([prepared[case] for case in train], exp, job.fold, exp.seeds[0])
    samples = cfg.batch_size * cfg.accumulate * exp.run.devices
    drawn = [
        {dataset.case_index(epoch, place * samples + sample) for sample in range(samples)}
        for epoch in range(cfg.epochs)
        for place in range(cfg.steps_per_epoch)
    ]
    return train[0], [step for step, cases in enumerate(drawn) if 0 in cases]


def trained(run, job, say=quiet) -> Trainer:
    """A fold after its last step, without the prediction that follows."""
    training = setup_fold(job, run, Context(say=say), time.monotonic())
    training.train()
    return training


def same_weights(one: Trainer, other: Trainer) -> bool:
    """Whether two folds ended with the same weights, bit for bit, all of them numbers."""
    first, second = one.final_weights(), other.final_weights()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def points(folder: Path, name: str) -> dict[int, float]:
    """What MLflow is told of a metric, by step."""
    return {
        point.step: point.value
        for point in read_chunk(folder / "metrics.jsonl", FileOffset()).points
        if point.name == name
    }


# Skip


@pytest.fixture
def skipping(tiny):
    def make(policy: str = "{skip: 50}", *words: str):
        return tiny(
            3,
            *FRAIL,
            f"training.on_nan={policy}",
            "training.steps_per_epoch=5",
            "training.batch_size=1",
            "patch.size=[32,32,16]",
            *words,
        )

    return make


def test_a_skipped_step_leaves_nothing_but_its_gap(skipping, tmp_path, monkeypatch):
    exp = skipping()
    run, job = start(exp, tmp_path / "bad", tmp_path / "bad_cache")
    case, bad = poison(exp, run, job)
    assert 2 <= len(bad) <= 8, "the seed draws the case in some steps, and not in all"
    said: list[str] = []
    result = run_fold(job, said.append)
    assert result.skipped == len(bad) and result.steps == 10 and result.stopped == "done"
    told = [line for line in said if "step is skipped" in line]
    assert len(told) == len(bad) and all(
        f"at step {step + 1} of" in line and case in line for step, line in zip(bad, told, strict=True)
    )

    # The same training on good data, with those steps taken out by hand.
    run, other = start(exp, tmp_path / "good", tmp_path / "good_cache")
    real = Trainer.training_step

    def step(self, batches):
        if self.state.step not in bad:
            return real(self, batches)
        for _ in range(exp.training.accumulate):
            next(batches)
        self.state.step += 1
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", step)
        good = trained(run, other)
    weights = load_file(job.folder / "weights.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in good.final_weights().items())
    for epoch in (0, 1):  # the epoch's loss is the mean of the steps that were taken
        taken = 5 - sum(step // 5 == epoch for step in bad)
        assert losses(job.folder)[epoch] * taken == pytest.approx(losses(other.folder)[epoch] * 5)
    so_far = {5: sum(step < 5 for step in bad), 10: len(bad)}
    assert points(job.folder, "train/skipped") == {step: number for step, number in so_far.items() if number}


def test_a_killed_fold_that_skips_ends_with_the_same_weights(skipping, tmp_path, monkeypatch):
    exp = skipping()
    run, whole = start(exp, tmp_path / "whole", tmp_path / "cache")
    poison(exp, run, whole)
    undisturbed = trained(run, whole)
    run, job = start(exp, tmp_path / "killed", tmp_path / "cache")
    for steps in (3, 4):
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(Killed):
                trained(run, job)
    again = trained(run, job)
    assert again.state.skipped == undisturbed.state.skipped > 2
    assert same_weights(undisturbed, again) and losses(whole.folder) == losses(job.folder)


def test_a_fold_that_has_skipped_enough_stops_and_goes_on_with_a_higher_limit(skipping, tmp_path):
    exp = skipping()
    run, whole = start(exp, tmp_path / "whole", tmp_path / "cache")
    case, bad = poison(exp, run, whole)
    undisturbed = trained(run, whole)
    for policy, stops, words in (
        ("stop", bad[0], r"on_nan=\{skip: 5\}"),
        ("{skip: 1}", bad[1], "already skipped 1 .*skip: 2"),
    ):
        run, job = start(skipping(policy), tmp_path / "grown", tmp_path / "cache")
        with pytest.raises(
            MaskfoldError, match=rf"The .* is .* at step {stops + 1} of fold 0 \(cases .*{case}.*{words}"
        ):
            trained(run, job)
    again, job = start(exp, tmp_path / "grown", tmp_path / "cache")
    assert again.folder == run.folder
    training = trained(again, job)
    assert training.state.skipped == len(bad) and same_weights(undisturbed, training)


@pytest.mark.parametrize("clip", ["null", "12.0"])
def test_a_gradient_that_is_no_number_counts_although_the_loss_is_one(tiny, tmp_path, clip):
    def fold(policy: str):
        run, job = start(
            tiny(2, f"training.on_nan={policy}", f"training.clip_gradient={clip}"),
            tmp_path / policy[:4],
            tmp_path / "cache",
        )
        training = setup_fold(job, run, Context(), 0.0)
        root_of_nothing(training, steps=(1,))
        return training

    with pytest.raises(MaskfoldError, match=r"The gradient's norm is nan at step 2 of fold 0 \(cases .+, .+\)"):
        fold("stop").train()
    training = fold("{skip: 1}")
    training.train()
    assert training.state.skipped == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in training.unwrapped_model.state_dict().values())


def root_of_nothing(training, steps) -> None:
    """At these steps the loss is what it was, and its gradient is 0 × ∞."""
    real = training.loss

    class Rooted(torch.nn.Module):
        def forward(self, outputs, mask):
            total, parts = real(outputs, mask)
            if training.state.step in steps:
                total = total + (0.0 * next(training.unwrapped_model.parameters())).sqrt().sum()
            return total, parts

    training.loss = Rooted()


# Restore


def diverging(monkeypatch, above: float, after: int) -> None:
    """From step `after` on, a rate of more than `above` gives a loss that is no number."""
    real = Trainer._backward

    def backward(self, batches):
        micros = real(self, batches)
        if self.state.step >= after and self.optimizer.param_groups[0]["lr"] > above:
            for micro in micros:
                micro.losses["loss"].fill_(math.inf)
                for parameter in self.unwrapped_model.parameters():
                    parameter.grad.fill_(math.nan)
        return micros

    monkeypatch.setattr(Trainer, "_backward", backward)


RESTORING = [
    "training.on_nan=restore",
    "schedule={name: constant}",
    "optimizer.args.lr=1.0e-2",
    "training.ema=0.9",
    "model.args={features: [4, 4, 4, 4, 4, 4], norm: batch}",
    "training.validate_every=9",
]


@pytest.mark.parametrize(("after", "back"), [(6, 4), (2, 0)])
def test_restoring_goes_back_to_the_epochs_start_and_halves_the_rate(tiny, tmp_path, monkeypatch, after, back):
    run, job = start(tiny(2, *RESTORING), tmp_path / "restored", tmp_path / "cache")
    said: list[str] = []
    with monkeypatch.context() as patch:
        diverging(patch, 0.3e-2, after)  # of 1e-2, 0.5e-2 and 0.25e-2 only the last is low enough
        restored = trained(run, job, said.append)
    assert restored.state.restored == 2 and restored.state.skipped == 0 and restored.state.step == 8
    assert [line[line.index("back to step") :] for line in said if "back to step" in line] == [
        f"back to step {back} with {share} times the original learning rate" for share in (0.5, 0.25)
    ]
    assert set(points(job.folder, "train/restored").values()) == {2.0}
    assert len(losses(job.folder)) == 2

    # By hand: a training whose rate is a quarter from that step on.
    run, other = start(tiny(2, *RESTORING), tmp_path / "byhand", tmp_path / "cache")
    real = LRSchedule.multiplier
    with monkeypatch.context() as patch:
        patch.setattr(
            LRSchedule,
            "multiplier",
            lambda self, share: real(self, share) * (0.25 if round(share * 8) >= back else 1.0),
        )
        by_hand = trained(run, other)
    assert (
        by_hand.state.restored == 0 and same_weights(restored, by_hand) and losses(job.folder) == losses(other.folder)
    )


def test_a_killed_fold_that_restores_ends_with_the_same_weights_whenever_checkpoints_are_written(
    tiny, tmp_path, monkeypatch
):
    diverging(monkeypatch, 0.3e-2, 6)
    run, whole = start(tiny(2, *RESTORING, "training.checkpoint_minutes=60"), tmp_path / "whole", tmp_path / "cache")
    undisturbed = run_fold(whole, quiet)
    assert undisturbed.restored == 2 and not (whole.folder / "good.pt").exists()
    run, job = start(tiny(2, *RESTORING, "training.checkpoint_minutes=0"), tmp_path / "killed", tmp_path / "cache")
    for steps in (3, 3, 2):  # taken or tried: in the first epoch, before the first return, after it
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(Killed):
                trained(run, job)
    assert 1 <= load_checkpoint(job.folder / "last.pt")["progress"]["restored"] <= 2
    training = trained(run, job)
    weights = load_file(whole.folder / "weights.safetensors")
    assert training.state.restored == 2
    assert all(torch.equal(tensor, weights[name]) for name, tensor in training.final_weights().items())
    assert losses(whole.folder) == losses(job.folder)


def test_going_back_ends(tiny, tmp_path, monkeypatch):
    diverging(monkeypatch, 0.0, 5)
    run, job = start(tiny(2, *RESTORING), tmp_path, tmp_path / "cache")
    said: list[str] = []
    with pytest.raises(MaskfoldError, match=rf"at step 6 of fold 0 \(cases .*halved {MAX_RESTORES} times"):
        trained(run, job, said.append)
    assert sum("back to step 4" in line for line in said) == MAX_RESTORES


# Fp16


def fp16(monkeypatch, scale: float) -> torch.amp.GradScaler:
    """A CPU that computes in fp16 with a scaler, as GPUs without bf16 do."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(
        fold_module, "make_fabric", lambda exp, steady: (Fabric(accelerator="cpu", devices=1, plugins=[plugin]), "fp16")
    )
    return scaler


@pytest.mark.parametrize("clip", ["null", "12.0"])
def test_an_overflow_of_the_scaler_is_not_taken_for_a_bad_step(tiny, tmp_path, monkeypatch, clip):
    scaler = fp16(monkeypatch, 2.0**30)
    run, job = start(
        tiny(2, "training.steps_per_epoch=15", f"training.clip_gradient={clip}", "training.validate_every=9"),
        tmp_path,
        tmp_path / "cache",
    )
    training = setup_fold(job, run, Context(), 0.0)
    training.train()  # on_nan is stop: a mistake ends it
    overflows = 30 - math.log2(scaler.get_scale())
    assert overflows >= 2, "gradients times 2^30 are beyond fp16"
    taken = {int(state["step"]) for state in training.optimizer.state.values()}
    assert taken == {30 - overflows} and training.state.step == 30
    assert all(bool(torch.isfinite(tensor).all()) for tensor in training.unwrapped_model.state_dict().values())


def test_a_gradient_that_is_no_number_at_any_scale_stops(tiny, tmp_path, monkeypatch):
    fp16(monkeypatch, 4.0)
    run, job = start(tiny(2), tmp_path, tmp_path / "cache")
    training = setup_fold(job, run, Context(), 0.0)
    root_of_nothing(training, steps=range(9))
    with pytest.raises(MaskfoldError, match="The gradient's norm is nan at step 3 of fold 0"):  # scales 4, 2, 1
        training.train()


def test_a_step_that_is_skipped_does_not_touch_the_scaler(skipping, tmp_path, monkeypatch):
    scaler = fp16(monkeypatch, 16.0)
    exp = skipping()
    run, job = start(exp, tmp_path, tmp_path / "cache")
    _, bad = poison(exp, run, job)
    assert trained(run, job).state.skipped == len(bad)
    assert scaler.get_scale() == 16.0 and scaler._growth_tracker.item() == 10 - len(bad)


# The run


class Spiky(torch.nn.CrossEntropyLoss):
    """The third loss of a fold's second process is infinite, and its gradient is not: the first sees nothing of it."""

    computed = 0

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        Spiky.computed += 1
        spike = math.inf if os.environ.get("LOCAL_RANK") == "1" and Spiky.computed == 3 else 0.0
        return super().forward(input, target) + spike


def test_two_processes_skip_together(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKFOLD_TRUST", "tests")
    _, job = start(
        tiny(
            2,
            "training.on_nan={skip: 2}",
            "run.devices=2",
            f"loss={{target: {Spiky.__module__}.Spiky}}",
            "training.epochs=1",
        ),
        tmp_path,
        tmp_path / "cache",
    )
    said: list[str] = []
    LocalExecutor(1, devices=2).run([dataclasses.replace(job, threads=2)], said.append)
    result = FoldResult.read(job.folder)
    assert result.skipped == 1 and result.steps == 4 and result.devices == 2 and result.score is not None
    (told,) = [
        line for line in said if "step is skipped" in line
    ]  # by the first process, of the second one's cases too
    assert (
        "The loss is inf at step 3 of fold 0" in told
        and len(re.search(r"cases (.+)\)", told).group(1).split(", ")) == 4
    )


def test_the_policy_is_no_part_of_a_runs_name_and_is_not_mixed(tiny, tmp_path, monkeypatch):
    names = {
        run_hash(tiny(2, *words), "data") for words in ([], ["training.on_nan=restore"], ["training.on_nan={skip: 3}"])
    }
    assert len(names) == 1 and run_hash(tiny(2, "training.ema=0.5"), "data") not in names
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, "training.on_nan=restore"), "tiny", root=tmp_path)
    prepare_run(run)
    folder = run.member_folder(0, 0)
    folder.mkdir()
    result = FoldResult(0, 0, 0.5, {}, 1, 4, 0.1, 0.1, 1, "", "cpu", "", "done", skipped=3)
    (folder / "result.json").write_text(json.dumps(result.__dict__))
    with pytest.raises(MaskfoldError, match=r"fold_0 skipped 3 steps.*training\.on_nan.*restore"):
        prepare_run(run)


@pytest.mark.parametrize(
    "words",
    [
        "training.on_nan=skip",
        "training.on_nan={skip: 0}",
        "training.on_nan={skip: 1.5}",
        "training.on_nan={leave: 3}",
        "training.on_nan=3",
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(tiny, words):
    with pytest.raises(MaskfoldError, match="training.on_nan") as caught:
        tiny(2, words)
    assert caught.value.status == 2
