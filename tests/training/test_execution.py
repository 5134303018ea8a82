"""How a network runs: a run keeps its memory format and its optimizer's kernel; compilation, and loader processes."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from competition.config.loading import resolve_config, write_yaml
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.build import build_network, suits_channels_last, validate_network
from competition.models.execution import arrange, compile_network, wants_compilation
from competition.models.optim import build_optimizer
from competition.runs.identity.hashing import run_hash
from competition.runs.kept_settings import decide_settings, stored_settings
from competition.runs.oof import OofStore
from competition.runs.run import load_run
from competition.training import distributed
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.distributed import with_workers
from competition.training.fold import run_fold, setup_fold
from competition.training.guards import bf16_is_deterministic
from competition.training.trainer import Trainer

INSTANCE = "model.args={features: [4, 4, 8, 8, 8, 4], norm: instance}"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prepared(exp: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> tuple[Any, Any]:
    """Return a run as `maskfold cv` writes it, and the job of its first fold."""
    monkeypatch.setattr("competition.training.cross_validate.CACHE_FOLDER", cache)
    run = prepare_run(open_run(exp, "tiny", root=root))
    job = dataclasses.replace(make_jobs(run)[0], cache=cache, threads=1)
    job.folder.mkdir(parents=True, exist_ok=True)
    return run, job


def is_last(tensor: torch.Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, and not also the pixels of a channel."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


# What a run keeps


@pytest.mark.parametrize(
    ("dimensions", "settings", "expected"),
    [
        (2, [], ("channels_last", "on")),
        (3, [], ("channels_first", "on")),
        (2, [INSTANCE], ("channels_first", "on")),  # 1.2 times as slow in channels_last
        (2, [INSTANCE, "training.memory_format=channels_last"], ("channels_last", "on")),
        (2, ["training.memory_format=channels_first", "training.fused=off"], ("channels_first", "off")),
        (2, ["run.accelerator=mps"], ("channels_first", "off")),
        (2, ["optimizer.target=torch.optim.NAdam"], ("channels_last", "off")),
        (2, ["optimizer.args.foreach=true"], ("channels_last", "off")),
    ],
)
def test_a_new_run_gets_what_is_faster_unless_the_yaml_says_otherwise(tiny, dimensions, settings, expected):
    exp = tiny(dimensions, *settings)
    found = decide_settings(exp, suits_channels_last(exp, 1))
    assert (found["memory_format"], found["fused"]) == expected


def test_the_hash_does_not_cover_what_a_run_keeps(tiny):
    exp = tiny(2)
    name = run_hash(exp, "data", 2)
    for words in ("training.memory_format=channels_last", "training.fused=off", "run.workers=3"):
        assert run_hash(tiny(2, words), "data", 2) == name and run_hash(tiny(2, words), "data") == run_hash(exp, "data")
    assert run_hash(tiny(2, "training.compile=on"), "data", 2) != name


def test_a_run_is_found_again_with_the_settings_that_it_was_started_with(tiny, tmp_path, monkeypatch):
    run, _ = prepared(tiny(2), tmp_path / "cache", monkeypatch, tmp_path)
    assert stored_settings(run.folder) == {"memory_format": "channels_last", "fused": "on"}
    assert run.exp.training.memory_format == "channels_last"
    again = open_run(tiny(2), "tiny", root=tmp_path)
    assert again.folder == run.folder and again.exp.training == run.exp.training
    assert load_run(run.folder).exp.training == run.exp.training  # it was not edited
    with pytest.raises(MaskfoldError, match="was started with training.memory_format=channels_last, .* now .*_first"):
        open_run(tiny(2, "training.memory_format=channels_first"), "tiny", root=tmp_path)
    new = open_run(tiny(2, "training.memory_format=channels_first"), "tiny", new=True, root=tmp_path)
    assert new.folder != run.folder and new.exp.training.memory_format == "channels_first"


def without_settings(folder: Path) -> None:
    """Change a run's folder to that of a version without the settings."""
    plain = yaml.safe_load((folder / "experiment.yaml").read_text())
    for key in ("memory_format", "fused", "compile"):
        del plain["training"][key]
    del plain["run"]["workers"]
    write_yaml(plain, folder / "experiment.yaml")


def test_an_older_run_stays_channels_first(tiny, tmp_path, monkeypatch):
    run, _ = prepared(tiny(2), tmp_path / "cache", monkeypatch, tmp_path)
    without_settings(run.folder)
    assert stored_settings(run.folder) == {"memory_format": "channels_first", "fused": "off"}
    again = open_run(tiny(2), "tiny", root=tmp_path)
    assert again.folder == run.folder
    later = prepare_run(again)
    assert later.exp.training.memory_format == "channels_first" and later.exp.training.fused == "off"
    assert stored_settings(run.folder) == {"memory_format": "channels_first", "fused": "off"}
    without_settings(run.folder)
    loaded = load_run(run.folder)  # what submit, predict and the bundle read
    weight = next(tensor for tensor in build_network(loaded.exp, 3).parameters() if tensor.ndim == 4)
    images = torch.randn(2, 3, 8, 8).transpose(2, 3)
    assert weight.is_contiguous() and not is_last(weight) and arrange(images, loaded.exp) is images


