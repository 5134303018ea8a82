"""Define executors, which run the folds of a run; the local executor runs each fold as a process on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from competition.config.experiment import EXECUTORS, Experiment, HardwareConfig
from competition.fork_server import is_supported
from competition.runs.fold import FoldJob
from competition.training.fold_process import FoldProcess, ForkedFold, LogTail, raise_for_status, start_fold, stop_folds

POLL_SECONDS = 0.2  # seconds between two reads of the folds' output
ORPHAN_PATIENCE = 300.0  # seconds in which a fold must notice the death of its parent and write its checkpoint


class Executor(Protocol):
    """Define the protocol of an executor, which runs folds, several at a time."""

    def run(
        self, jobs: Sequence[FoldJob], say: Callable[[str], None], should_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run all jobs until they end.

        Args:
            jobs: the folds.
            say: function that receives lines for the user.
            should_stop: function that is called several times a second; if it raises an exception, each fold writes a
                checkpoint and stops.

        Raises:
            MaskfoldError: a fold failed. All other folds wrote a checkpoint and were stopped.
        """


def make_executor(exp: Experiment) -> Executor:
    """Return the executor that `run.executor` names."""
    executor: Executor = EXECUTORS.get(exp.run.executor)(exp.run)
    return executor


@dataclass(frozen=True)
class RunningFold:
    """Hold a running fold: its job, its process, and the object that follows its output."""

    job: FoldJob
    process: FoldProcess | ForkedFold
    tail: LogTail


class LocalExecutor:
    """Run one process per fold, `parallel` folds at once; if there are several GPUs, each fold gets its own GPUs.

    Args:
        parallel: number of folds that run at the same time.
        devices: number of devices per fold.
        command: command of a fold's process, see `start_fold`.
        forked: whether folds are forked from a process that has imported the libraries, see `start_fold`.
    """

    def __init__(
        self, parallel: int, devices: int = 1, command: Sequence[str] | None = None, forked: bool = False
    ) -> None:
        self.parallel, self.devices, self.command, self.forked = parallel, devices, command, forked

    def run(
        self, jobs: Sequence[FoldJob], say: Callable[[str], None], should_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run all jobs until they end; see `Executor.run`."""
        # This command holds the run's lock, so a fold's lock can only belong to a process whose parent was killed.
        waiting = [replace(job, patience=max(job.patience, ORPHAN_PATIENCE)) for job in jobs]
        running: dict[int, RunningFold] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    slot = next(number for number in range(self.parallel) if number not in running)
                    running[slot] = self._start(waiting.pop(0), slot, say)
                self._wait_for_any(running, should_stop)
                for slot, fold in list(running.items()):
                    if (status := fold.process.poll()) is not None:
                        fold.tail.read()
                        del running[slot]
                        raise_for_status(fold.job, status, fold.process.read_error())
        finally:
            stop_folds([fold.process for fold in running.values()])
            for fold in running.values():
                fold.tail.read()

    def _start(self, job: FoldJob, slot: int, say: Callable[[str], None]) -> RunningFold:
        tail = LogTail(job, say)
        gpus = gpus_of_slot(slot, self.devices, self.parallel)
        return RunningFold(job, start_fold(job, self.command, gpus, self.forked), tail)

    def _wait_for_any(self, running: dict[int, RunningFold], should_stop: Callable[[], None]) -> None:
        while all(fold.process.poll() is None for fold in running.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(iter(running.values())).process.wait(POLL_SECONDS)
            for fold in running.values():
                fold.tail.read()
            should_stop()


@EXECUTORS.register("local")
def make_local_executor(run: HardwareConfig) -> LocalExecutor:
    """Return the executor that runs folds on this machine."""
    return LocalExecutor(run.parallel_folds, run.devices, forked=may_fork(run))


def may_fork(run: HardwareConfig) -> bool:
    """Return whether folds may be forked: each must be one process without a GPU, because CUDA fails after a fork."""
    if run.devices > 1 or run.accelerator not in ("auto", "cpu") or not is_supported():
        return False
    if run.accelerator == "cpu":
        return True
    import torch

    return not torch.cuda.is_available()


def gpus_of_slot(slot: int, devices: int, parallel: int) -> list[str] | None:
    """Return the GPUs of the fold in `slot`, one of `parallel` simultaneous folds; None with one fold or one GPU."""
    gpus = _visible_gpus()
    if len(gpus) < 2 or parallel < 2:
        return None
    return [gpus[(slot * devices + number) % len(gpus)] for number in range(min(devices, len(gpus)))]


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number for number in visible.split(",") if number]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
