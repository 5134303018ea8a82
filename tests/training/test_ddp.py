"""Several devices in one fold: the same steps as one process with the same global batch."""

from __future__ import annotations

import dataclasses
import os
import queue
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from monai.networks.nets import BasicUNet
from safetensors.torch import load_file

from competition.data.dataset import BatchSampler, PatchDataset
from competition.errors import MaskfoldError
from competition.runs.checkpoint import load_checkpoint, save_checkpoint
from competition.runs.fold import FoldJob, FoldResult
from competition.training.budget import MIN_STEPS
from competition.training.cross_validate import prepare_run
from competition.training.distributed import DistributedContext, make_fabric
from competition.training.executors import LocalExecutor, gpus_of_slot
from competition.training.fold import run_fold
from competition.training.fold_process import raise_for_status, start_fold, stop_folds
from tests.training.test_fold import Killed, killed_after, losses
from tests.training.test_fold import start as begun

pytestmark = pytest.mark.xdist_group(
    "serial"
)  # processes of one fold, which others would slow down until they time out

SETTINGS = ["training.steps_per_epoch=1", "training.epochs=20", "training.validate_every=100", "training.ema=0.9"]


class Spare(BasicUNet):
    """A network with parameters that its forward pass does not use, as encoders with spare stages have."""

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, features=(4, 4, 8, 8, 8, 4), norm="batch", dropout=0.1
        )
        self.spare = torch.nn.Conv2d(4, 4, 3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def two(job: FoldJob) -> FoldJob:
    """The job with a thread for each of its two processes."""
    return dataclasses.replace(job, threads=2)


def wait_for(process: subprocess.Popen, true, seconds: float = 250.0) -> None:
    """Until something is true of a fold that is running."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def epochs(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def others(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that a fold's first one has started."""
    return psutil.Process(process.pid).children()


# What needs no second process


@pytest.mark.parametrize("settings", [[], ["training.steps_per_epoch=null"], ["training.accumulate=2"]])
def test_the_processes_of_a_fold_draw_each_place_of_an_epoch_once(tiny, tmp_path, settings):
    exp = tiny(2, "run.devices=2", *settings)
    dataset = PatchDataset([tmp_path] * 9, exp, 0, 1)
    micro = dataset.positions_per_epoch // (2 * exp.training.batch_size)
    assert (
        micro == (4 if exp.training.steps_per_epoch else 3) * exp.training.accumulate
    )  # nine cases are three steps of four
    drawn = [
        place
        for rank in (0, 1)
        for batch in BatchSampler(0, 2 * micro, micro, exp.training.batch_size, rank, 2)
        for place in batch
    ]
    assert sorted(drawn) == [(epoch, place) for epoch in (0, 1) for place in range(dataset.positions_per_epoch)]


@pytest.mark.parametrize(("environment", "status"), [({"LOCAL_RANK": "1"}, 0), ({}, -signal.SIGABRT)])
def test_an_abort_during_cleanup_does_not_change_the_status_of_a_fold_with_several_processes(environment, status):
    code = "import atexit, os; from competition.training.fold import exit_fold; atexit.register(os.abort); print('end')"
    clean = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; exit_fold(0)"], env=clean | environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (status, "end\n")


class Exchange:
    """The part of Fabric that `DistributedContext.run_on_main` uses: what the first process sends, the second gets."""

    def __init__(self) -> None:
        self.sent: queue.Queue = queue.Queue()

    def ranks(self, rank: int) -> DistributedContext:
        def broadcast(content):
            if rank == 0:
                self.sent.put(content)
                return content
            return self.sent.get_nowait()

        return DistributedContext(SimpleNamespace(world_size=2, global_rank=rank, broadcast=broadcast))


def test_the_first_process_decides_and_the_others_follow():
    exchange, done = Exchange(), []
    exchange.ranks(0).run_on_main(
        lambda: done.append("acted"), lambda: {"step": 7}, lambda state: done.append(("took", state))
    )
    assert done == ["acted"]
    exchange.ranks(1).run_on_main(
        lambda: done.append("acted"), lambda: {"step": 3}, lambda state: done.append(("took", state))
    )
    assert done == ["acted", ("took", {"step": 7})]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("SIGTERM"), MaskfoldError("The disk is full.", "Make room."), OSError()]
)
def test_what_ends_the_first_process_ends_the_others(error):
    def act() -> None:
        raise error

    exchange = Exchange()
    with pytest.raises(type(error)) as caught:
        exchange.ranks(0).run_on_main(act, dict, pytest.fail)
    assert caught.value is error
    with pytest.raises(KeyboardInterrupt, match="main process stopped"):
        exchange.ranks(1).run_on_main(pytest.fail, dict, pytest.fail)


def test_a_fold_goes_on_with_the_devices_it_began_with(tiny, tmp_path, monkeypatch):
    _, job = begun(tiny(2, "training.checkpoint_minutes=0"), tmp_path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Killed):
            run_fold(job, say=lambda line: None)
    state = load_checkpoint(job.folder / "last.pt")
    assert state["devices"] == 1
    save_checkpoint(job.folder / "last.pt", {**state, "devices": 2})
    with pytest.raises(
        MaskfoldError, match=r"last\.pt .*run\.devices=2, but run\.devices is now 1.*Set run\.devices=2"
    ):
        run_fold(job, say=lambda line: None)
    del state["devices"]  # checkpoints from before there were several
    save_checkpoint(job.folder / "last.pt", state)
    assert run_fold(job, say=lambda line: None).devices == 1