# A fold in channels_last


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def test_a_killed_fold_in_channels_last_ends_with_the_same_bits(tiny, tmp_path, monkeypatch):
    views = ["inference.tta=[flip, rotate90]", "inference.overlap=0.0"]
    exp = tiny(2, "training.checkpoint_minutes=0", "training.ema=0.9", *views)
    _, whole = prepared(exp, tmp_path / "cache", monkeypatch, tmp_path / "whole")
    _, killed = prepared(exp, tmp_path / "cache", monkeypatch, tmp_path / "killed")
    inputs: collections.Counter[bool] = collections.Counter()
    real_step, real_call = Trainer.training_step, nn.Conv2d.forward

    def spy(self: nn.Conv2d, image: torch.Tensor) -> torch.Tensor:
        if min(image.shape[2:]) > 1:  # else both layouts are the same
            inputs[image.stride(1) == 1] += 1
        return real_call(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", spy)
        first = run_fold(whole, say=lambda line: None)
    assert inputs[True] > 0 and inputs[False] == 0
    for steps in (3, 2):
        count = iter(range(steps))

        def step(self: Trainer, batches: Any, count: Any = count) -> bool:
            if next(count, None) is None:
                raise Killed
            moments = [state["exp_avg"] for state in self.optimizer.state.values() if state["exp_avg"].ndim == 4]
            assert all(moment.is_contiguous(memory_format=torch.channels_last) for moment in moments)
            assert self.optimizer.param_groups[0]["fused"] is True
            return real_step(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", step)
            with pytest.raises(Killed):
                run_fold(killed, say=lambda line: None)
    second = run_fold(killed, say=lambda line: None)
    one, two = (load_file(job.folder / "weights.safetensors") for job in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one) and second.score == first.score
    stores = [OofStore(job.folder / "oof", "float16") for job in (whole, killed)]
    for case in stores[0].ids():
        np.testing.assert_array_equal(*(store.read(case) for store in stores))


def test_a_checkpoint_of_other_settings_is_refused(tiny, tmp_path, monkeypatch):
    """Its optimizer's state lies in memory in another order."""
    run, job = prepared(tiny(2), tmp_path / "cache", monkeypatch, tmp_path)
    setup_fold(job, run, Context(), 0.0).save_checkpoint()
    exp = run.exp.model_copy(
        update={"training": run.exp.training.model_copy(update={"memory_format": "channels_first"})}
    )
    with pytest.raises(
        MaskfoldError, match=r"written with training.memory_format=channels_last, but .* channels_first"
    ):
        setup_fold(job, dataclasses.replace(run, exp=exp), Context(), 0.0)


def test_both_layouts_compute_the_same_up_to_the_last_bits(tiny):
    exp = [tiny(2, f"training.memory_format=channels_{end}") for end in ("first", "last")]
    outputs = []
    for one in exp:
        torch.manual_seed(0)
        network = build_network(one, 3)
        outputs.append(network(arrange(torch.randn(2, 3, 32, 32), one)))
    assert is_last(outputs[1]) and not is_last(outputs[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


class Viewing(nn.Module):
    """A network whose code takes the channels-first layout for granted."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 4, 3, padding=1), nn.Conv2d(4, out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.first(image)
        return self.second(found.view(len(found), -1).view_as(found))


def test_a_network_that_fails_in_channels_last_stays_channels_first(tiny):
    words = [f"model.target={__name__}.Viewing", "model.args={}"]
    trust = (__name__.split(".")[0],)
    exp = tiny(2, *words, trust=trust)
    validate_network(exp, 3, Context(trust))
    assert suits_channels_last(exp, 3, Context(trust)) is False
    asked = tiny(2, *words, "training.memory_format=channels_last", trust=trust)
    with pytest.raises(MaskfoldError, match="found channels_last, but Viewing fails in this format: view size"):
        suits_channels_last(asked, 3, Context(trust))


def test_the_bf16_check_computes_in_the_runs_layout_and_keeps_older_answers(tiny, tmp_path, monkeypatch):
    layouts = []
    real = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, image: layouts.append(is_last(image)) or real(self, image))
    for words, last in (([], False), (["training.memory_format=channels_last"], True)):
        layouts.clear()
        bf16_is_deterministic(tiny(2, *words), 3, tmp_path)
        assert layouts and all(layout == last for layout in layouts if layout != last) and layouts[0] is last
    assert len(list((tmp_path / "bf16").glob("*.json"))) == 2
    layouts.clear()
    bf16_is_deterministic(tiny(2, "training.memory_format=channels_first"), 3, tmp_path)
    assert not layouts  # the answer of a run without a format


# The optimizer


def test_a_fused_kernel_is_used_where_there_is_one(tiny):
    network = nn.Linear(3, 2)
    assert build_optimizer(tiny(2), network, fused=True).param_groups[0]["fused"] is True
    assert build_optimizer(tiny(2), network).param_groups[0]["fused"] is None
    exp = tiny(2, "optimizer.target=torch.optim.NAdam", "training.fused=on")
    with pytest.raises(MaskfoldError, match="training.fused is `on`, but NAdam has no fused kernel"):
        build_optimizer(exp, network)


# Compilation


@pytest.mark.parametrize(
    ("words", "device", "expected"),
    [
        ([], "cuda", False),  # the number of epochs says nothing of the minutes
        (["training.budget_minutes=10"], "cuda", True),
        (["training.budget_minutes=9.9"], "cuda", False),
        (["training.budget_minutes=600"], "cpu", False),
        (["training.budget_minutes=600", "training.compile=off"], "cuda", False),
        (["training.budget_minutes=600", "run.devices=2"], "cuda", False),
        (["training.compile=on"], "cpu", True),
    ],
)
def test_auto_compiles_on_a_gpu_if_the_budget_is_long(tiny, words, device, expected):
    assert wants_compilation(tiny(2, *words), torch.device(device)) is expected


class Compiled(nn.Module):
    """Stands for a compiled network: counts its calls."""

    calls = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> Any:
        Compiled.calls += 1
        return self.network(image)


def test_a_compiled_network_takes_the_steps_and_changes_nothing_else(tiny, tmp_path, monkeypatch):
    weights = []
    for mode in ("off", "on"):
        monkeypatch.setattr(torch, "compile", Compiled)
        Compiled.calls = 0
        exp = tiny(2, f"training.compile={mode}", "training.epochs=1", "model.args.norm=batch")
        _, job = prepared(exp, tmp_path / "cache", monkeypatch, tmp_path / mode)
        run_fold(job, say=lambda line: None)
        assert Compiled.calls == (1 + 4 if mode == "on" else 0)  # the trial and the steps; no validation
        weights.append(load_file(job.folder / "weights.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Broken(Compiled):
    """Stands for a network whose code the compiler does not know: it fails at its first call, in the middle."""

    def forward(self, image: torch.Tensor) -> Any:
        super().forward(image)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def test_a_network_that_cannot_be_compiled_trains_without(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", Broken)
    exp, said = tiny(2, "model.args.norm=batch"), []
    network = build_network(exp, 1).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert compile_network(network, exp, 1, torch.device("cpu"), said.append) is None
    assert said == [
        "note: the network cannot be compiled, so it trains without compilation: Failed to find C compiler. Please "
        "specify via CC environment variable"
    ]
    assert torch.equal(torch.get_rng_state(), state) and not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


# Loader processes


@pytest.mark.parametrize(
    ("words", "device", "threads", "free", "expected"),
    [
        ([], "cpu", 16, 2**34, 0),
        ([], "cuda", 16, 2**34, 4),
        ([], "cuda", 3, 2**34, 2),
        ([], "cuda", 1, 2**34, 0),
        (["run.devices=2"], "cuda", 6, 2**34, 2),
        ([], "cuda", 16, 2**26, 0),  # the shared memory of a container
        (["run.workers=7"], "cpu", 1, 2**26, 7),
    ],
)
def test_a_gpu_gets_loader_processes(tiny, monkeypatch, words, device, threads, free, expected):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(distributed, "disk_usage", lambda folder: usage(free))
    exp = with_workers(tiny(2, *words), torch.device(device), threads)
    assert exp.run.workers == exp.run.loader_processes == expected


def test_batches_for_a_gpu_are_pinned(tiny, tmp_path, monkeypatch):
    run, job = prepared(tiny(2), tmp_path / "cache", monkeypatch, tmp_path)
    trainer = setup_fold(job, run, Context(), 0.0)
    assert trainer.train_loader().pin_memory is False and trainer.train_loader().num_workers == 0
    monkeypatch.setattr(type(trainer.fabric), "device", torch.device("cuda", 0))
    assert trainer.train_loader().pin_memory is True


def test_the_replay_of_a_fold_names_what_its_run_keeps(tiny, tmp_path, monkeypatch):
    """So the run of that file repeats the fold bit for bit, also one that was made before there were formats."""
    run, job = prepared(tiny(2, "training.epochs=1"), tmp_path / "cache", monkeypatch, tmp_path)
    run_fold(job, say=lambda line: None)
    plain = yaml.safe_load((job.folder / "experiment.yaml").read_text())
    assert plain["training"]["memory_format"] == "channels_last" and plain["training"]["fused"] == "on"
    assert json.dumps(plain["run"]) == json.dumps(resolve_config(run.exp)["run"])
