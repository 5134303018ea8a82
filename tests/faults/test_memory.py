"""Memory that runs out is said in words or answered with smaller parts; prepared cases stay within their bound."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import monai.networks.nets  # noqa: F401 - before a fold: MONAI keeps tracebacks of optional imports, and so all in their frames
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from competition.config.loading import load_experiment
from competition.context import Context
from competition.data.cache import MemoryBudget, PreprocessedCase, cache_key, mapped_bytes
from competition.data.dataset import PatchDataset
from competition.data.preprocessing import preprocess_cases
from competition.datasets.demo import make_demo
from competition.errors import MaskfoldError
from competition.inference import predict as inference_memory
from competition.inference.predict import is_out_of_memory, predict_case
from competition.models.losses import SegmentationLoss
from competition.runs.checkpoint import load_checkpoint
from competition.runs.identity.hashing import run_hash
from competition.runs.oof import OofStore
from competition.tracking.sync_state import FileOffset, read_chunk
from competition.training import fold as fold_module
from competition.training.executors import LocalExecutor
from competition.training.fold import run_fold, setup_fold
from competition.training.guards import oom_as_error
from competition.training.trainer import Trainer
from tests.conftest import ROOT, TINY
from tests.faults.test_numbers import fp16
from tests.training.test_fold import Killed, killed_after, losses, start

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def afresh():
    before = torch.get_num_threads()
    inference_memory._reduced.clear()
    yield
    inference_memory._reduced.clear()
    torch.set_num_threads(before)


def quiet(line: str) -> None:
    """Nobody listens."""


def full_host() -> None:
    """Ask the host for more than any has: torch's own allocator refuses."""
    torch.empty(2**50)