def test_folds_of_one_run_are_trained_with_the_same_devices(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, job = begun(tiny(2), tmp_path, tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    other, _ = begun(tiny(2, "run.devices=3"), tmp_path, tmp_path / "cache")
    assert other.folder == run.folder
    with pytest.raises(MaskfoldError, match=r"fold_0 .*run\.devices=1 .*run\.devices.* 3"):
        prepare_run(other)


def test_more_devices_than_the_machine_has_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MaskfoldError, match=r"run\.devices=4, .* 2 cuda devices"):
        make_fabric(tiny(2, "run.devices=4", "run.accelerator=cuda"))


@pytest.mark.parametrize(
    ("visible", "devices", "parallel", "wanted"),
    [
        ("0,1,2,3", 1, 4, [["0"], ["1"], ["2"], ["3"]]),
        ("0,1,2,3", 2, 2, [["0", "1"], ["2", "3"]]),
        ("4,6", 1, 3, [["4"], ["6"], ["4"]]),
        ("0,1", 2, 1, [None]),
        ("", 1, 2, [None, None]),
        ("0", 1, 2, [None, None]),
    ],
)
def test_folds_side_by_side_have_gpus_of_their_own(monkeypatch, visible, devices, parallel, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpus_of_slot(slot, devices, parallel) for slot in range(parallel)] == wanted


# Two processes


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("dimensions", "settings"), [(2, []), (3, ["training.accumulate=2"])])
def test_two_processes_follow_one_with_the_same_global_batch(tiny, tmp_path, dimensions, settings):
    _, job = begun(
        tiny(dimensions, *SETTINGS, *settings, "training.batch_size=4"), tmp_path / "one", tmp_path / "cache"
    )
    run_fold(job, say=lambda line: None)
    _, other = begun(tiny(dimensions, *SETTINGS, *settings, "run.devices=2"), tmp_path / "two", tmp_path / "cache")
    said: list[str] = []
    LocalExecutor(1, devices=2).run([two(other)], said.append)
    one, both = losses(job.folder), losses(other.folder)
    assert len(one) == len(both) == 20
    assert both == pytest.approx(one, rel=1e-4)
    assert max(one) / min(one) > 1.01  # a network that stands still would follow anything
    result = FoldResult.read(other.folder)
    assert result.devices == 2 and result.threads == 1 and result.score is not None
    assert sum("epoch 7 " in line for line in said) == 1  # one of them speaks


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fold_of_two_processes_that_is_killed_ends_with_the_same_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKFOLD_TRUST", "tests")
    words = [
        f"model={{target: {Spare.__module__}.Spare}}",
        "schedule={name: plateau, patience: 1}",
        "training.ema=0.9",
        "run.devices=2",
        "training.epochs=12",
        "training.checkpoint_minutes=0",
    ]
    _, whole = begun(tiny(2, *words), tmp_path / "whole", tmp_path / "cache")
    LocalExecutor(1).run([two(whole)], lambda line: None)
    _, job = begun(tiny(2, *words), tmp_path / "killed", tmp_path / "cache")
    for number, least in ((signal.SIGTERM, 2), (signal.SIGKILL, 5)):
        process = start_fold(two(job))
        wait_for(process, lambda least=least: epochs(job.folder) >= least)
        helpers = others(process)
        assert len(helpers) == 1 and not (job.folder / "result.json").exists()
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert not psutil.wait_procs(helpers, 60)[1]  # nobody is left behind
    assert "stopped (SIGTERM)" in (job.folder / "log.txt").read_text()
    LocalExecutor(1).run([two(job)], lambda line: None)
    assert "resumed from step" in (job.folder / "log.txt").read_text()
    assert losses(job.folder) == losses(whole.folder) and len(losses(job.folder)) == 12
    one, other = load_file(whole.folder / "weights.safetensors"), load_file(job.folder / "weights.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert FoldResult.read(job.folder).score == FoldResult.read(whole.folder).score


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("words", "least"),
    [
        (["training.epochs=9", "early_stopping={all_classes_at_least: 0.0}"], 4),
        (["training.epochs=1000", "training.budget_minutes=0.15"], MIN_STEPS),
    ],
)
def test_two_processes_stop_together(tiny, tmp_path, words, least):
    _, job = begun(tiny(2, "run.devices=2", *words), tmp_path, tmp_path / "cache")
    LocalExecutor(1).run([two(job)], lambda line: None)
    result = FoldResult.read(job.folder)
    assert least <= result.steps < 4000 and result.stopped


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loss_that_is_not_a_number_names_the_cases_of_all_processes(tiny, tmp_path):
    _, job = begun(tiny(2, "run.devices=2", "optimizer.args.lr=1.0e+30"), tmp_path, tmp_path / "cache")
    with pytest.raises(MaskfoldError, match=r"The loss is .* at step \d of fold 0 \(cases .+\)") as caught:
        LocalExecutor(1).run([two(job)], lambda line: None)
    cases = re.search(r"cases (.+?)\)", str(caught.value)).group(1).split(", ")
    assert len(cases) == 4 and len(set(cases)) > 2  # two of each; a case may be drawn by both


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fold_whose_second_process_is_killed_ends(tiny, tmp_path):
    _, job = begun(tiny(2, "run.devices=2", "training.epochs=100000"), tmp_path, tmp_path / "cache")
    process = start_fold(two(job))
    try:
        wait_for(process, lambda: epochs(job.folder) >= 2)
        others(process)[0].kill()
        status = process.wait(60)
    finally:
        stop_folds([process])
    with pytest.raises(MaskfoldError, match="fold_0 ended with status"):
        raise_for_status(job, status)
