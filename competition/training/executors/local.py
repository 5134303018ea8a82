"""Folds as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from competition.training.executors.process import FoldProcess, Tail, check, start, stop
from competition.training.job import Job

GLANCE = 0.2  # seconds between two looks at what folds print
ORPHAN = 300.0  # seconds that a fold whose parent has died gets to notice and to write its checkpoint


@dataclass(frozen=True)
class Fold:
    """A fold that runs."""

    job: Job
    process: FoldProcess
    tail: Tail


class LocalExecutor:
    """One process per fold, `parallel` of them at once, each with GPUs of its own when there are several.

    Args:
        parallel: how many folds run side by side.
        devices: how many devices one fold takes.
        command: see `start`.
    """

    def __init__(self, parallel: int, devices: int = 1, command: Sequence[str] | None = None) -> None:
        self.parallel, self.devices, self.command = parallel, devices, command

    def run(self, jobs: Sequence[Job], say: Callable[[str], None], alive: Callable[[], None] = lambda: None) -> None:
        """See `Executor.run`."""
        # The run's lock is this command's, so a fold's can only be that of a process whose parent was killed: it notices.
        waiting = [replace(job, patience=max(job.patience, ORPHAN)) for job in jobs]
        running: dict[int, Fold] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    slot = next(number for number in range(self.parallel) if number not in running)
                    running[slot] = self._start(waiting.pop(0), slot, say)
                self._wait_for_any(running, alive)
                for slot, fold in list(running.items()):
                    if (status := fold.process.poll()) is not None:
                        fold.tail.read()
                        del running[slot]
                        check(fold.job, status, fold.process.last_words())
        finally:
            stop([fold.process for fold in running.values()])
            for fold in running.values():
                fold.tail.read()

    def _start(self, job: Job, slot: int, say: Callable[[str], None]) -> Fold:
        tail = Tail(job, say)
        return Fold(job, start(job, self.command, gpus_of(slot, self.devices, self.parallel)), tail)

    def _wait_for_any(self, running: dict[int, Fold], alive: Callable[[], None]) -> None:
        while all(fold.process.poll() is None for fold in running.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(iter(running.values())).process.wait(GLANCE)
            for fold in running.values():
                fold.tail.read()
            alive()


def gpus_of(slot: int, devices: int, parallel: int) -> list[str] | None:
    """The GPUs of the `slot`-th fold of those side by side; None where there is nothing to divide."""
    gpus = _gpus()
    if len(gpus) < 2 or parallel < 2:
        return None
    return [gpus[(slot * devices + number) % len(gpus)] for number in range(min(devices, len(gpus)))]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number for number in visible.split(",") if number]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