def full_device() -> None:
    """As CUDA refuses."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"
    )


def room_for(monkeypatch, samples: int, refuse=full_host) -> None:
    """Training has memory for so many samples at a time."""
    real = SegmentationLoss.forward

    def forward(self, outputs, mask):
        if len(mask) > samples:
            refuse()
        return real(self, outputs, mask)

    monkeypatch.setattr(SegmentationLoss, "forward", forward)


def points(folder: Path, name: str) -> list[float]:
    """What MLflow is told of a metric."""
    return [point.value for point in read_chunk(folder / "metrics.jsonl", FileOffset()).points if point.name == name]


def trained(run, job, say=quiet) -> Trainer:
    """A fold after its last step, without the prediction that follows."""
    training = setup_fold(job, run, Context(say=say), time.monotonic())
    training.train()
    return training


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# Training


@pytest.mark.parametrize("refuse", [full_host, full_device])
def test_halved_micro_batches_take_the_same_steps(tiny, tmp_path, monkeypatch, refuse):
    words = ["training.ema=0.9", "training.checkpoint_minutes=0", "training.validate_every=9", "run.threads=1"]
    torch.set_num_threads(1)  # several threads share out a batch by its size, which changes the last digit
    run, plain = start(
        tiny(2, *words, "training.batch_size=2", "training.accumulate=4"), tmp_path / "plain", tmp_path / "cache"
    )
    reference = trained(run, plain).final_weights()
    run, job = start(
        tiny(2, *words, "training.batch_size=8", "training.on_oom=halve"), tmp_path / "halved", tmp_path / "cache"
    )
    room_for(monkeypatch, 2, refuse)
    said: list[str] = []
    with monkeypatch.context() as patch:
        killed_after(patch, 4)  # two of these are not taken
        with pytest.raises(Killed):
            trained(run, job, said.append)
    assert load_checkpoint(job.folder / "last.pt")["progress"]["halved"] == 2
    result = run_fold(job, said.append)
    told = [line for line in said if "memory ran out" in line]
    assert len(told) == 2, "the resumed process keeps what the first has found"
    assert (
        "at step 1 with 8 samples" in told[0]
        and "continues with 4 samples at a time" in told[0]
        and "accumulates 8 samples per step" in told[1]
    )
    assert result.halved == 2 and set(points(job.folder, "memory/micro_batch")) == {2.0}
    # The samples of each step, in the same twos.
    assert same(reference, load_file(job.folder / "weights.safetensors"))
    assert losses(plain.folder) == pytest.approx(losses(job.folder), rel=1e-6)


def test_parts_of_different_sizes_weigh_as_much_as_their_samples(tiny, tmp_path, monkeypatch):
    words = ["training.batch_size=3", "training.epochs=1", "optimizer={target: torch.optim.SGD, args: {lr: 0.1}}"]
    run, plain = start(tiny(2, *words), tmp_path / "plain", tmp_path / "cache")
    one = trained(run, plain).final_weights()
    room_for(monkeypatch, 2)
    run, job = start(tiny(2, *words, "training.on_oom=halve"), tmp_path / "halved", tmp_path / "cache")
    training = trained(run, job)
    assert training.state.halved == 1  # two and one
    two = training.final_weights()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)
    assert losses(plain.folder) == pytest.approx(losses(job.folder), rel=1e-5)


def test_batch_statistics_do_not_count_the_attempt_that_failed(tiny, tmp_path, monkeypatch):
    words = [
        "model.args={features: [4, 4, 4, 4, 4, 4], norm: batch}",
        "training.epochs=1",
        "training.steps_per_epoch=2",
    ]
    run, plain = start(
        tiny(2, *words, "training.batch_size=2", "training.accumulate=2"), tmp_path / "plain", tmp_path / "cache"
    )
    reference = trained(run, plain).final_weights()
    room_for(monkeypatch, 2)
    run, job = start(
        tiny(2, *words, "training.batch_size=4", "training.on_oom=halve"), tmp_path / "halved", tmp_path / "cache"
    )
    assert any("running_mean" in name for name in reference) and same(reference, trained(run, job).final_weights())


def test_halving_goes_with_a_scaler(tiny, tmp_path, monkeypatch):
    scaler = fp16(monkeypatch, 16.0)
    room_for(monkeypatch, 1)
    run, job = start(tiny(2, "training.on_oom=halve", "training.epochs=1"), tmp_path, tmp_path / "cache")
    assert trained(run, job).state.halved == 1 and scaler.get_scale() == 16.0 and scaler._growth_tracker.item() == 4


@pytest.mark.parametrize("refuse", [full_host, full_device])
def test_without_halving_the_message_says_what_to_lower(tiny, tmp_path, monkeypatch, refuse):
    room_for(monkeypatch, 1, refuse)
    _, job = start(tiny(2), tmp_path, tmp_path / "cache")
    with pytest.raises(
        MaskfoldError, match=r"Memory ran out on cpu at step 1 with 2 samples at a time: .*allocate"
    ) as caught:
        run_fold(job, quiet)
    for key in (
        "training.batch_size",
        "training.accumulate",
        "patch.size",
        "training.on_oom=halve",
        "run.workers",
        "run.parallel_folds",
    ):
        assert key in caught.value.hint


def test_one_sample_that_does_not_fit_ends_it(tiny, tmp_path, monkeypatch):
    room_for(monkeypatch, 0)
    _, job = start(tiny(2, "training.on_oom=halve"), tmp_path, tmp_path / "cache")
    with pytest.raises(MaskfoldError, match="with 1 sample at a time") as caught:
        run_fold(job, quiet)
    assert "patch.size" in caught.value.hint and "batch_size" not in caught.value.hint


def test_several_processes_cannot_halve(tiny):
    with pytest.raises(MaskfoldError, match=r"`training\.on_oom: halve` requires run\.devices: 1"):
        tiny(2, "training.on_oom=halve", "run.devices=2")


def test_other_errors_are_not_taken_for_it():
    for error in (
        RuntimeError("shape '[2]' is invalid"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
    ):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), oom_as_error("testing"):
            raise error
    for error in (MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")):
        assert is_out_of_memory(error)


# Prediction


class Roomy(torch.nn.Module):
    """Predicts so many windows at a time."""

    def __init__(self, windows: int, refuse) -> None:
        super().__init__()
        self.layer, self.windows, self.refuse, self.seen = torch.nn.Conv2d(1, 3, 3, padding=1), windows, refuse, []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(image))
        if len(image) > self.windows:
            self.refuse()
        return self.layer(image)


@pytest.mark.parametrize("refuse", [full_host, full_device])
def test_windows_are_halved_until_they_fit_and_stay_so(tiny, tmp_path, caplog, refuse):
    words = ["patch.size=[16,16]", "inference.batch_size=8"]
    exp = tiny(2, *words, "training.on_oom=halve")
    run, job = start(exp, tmp_path, tmp_path / "cache")
    cases = [PreprocessedCase.open(folder) for folder in list(preprocess_cases(run.cases, exp, job.cache).values())[:2]]
    network = Roomy(3, refuse)
    whole = predict_case([network], cases[0], tiny(2, "patch.size=[16,16]", "inference.batch_size=2"))
    network.seen.clear()
    with caplog.at_level(logging.WARNING):
        found = predict_case([network], cases[0], exp)
    np.testing.assert_array_equal(found, whole)
    assert (
        network.seen[:3] == [8, 4, 2] and max(network.seen[2:]) == 2 and inference_memory.reduced_batch_size("cpu") == 2
    )
    assert [re.findall(r"with (\d+)", record.getMessage()) for record in caplog.records] == [["8", "4"], ["4", "2"]]
    network.seen.clear()
    predict_case([network], cases[1], exp)  # the next case does not try again
    assert max(network.seen) == 2
    with pytest.raises(MaskfoldError, match=r"Memory ran out on cpu with 2 windows at a time: .*") as caught:
        predict_case([Roomy(1, refuse)], cases[0], tiny(2, *words))
    assert "inference.batch_size" in caught.value.hint and "training.on_oom=halve" in caught.value.hint
    with pytest.raises(
        MaskfoldError, match=f"Case {cases[0].id} cannot be predicted: Memory ran out on cpu with 1 window at a time"
    ):
        predict_case([Roomy(0, refuse)], cases[0], exp)


def test_a_fold_tells_that_it_predicts_fewer_windows(tiny, tmp_path, monkeypatch):
    words = ["patch.size=[16,16]", "inference.batch_size=8"]
    _, plain = start(tiny(2, *words), tmp_path / "plain", tmp_path / "cache")
    run_fold(plain, quiet)
    real = torch.nn.Module.__call__

    def call(self, *args, **kwargs):
        if type(self).__name__ == "BasicUNet" and not self.training and len(args[0]) > 4:
            full_host()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    _, job = start(tiny(2, *words, "training.on_oom=halve"), tmp_path / "halved", tmp_path / "cache")
    said: list[str] = []
    result = run_fold(job, said.append)
    assert (
        result.halved == 0 and points(job.folder, "memory/windows") == [4.0] * 3
    )  # two epochs and the out-of-fold prediction
    assert any("4 windows at a time" in line for line in said)
    ours, theirs = (OofStore(folder / "oof", "float16") for folder in (job.folder, plain.folder))
    for case in theirs.ids():
        np.testing.assert_allclose(ours.read(case).astype(float), theirs.read(case).astype(float), atol=2e-3)


# The host


def test_memory_that_runs_out_anywhere_in_a_fold_is_said(tiny, tmp_path, monkeypatch):
    _, job = start(tiny(2), tmp_path, tmp_path / "cache")
    monkeypatch.setattr(fold_module, "cv_score", lambda *_: np.empty(2**50))
    with pytest.raises(
        MaskfoldError, match="Memory ran out while working on fold_0: Unable to allocate 8.00 PiB"
    ) as caught:
        run_fold(job, quiet)
    assert "run.parallel_folds" in caught.value.hint and "prepare.cache_gib" in caught.value.hint


def test_a_loader_that_the_kernel_kills_is_named(tiny, tmp_path, monkeypatch):
    _, job = start(tiny(2, "run.workers=1"), tmp_path, tmp_path / "cache")
    here = os.getpid()

    def getitem(self, place):
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(PatchDataset, "__getitem__", getitem)
    with pytest.raises(MaskfoldError, match="A loader process was killed, probably because memory ran out") as caught:
        run_fold(job, quiet)
    assert "run.workers" in caught.value.hint


@pytest.mark.parametrize("ending", ["kill -9 $$", "exit 137"])
def test_a_fold_that_the_kernel_kills_is_named(tiny, tmp_path, ending):
    _, job = start(tiny(2), tmp_path, tmp_path / "cache")
    with pytest.raises(
        MaskfoldError,
        match=r"fold_0 was killed \(SIGKILL\), probably because memory ran out. Its last output was: going on",
    ) as caught:
        LocalExecutor(1, command=("bash", "-c", f"echo going on; {ending}")).run([job], quiet)
    assert "run.parallel_folds" in caught.value.hint


# Prepare.cache_gib


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, Path]:
    """22 volumes; each is 3.3 MB when it is prepared on 88 voxels to a side."""
    folder = tmp_path_factory.mktemp("many")
    make_demo("3d", folder / "demo", seed=5, cases=22, test_cases=1)
    return folder / "demo", folder / "cache"


def large(root: Path, *words: str):
    return load_experiment(
        ROOT / "experiments" / "demo3d" / "unet3d.yaml",
        [
            f"competition.root={root}",
            "folds={scheme: holdout, shares: [0.9, 0.1]}",
            "training.epochs=2",
            "training.steps_per_epoch=15",
            "training.batch_size=2",
            "training.precision=fp32",
            "training.budget_minutes=null",
            "training.pictures_every=100",
            "training.validate_every=1",
            "inference.overlap=0",
            "augment.preset=none",
            *TINY[3],
            "patch.size=[32,32,32]",
            "prepare={resize: [88, 88, 88], intensity: zscore}",
            *words,
        ],
    )


def resident(folder: Path) -> int:
    """Bytes of files below a folder in the resident memory of this process and its children, as the kernel counts."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            text = Path(f"/proc/{process.pid}/smaps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for mapping in text.split(str(folder))[1:]:  # what follows a file's name are its numbers
            total += 1024 * int(re.search(r"^Rss: +(\d+) kB$", mapping, re.MULTILINE).group(1))
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell")
@pytest.mark.timeout(900)  # three trainings of a fold
def test_a_fold_on_ten_times_the_bound_holds_it(many, tmp_path, monkeypatch):
    root, cache = many
    seen: list[int] = []
    real = fold_module.StopSignal.reason

    def reason(self) -> str:  # asked after each step, and in predictions before each batch of windows
        seen.append(resident(cache))
        return real(self)

    monkeypatch.setattr(fold_module.StopSignal, "reason", reason)
    curves, highest, exp = {}, {}, large(root)
    run, _ = start(exp, tmp_path / "first", cache)
    prepared = [PreprocessedCase.open(folder) for folder in preprocess_cases(run.cases, exp, cache).values()]
    data, largest = sum(map(mapped_bytes, prepared)), max(map(mapped_bytes, prepared))
    del prepared
    bound = data // 10
    assert largest * 2 <= bound < largest * 3
    # One loader of its own shares the bound with the process that predicts: a case each.
    for workers, limit in ((0, None), (0, bound), (1, bound)):
        seen.clear()
        gc.collect()  # the maps of the one before
        assert resident(cache) == 0
        words = [f"run.workers={workers}", f"prepare.cache_gib={limit / 2**30 if limit else 'null'}"]
        run, job = start(large(root, *words), tmp_path / f"{workers}_{limit}", cache)
        trained(run, job)  # with a validation in its midst
        curves[workers, limit], highest[workers, limit] = losses(job.folder), max(seen)
        assert len(seen) > 30  # more than one for each step: the validation is seen too
    assert highest[0, None] > 4 * bound, "without a bound all that was read stays"
    assert 0 < highest[0, bound] <= bound and 0 < highest[1, bound] <= bound
    assert curves[0, None] == curves[0, bound] == curves[1, bound]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell")
