"""Train the folds of a run with an executor; the local executor starts a process for each fold."""

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
# Seconds to wait for the lock of a fold, which a process of a killed command may hold until it has noticed the death of
# its parent and written its checkpoint.
ORPHAN_PATIENCE = 300.0


class Executor(Protocol):
    """Define the protocol of an executor, which runs folds, several at a time."""

    def run(
        self, jobs: Sequence[FoldJob], say: Callable[[str], None], should_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run all jobs until they end.

        Args:
            jobs: the jobs of the folds.
            say: function that receives lines for the user.
            should_stop: function that is called several times a second. If it raises an exception, all running folds
                write a checkpoint and stop, and the exception is passed on.

        Raises:
            MaskfoldError: a fold failed; all other folds have written a checkpoint and stopped.
        """


def make_executor(exp: Experiment) -> Executor:
    """Return the executor that `run.executor` names."""
    executor: Executor = EXECUTORS.get(exp.run.executor)(exp.run)
    return executor


@dataclass(frozen=True)
class RunningFold:
    """Hold a fold that is running: its job, its process, and the reader of its output."""

    job: FoldJob
    process: FoldProcess | ForkedFold
    tail: LogTail


class LocalExecutor:
    """Run each fold in a process on this machine.

    If the machine has several GPUs and several folds run at the same time, each fold gets GPUs of its own.

    Args:
        parallel: number of folds that run at the same time.
        devices: number of devices per fold.
        command: command line of a fold's process, see `start_fold`.
        forked: whether to start folds faster, by forking a process that has imported the libraries, see `start_fold`.
    """

    def __init__(
        self, parallel: int, devices: int = 1, command: Sequence[str] | None = None, forked: bool = False
    ) -> None:
        self.parallel, self.devices, self.command, self.forked = parallel, devices, command, forked

    def run(
        self, jobs: Sequence[FoldJob], say: Callable[[str], None], should_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run all jobs until they end; see `Executor.run`."""
        # This command holds the run's lock. So if a fold's lock is taken, its owner is a process of a killed command.
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
    """Return whether the processes of folds may be forked: each fold must have one process and use no GPU.

    CUDA does not work in a forked process.
    """
    if run.devices > 1 or run.accelerator not in ("auto", "cpu") or not is_supported():
        return False
    if run.accelerator == "cpu":
        return True
    import torch

    return not torch.cuda.is_available()


def gpus_of_slot(slot: int, devices: int, parallel: int) -> list[str] | None:
    """Return the GPUs for one of several folds that run at the same time.

    Args:
        slot: index of the fold among those that run at the same time, from 0 to `parallel` - 1.
        devices: number of GPUs per fold.
        parallel: number of folds that run at the same time.

    Returns:
        The numbers of the GPUs, for `CUDA_VISIBLE_DEVICES`. None, if there is one GPU or one fold at a time: the fold
        then sees all GPUs.
    """
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
