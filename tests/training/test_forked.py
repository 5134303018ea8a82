"""Folds that are forked from one process with the imports: the same results, to the last bit, as of fresh processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from competition import fork_server
from competition.config.experiment import HardwareConfig
from competition.context import Context
from competition.training import fold_process
from competition.training.cross_validate import locked_run, make_jobs, open_run
from competition.training.executors import make_local_executor
from competition.training.fold_process import FoldProcess, start_fold

pytestmark = pytest.mark.skipif(not fork_server.is_supported(), reason="needs Linux")


@pytest.fixture(autouse=True)
def own_server() -> Iterator[None]:
    fork_server.close_shared_server()
    yield
    fork_server.close_shared_server()


def test_a_forked_fold_ends_with_the_weights_of_a_fresh_process(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exp = tiny(2, "run.threads=2", "run.accelerator=cpu", "training.epochs=1")
    said: list[str] = []
    made: list[Any] = []
    start = fold_process.ForkedFold.__init__
    monkeypatch.setattr(
        fold_process.ForkedFold, "__init__", lambda self, *words: [made.append(self), start(self, *words)][1]
    )
    with locked_run(open_run(exp, "tiny", root=tmp_path / "runs"), Context()) as run:
        jobs = make_jobs(run)
        make_local_executor(exp.run).run(jobs, said.append)
        fresh = dataclasses.replace(jobs[1], folder=jobs[1].folder.with_name("fold_1_again"))
        process = start_fold(fresh)
        assert isinstance(process, FoldProcess) and process.wait(300) == 0, process.read_error()
    assert len(made) == 2
    for name in ("weights.safetensors", "scores.csv"):
        assert (jobs[1].folder / name).read_bytes() == (fresh.folder / name).read_bytes(), name
    assert sum("2 threads" in line for line in said) == 2


@pytest.mark.parametrize(
    ("settings", "forked"),
    [
        ({"accelerator": "cpu"}, True),
        ({"accelerator": "cuda"}, False),
        ({"accelerator": "mps"}, False),
        ({"accelerator": "cpu", "devices": 2}, False),
    ],
)
def test_only_folds_of_one_process_on_the_cpu_are_forked(settings: dict[str, Any], forked: bool) -> None:
    assert make_local_executor(HardwareConfig(**settings)).forked == forked


def test_a_gpu_means_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert make_local_executor(HardwareConfig(accelerator="auto")).forked is not available


def test_without_a_server_a_fold_starts_afresh(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (job, *_) = make_jobs(open_run(tiny(2), "tiny", root=tmp_path / "runs"))
    server = fork_server.shared_server([], fold_process.fold_environment(job.threads))
    assert server is not None
    monkeypatch.setattr(fork_server.ForkServer, "is_lost", False)
    server._process.kill()  # after the command has looked whether it lives
    process = start_fold(job, forked=True)
    assert isinstance(process, FoldProcess)
    fold_process.stop_folds([process])
