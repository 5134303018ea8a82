"""Folds as processes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from competition.config import MaskfoldError
from competition.training.checkpoint import write_whole
from competition.training.job import Job

PATIENCE = 60.0  # seconds that a fold gets to write its checkpoint when it is told to stop


class LocalExecutor:
    """One process per fold, `parallel` of them at once, each with its own GPU when there are several.

    Args:
        parallel: how many folds run side by side.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel

    def run(self, jobs: Sequence[Job], say: Callable[[str], None], alive: Callable[[], None] = lambda: None) -> None:
        """See `Executor.run`."""
        waiting = list(jobs)
        running: dict[int, tuple[Job, subprocess.Popen[str], threading.Thread]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    slot = next(number for number in range(self.parallel) if number not in running)
                    running[slot] = self._start(waiting.pop(0), slot, say)
                self._wait_for_any(running, alive)
                for slot, (job, process, reader) in list(running.items()):
                    if process.poll() is not None:
                        reader.join()
                        del running[slot]
                        _check(job, process.returncode)
        finally:
            stop([process for _, process, _ in running.values()])

    def _start(self, job: Job, slot: int, say: Callable[[str], None]) -> tuple[Job, subprocess.Popen[str], threading.Thread]:
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / "job.json"
        write_whole(path, lambda file: file.write(job.to_json().encode()))
        # The package is found as this process found it, also where it is not installed.
        home = str(Path(__file__).resolve().parents[3])
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1",
                       # Waiting threads sleep: spinning beside another busy program costs several times a step.
                       "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
                       "NO_ALBUMENTATIONS_UPDATE": "1",
                       "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}
        gpus = _gpus()
        if len(gpus) > 1 and self.parallel > 1:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        process = subprocess.Popen([sys.executable, "-m", "competition.training.fold", str(path)], env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                   start_new_session=True)  # Ctrl-C reaches the folds through `stop`, once
        reader = threading.Thread(target=_relay, args=(job, process, say), daemon=True)
        reader.start()
        return job, process, reader

    def _wait_for_any(self, running: dict[int, tuple[Job, subprocess.Popen[str], threading.Thread]],
                      alive: Callable[[], None]) -> None:
        while all(process.poll() is None for _, process, _ in running.values()):
            next(iter(running.values()))[2].join(0.2)
            alive()


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ask processes to write a checkpoint and end; kill the ones that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _relay(job: Job, process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with open(job.folder / "output.txt", "a") as file:
        for line in process.stdout:
            file.write(line)
            if not _noise(line):
                say(f"{job.folder.name} | {line.rstrip()}")


def _noise(line: str) -> bool:
    return not line.strip() or "Warning" in line or line.startswith("  ")


def _check(job: Job, status: int) -> None:
    if status == 0:
        return
    error = job.folder / "error.json"
    if error.exists():
        content = json.loads(error.read_text())
        raise MaskfoldError(f"Fold {job.folder.name}: {content['wrong']}", content["cure"], status=content["status"])
    if status in (130, 143):
        raise KeyboardInterrupt(f"{job.folder.name} was stopped")
    output = job.folder / "output.txt"
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    raise MaskfoldError(f"Fold {job.folder.name} ended with status {status}: {lines[-1] if lines else 'no output'}.",
                        f"See {output}; the same command goes on from its last checkpoint.")


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number for number in visible.split(",") if number]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
