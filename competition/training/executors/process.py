"""A fold's process: how it starts, what it says, how it is stopped, and what its end means."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.data.files import room, write_whole
from competition.data.records import parsed
from competition.training.job import Job
from competition.training.ranks import PARENT

PATIENCE = 60.0  # seconds that a fold gets to write its checkpoint when it is told to stop
OUTPUT = "output.txt"  # all that a fold's processes print
ERROR = "error.json"  # what ended a fold that failed
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # the latter before it has begun to listen
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the latter where a shell lies between
WORDS = "MASKFOLD_LAST_WORDS"  # of a fold's process: the descriptor of a pipe, for an error that no disk has room for
# Fabric numbers the processes that it starts by these; a fold that inherits them takes itself for one of another's.
RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class FoldProcess(subprocess.Popen[bytes]):
    """A fold's process, with the reading end of the pipe for its last words."""

    pipe: int = -1

    def last_words(self) -> str:
        """The error that ended it, as JSON; empty where there was none, or it had no time for words."""
        if self.pipe < 0:
            return ""
        pipe, self.pipe = self.pipe, -1
        try:
            return os.read(pipe, 65_536).decode(errors="replace")
        except BlockingIOError:  # a child of its own still has the other end
            return ""
        finally:
            os.close(pipe)


def start(job: Job, command: Sequence[str] | None = None, gpus: Sequence[str] | None = None) -> FoldProcess:
    """Start a fold's process; what it prints is appended to `output.txt` in its folder.

    Args:
        job: the fold.
        command: what is run, with the path of `job.json` at its end; None is `python -m competition.training.fold`.
        gpus: the only GPUs that it may see; None leaves the environment's choice.

    Raises:
        MaskfoldError: nothing can be written to the folder.
    """
    with room(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / ERROR).unlink(missing_ok=True)  # of an earlier process
    path, text = job.folder / "job.json", job.to_json().encode()
    write_whole(path, lambda file: file.write(text), len(text))
    command = command or (sys.executable, "-m", "competition.training.fold")
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        # A file and no pipe for the output: it is there when this process has died. Ctrl-C reaches the fold through
        # `stop`, once.
        with room(job.folder / OUTPUT), open(job.folder / OUTPUT, "ab") as output:
            process = FoldProcess(
                [*command, str(path)],
                env=_environment(job, gpus) | {WORDS: str(writer)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(writer,),
            )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    process.pipe = reader
    return process


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to write a checkpoint and end; kill the ones that do not, or all when this is interrupted."""
    try:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def check(job: Job, status: int, words: str = "") -> None:
    """Raise what a process's exit status means.

    Args:
        job: the fold.
        status: the process's.
        words: its last; see `FoldProcess`.

    Raises:
        MaskfoldError: the fold failed.
        KeyboardInterrupt: somebody stopped it.
    """
    if status == 0:
        return
    error = job.folder / ERROR
    if not words and error.exists():
        words = error.read_text(errors="replace")
    if words and (content := _content(words)) is not None:
        raise MaskfoldError(f"Fold {job.folder.name}: {content['wrong']}", content["cure"], status=content["status"])
    if status in STOPPED:
        raise KeyboardInterrupt(f"{job.folder.name} was stopped")
    output = job.folder / OUTPUT
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    last = lines[-1] if lines else "no output"
    if status in KILLED:
        raise MaskfoldError(
            f"Fold {job.folder.name} was killed (SIGKILL), after these words: {last}.",
            "Where nobody did so, the kernel did, most likely for want of memory: lower run.parallel_folds, "
            "run.workers, training.batch_size or patch.size, or set prepare.cache_gib. The same command goes "
            "on from its last checkpoint.",
        )
    raise MaskfoldError(
        f"Fold {job.folder.name} ended with status {status}: {last}.",
        f"See {output}; the same command goes on from its last checkpoint.",
    )


def _content(words: str) -> dict[str, Any] | None:
    """A fold's last words; None where the disk or the pipe left them damaged."""
    try:
        plain = parsed(words)
    except ValueError:
        return None
    return plain if {"wrong", "cure", "status"} <= plain.keys() and isinstance(plain["status"], int) else None


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
        PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": str(job.threads),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a stranger's folder to work in may hold a torch.py
        # Waiting threads sleep: spinning beside another busy program costs several times a step.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus is not None else {}),
    }
