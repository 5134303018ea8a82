"""Start and stop the process of a fold, follow its output, and turn its exit status into an error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from competition.errors import MaskfoldError
from competition.fork_server import ForkedProcess, ForkServer, ServerLost, shared_server
from competition.io import atomic_write, disk_full_as_error
from competition.process import PARENT_VARIABLE
from competition.records import parse_json_object
from competition.runs.fold import FoldJob

STOP_TIMEOUT = 60.0  # seconds in which a fold that is stopped must write its checkpoint
OUTPUT_FILE = "output.txt"  # standard output and standard error of the fold's processes
ERROR_FILE = "error.json"  # the error of a fold that failed
# Exit statuses of a fold that a signal stopped. The negative ones occur if the signal arrives before the fold has
# installed its signal handlers.
STOPPED_STATUSES = (130, 143, -signal.SIGINT, -signal.SIGTERM)
KILLED_STATUSES = (-signal.SIGKILL, 128 + signal.SIGKILL)  # SIGKILL, directly or through a shell
# Environment variable with the descriptor of a pipe for a fold's error. A pipe works even if the disk is full.
ERROR_PIPE = "MASKFOLD_LAST_WORDS"
# Fabric stores the number of a process in these variables. If a fold inherited them, it would act as a process of
# another fold.
DISTRIBUTED_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# Modules that the server imports before it forks folds. Every fold needs FOLD_MODULES. Only some folds need
# OPTIONAL_MODULES, so the server imports those that the command itself has imported when it checked the network and the
# augmentation of the YAML.
FOLD_MODULES = ("competition.training.fold", "lightning.fabric", "lightning.fabric.strategies.ddp")
OPTIONAL_MODULES = ("albumentations.pytorch", "monai.losses", "monai.networks.nets", "segmentation_models_pytorch")


class Process(Protocol):
    """Define the methods of a process that this module uses; `subprocess.Popen` and `ForkedProcess` have them."""

    def poll(self) -> int | None:
        """Return the exit status; None if the process is still running."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, and return the exit status; raise TimeoutExpired after `timeout` seconds."""

    def terminate(self) -> None:
        """Send SIGTERM to the process."""

    def kill(self) -> None:
        """Send SIGKILL to the process."""


class ErrorPipe:
    """Read the pipe through which the process of a fold reports the error that ended it.

    Attributes:
        pipe: file descriptor of the reading end; -1 if there is no pipe, or if it was already read.
    """

    pipe: int = -1

    def read_error(self) -> str:
        """Return the error that ended the process, as JSON text.

        The text is empty if the process ended without an error or was killed.
        """
        if self.pipe < 0:
            return ""
        pipe, self.pipe = self.pipe, -1
        try:
            return os.read(pipe, 65_536).decode(errors="replace")
        except BlockingIOError:  # a child of the process still has the other end of the pipe
            return ""
        finally:
            os.close(pipe)


class FoldProcess(ErrorPipe, subprocess.Popen[bytes]):
    """Run a fold in a new process."""


class ForkedFold(ErrorPipe, ForkedProcess):
    """Run a fold in a process that was forked from a server, which has already imported the libraries."""