def test_a_case_that_is_larger_than_the_bound_is_given_back_at_once(many, tmp_path):
    root, cache = many
    exp = large(root)
    run, _ = start(exp, tmp_path, cache)
    one, two = (PreprocessedCase.open(folder) for folder in list(preprocess_cases(run.cases, exp, cache).values())[:2])
    gc.collect()
    resident_cases = MemoryBudget(mapped_bytes(one) - 1)
    with resident_cases.reading(one):
        mean = float(one.image.mean())
        assert resident(one.folder) > 2**21
    assert resident(one.folder) == 0 and resident_cases.held_bytes == 0
    with resident_cases.reading(one):
        assert float(one.image.mean()) == mean  # pages come back
    roomy = MemoryBudget(mapped_bytes(one) + mapped_bytes(two))
    for case in (one, two):
        with roomy.reading(case):
            case.image.sum()
    assert min(resident(one.folder), resident(two.folder)) > 2**21 and roomy.held_bytes == roomy.max_bytes


def test_each_process_has_its_share_of_the_bound(tiny):
    shares = [
        MemoryBudget.from_experiment(
            tiny(2, "prepare.cache_gib=2", f"run.workers={workers}", f"run.devices={devices}")
        ).max_bytes
        for workers, devices in ((0, 1), (3, 1), (1, 2))
    ]
    assert shares == [2**31, 2**29, 2**29] and MemoryBudget.from_experiment(tiny(2)).max_bytes is None


def test_the_bound_changes_no_name(tiny):
    row = SimpleNamespace(id="a", split="train", hash="0")
    pair = tiny(2), tiny(2, "prepare.cache_gib=0.5", "training.on_oom=halve")
    assert len({cache_key(row, exp) for exp in pair}) == 1 and len({run_hash(exp, "data") for exp in pair}) == 1
