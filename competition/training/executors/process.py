"""A fold's process: how it starts, what it says, how it is stopped, and what its end means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from competition.config import MaskfoldError
from competition.training.checkpoint import write_whole
from competition.training.job import Job
from competition.training.ranks import PARENT

PATIENCE = 60.0  # seconds that a fold gets to write its checkpoint when it is told to stop
OUTPUT = "output.txt"  # all that a fold's processes print
# Fabric numbers the processes that it starts by these; a fold that inherits them takes itself for one of another's.
RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(job: Job, command: Sequence[str] | None = None, gpus: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
    """Start a fold's process; what it prints is appended to `output.txt` in its folder.

    Args:
        job: the fold.
        command: what is run, with the path of `job.json` at its end; None is `python -m competition.training.fold`.
        gpus: the only GPUs that it may see; None leaves the environment's choice.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.json"
    write_whole(path, lambda file: file.write(job.to_json().encode()))
    command = command or (sys.executable, "-m", "competition.training.fold")
    with open(job.folder / OUTPUT, "ab") as output:  # a file and no pipe: it is there when this process has died
        return subprocess.Popen([*command, str(path)], env=_environment(job, gpus), stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT, start_new_session=True)  # Ctrl-C reaches it through `stop`, once


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
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


def check(job: Job, status: int) -> None:
    """Raise what a process's exit status means.

    Raises:
        MaskfoldError: the fold failed.
        KeyboardInterrupt: somebody stopped it.
    """
    if status == 0:
        return
    error = job.folder / "error.json"
    if error.exists():
        content = json.loads(error.read_text())
        raise MaskfoldError(f"Fold {job.folder.name}: {content['wrong']}", content["cure"], status=content["status"])
    if status in (130, 143):
        raise KeyboardInterrupt(f"{job.folder.name} was stopped")
    output = job.folder / OUTPUT
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    raise MaskfoldError(f"Fold {job.folder.name} ended with status {status}: {lines[-1] if lines else 'no output'}.",
                        f"See {output}; the same command goes on from its last checkpoint.")


class Tail:
    """Passes on what a fold prints from now on, a whole line at a time, without the noise of libraries.

    Args:
        job: the fold, on this machine or on another one that shares the folder.
        say: takes lines for the user.
    """

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self.path, self.name, self.say = job.folder / OUTPUT, job.folder.name, say
        self._place = self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> None:
        """Pass on the lines that came since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._place)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._place += len(whole) + len(newline)
        for line in whole.decode(errors="replace").split("\n") if newline else ():
            if not _noise(line):
                self.say(f"{self.name} | {line.rstrip()}")


def _noise(line: str) -> bool:
    return not line.strip() or "Warning" in line or line.startswith("  ")


def _environment(job: Job, gpus: Sequence[str] | None) -> dict[str, str]:
    # The package is found as this process found it, also where it is not installed.
    home = str(Path(__file__).resolve().parents[3])
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    return environment | {
        PARENT: str(os.getpid()), "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1",
        # Waiting threads sleep: spinning beside another busy program costs several times a step.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus is not None else {})}