def start_fold(
    job: FoldJob, command: Sequence[str] | None = None, gpus: Sequence[str] | None = None, forked: bool = False
) -> FoldProcess | ForkedFold:
    """Start a fold's process, whose output is appended to `output.txt` in the fold's folder.

    Args:
        job: the fold.
        command: command line, to which the path of `job.json` is appended; None for `python -m
            competition.training.fold`.
        gpus: numbers of the GPUs that the process can use; None for all GPUs that this process can use.
        forked: whether to fork the process from a server with imported libraries, see `competition.fork_server`. This
            is possible only for training on the CPU, and if `command` is None.

    Raises:
        MaskfoldError: the folder is not writable.
    """
    with disk_full_as_error(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / ERROR_FILE).unlink(missing_ok=True)  # an error file of an earlier process
    path, text = job.folder / "job.json", job.to_json().encode()
    atomic_write(path, lambda file: file.write(text), len(text))
    environment = fold_environment(job.threads, gpus)
    process: FoldProcess | ForkedFold | None = None
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        # The output goes to a file instead of a pipe, so that it outlives this process. In a new session, Ctrl-C does
        # not reach the fold directly; `stop_folds` forwards it once.
        with disk_full_as_error(job.folder / OUTPUT_FILE), open(job.folder / OUTPUT_FILE, "ab") as output:
            if forked and command is None:
                process = _fork(path, environment, output, writer)
            if process is None:
                process = FoldProcess(
                    [*(command or (sys.executable, "-m", "competition.training.fold")), str(path)],
                    env=environment | {ERROR_PIPE: str(writer)},
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


def _fork(path: Path, environment: Mapping[str, str], output: IO[bytes], writer: int) -> ForkedFold | None:
    """Fork the process of a fold from the server.

    If there is no server, return None; the caller then starts a new process instead.

    Args:
        path: path of the `job.json`.
        environment: environment variables of the process.
        output: open file for the output of the process.
        writer: file descriptor of the pipe to which the process writes its error.
    """
    server: ForkServer | None = shared_server(FOLD_MODULES, environment)
    if server is None:
        return None
    optional = [name for name in OPTIONAL_MODULES if name in sys.modules]
    try:
        pid = server.start(
            "competition.training.fold:forked_main", [str(path)], output.fileno(), {ERROR_PIPE: writer}, optional
        )
    except ServerLost:
        return None
    return ForkedFold(server, pid)


def stop_folds(processes: Sequence[Process]) -> None:
    """Stop folds: send SIGTERM to their processes, and wait until each has written a checkpoint and ended.

    Processes that do not end within `STOP_TIMEOUT` seconds are killed. If Ctrl-C is pressed during the wait, all
    processes are killed at once.
    """
    try:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def raise_for_status(job: FoldJob, status: int, error: str = "") -> None:
    """Raise an error if the process of a fold has failed; do nothing if its exit status is 0.

    Args:
        job: the fold.
        status: the exit status.
        error: the error that the process reported, a result of `ErrorPipe.read_error`; if it is empty, `error.json` is
            read.

    Raises:
        MaskfoldError: the fold failed.
        KeyboardInterrupt: a signal stopped the fold.
    """
    if status == 0:
        return
    error_file = job.folder / ERROR_FILE
    if not error and error_file.exists():
        error = error_file.read_text(errors="replace")
    if error and (content := _parse_error(error)) is not None:
        raise MaskfoldError(f"Fold {job.folder.name}: {content['message']}", content["hint"], status=content["status"])
    if status in STOPPED_STATUSES:
        raise KeyboardInterrupt(f"{job.folder.name} was stopped")
    output = job.folder / OUTPUT_FILE
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    lines = [line for line in lines if not _is_noise(line)]  # lines of progress bars are no message
    last = f"Its last output was: {lines[-1]}" if lines else "It printed nothing"
    if status in KILLED_STATUSES:
        raise MaskfoldError(
            f"Fold {job.folder.name} was killed (SIGKILL), probably because memory ran out. {last}.",
            "Lower run.parallel_folds, run.workers, training.batch_size or patch.size, or set "
            "prepare.cache_gib=4, for example. Then run the same command again, which resumes the fold from its last "
            "checkpoint.",
        )
    raise MaskfoldError(
        f"Fold {job.folder.name} ended with status {status}. {last}.",
        f"The whole output of the fold is in {output}. To resume the fold from its last checkpoint, run the same "
        "command again.",
    )


def _parse_error(error: str) -> dict[str, Any] | None:
    """Return the fields of an error that a fold has written as JSON; None if the text is incomplete or damaged."""
    try:
        content = parse_json_object(error)
    except ValueError:
        return None
    return content if {"message", "hint", "status"} <= content.keys() and isinstance(content["status"], int) else None


class LogTail:
    """Read the output file of a fold while the fold runs, and forward complete lines to the user.

    Warnings of libraries and empty lines are not forwarded.

    Args:
        job: the fold, which runs on this machine, or on another machine that shares the folder.
        say: function that receives lines for the user.
    """

    def __init__(self, job: FoldJob, say: Callable[[str], None]) -> None:
        self.path, self.name, self.say = job.folder / OUTPUT_FILE, job.folder.name, say
        self._offset = self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> None:
        """Forward the complete lines that the fold has written to its output file since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            content, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(content) + len(newline)
        for line in content.decode(errors="replace").split("\n") if newline else ():
            if not _is_noise(line):
                self.say(f"{self.name} | {line.rstrip()}")


def _is_noise(line: str) -> bool:
    return not line.strip() or "Warning" in line or line.startswith("  ")


def fold_environment(threads: int, gpus: Sequence[str] | None = None) -> dict[str, str]:
    """Return the environment variables for the process of a fold.

    Args:
        threads: number of CPU threads of the fold.
        gpus: numbers of the GPUs that the process can use; None for all GPUs that this process can use.
    """
    # The fold imports the same package as this process, even if it is not installed.
    home = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED_VARIABLES}
    return environment | {
        PARENT_VARIABLE: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # because the working folder may contain an untrusted torch.py
        # Let waiting threads sleep: if other processes are busy, spinning makes a step several times slower.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus is not None else {}),
    }
