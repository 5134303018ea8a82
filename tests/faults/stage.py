"""A process that imports all libraries once, and forks a child for each command (the stage); imports take seconds.

Each child is a real process that runs the whole command line, with its own signals and exit status. Its folds are real
processes, too. Only `exec` and the imports are left out.

The processes of folds cannot be forked from the command's process, because this has threads. Therefore the child forks
the fork server of `competition.fork_server` before the command begins. With `MASKFOLD_FORKSERVER=0`, it forks one
process per fold instead. These processes wait for their work.

Requests are lines of JSON on standard input, answers are lines of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "torch",
    "torch.utils.serialization.config",
    "monai.losses",
    "monai.networks.nets",
    "segmentation_models_pytorch",
    "albumentations.pytorch",
    "optuna",
    "zarr",
    "omegaconf",
    "skimage.filters",
    "skimage.transform",
    "skimage.exposure",
    "matplotlib.backends.backend_agg",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.system_metrics.metrics.disk_monitor",
    "mlflow.system_metrics.metrics.gpu_monitor",
    "mlflow.system_metrics.metrics.network_monitor",
    "competition.augment.custom",
    "competition.cli.train",
    "competition.cli.submit",
    "competition.data.duplicates",
    "competition.data.splits",
    "competition.data.formats",
    "competition.metrics.baseline",
    "competition.study.study",
    "competition.ensembling.expected",
    "competition.submission.submit",
    "competition.tracking.provenance",
    "competition.tracking.sync",
    "competition.training.cross_validate",
    "competition.training.executors",
    "competition.training.fold",
    "tests.faults.kills",
)

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"


def serve() -> None:
    """Answer requests until the standard input ends."""
    _import_all()
    print(json.dumps({"threads": threading.active_count()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": _status(request["wait"], request["seconds"])}
        else:
            answer = {"pid": _fork(request)}
            if answer["pid"] == 0:
                return _act(request)
        print(json.dumps(answer), flush=True)


def _import_all() -> None:
    """Import all modules in `IMPORTED`, and exclude all existing objects from garbage collection."""
    from competition.tracking.store import configure_mlflow

    configure_mlflow()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child does not have to copy memory pages that the garbage collector does not write to


def _fork(request: dict[str, Any]) -> int:
    """Fork; return the child's process id in the parent, and 0 in the child."""
    sys.stdout.flush()
    return os.fork()


def _status(pid: int, seconds: float) -> int | None:
    """Return the exit status of a child, negative for a signal; None if it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _act(request: dict[str, Any]) -> None:
    """Run the command of a request, or make an empty MLflow database, in a forked child."""
    if "database" in request:
        from competition.tracking.store import connect_mlflow, find_mlflow_store

        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{request['database']}"
        connect_mlflow(find_mlflow_store(Path.cwd()))
        return
    os.setsid()
    with open(os.devnull) as nothing, open(request["output"], "ab") as output:
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), target)
    if request["namespace"] is not None:
        _join(request["namespace"])
    os.chdir(request["cwd"])
    with contextlib.suppress(OSError):
        os.makedirs("temporary", exist_ok=True)
    os.environ.update(request["env"] | {"TMPDIR": os.path.abspath("temporary")})
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may have them ignore it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from competition.fork_server import end_with, is_supported
    from tests.faults import kills

    kills.command = os.getpid()
    if is_supported():
        hire_server(request["kills"])
    else:
        _hire_folds(request["folds"], request["kills"])
    kills.arm(request["kills"], "command")
    _hurry()
    sys.argv = ["maskfold", *request["argv"]]
    from competition.cli.main import main

    end_with(main)


def _join(process: int) -> None:
    """Enter the user and mount namespaces of another process, so that this process sees the same file systems."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "mnt"):
        with open(f"/proc/{process}/ns/{kind}") as file:
            if libc.setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), kind)


def _hurry() -> None:
    """Shorten the intervals of MLflow's upload, because the toy runs take only seconds."""
    from competition.tracking.sync import MlflowSync

    MlflowSync.__init__.__kwdefaults__.update(interval=0.1, sampling_interval=0.5)  # type: ignore[attr-defined]


# Folds


class Forked:
    """Offer the interface of `subprocess.Popen` for a forked child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, and make a file `terminated`, which tests look for."""
        Path("terminated").touch()
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Hired(Forked):
    """Replace `FoldProcess`: send the fold's job to a process that was forked earlier and waits for a job."""

    waiting: list[tuple[int, socket.socket]] = []
    pipe = -1

    def __init__(
        self, args: list[str], *, env: dict[str, str], stdout: Any, pass_fds: tuple[int, ...], **_: Any
    ) -> None:
        pid, line = Hired.waiting.pop(0)
        super().__init__(pid)
        socket.send_fds(line, [json.dumps({"args": args, "env": env}).encode()], [stdout.fileno(), *pass_fds])
        line.close()


def hire_server(kills: list[dict[str, Any]]) -> None:
    """Fork a process that becomes the fork server when the command launches one.

    Args:
        kills: the kills, see `tests.faults.kills.arm`; the server's children apply those for folds.
    """
    from competition import fork_server
    from competition.training import fold_process

    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = os.getpid()
    pid = os.fork()
    if pid == 0:
        mine.close()
        _be_a_server(theirs, command, kills)
    theirs.close()

    def launch(_modules: Any, environment: dict[str, str]) -> tuple[socket.socket, Any]:
        mine.send(json.dumps(environment).encode())
        return mine, Forked(pid)

    terminate = fold_process.ForkedFold.terminate

    def mark_and_terminate(process: Any) -> None:
        Path("terminated").touch()
        terminate(process)

    fork_server._launch = launch  # type: ignore[assignment]
    fold_process.ForkedFold.terminate = mark_and_terminate  # type: ignore[method-assign]


def _be_a_server(line: socket.socket, command: int, kills: list[dict[str, Any]]) -> NoReturn:
    """Wait until the command launches its fork server, and become this server.

    If the command ends without launching it, exit.

    Args:
        line: socket to the command.
        command: process id of the command.
        kills: the kills, see `tests.faults.kills.arm`.
    """
    from competition import fork_server
    from tests.faults.kills import arm

    os.setsid()
    environment = line.recv(1_000_000)
    if not environment:
        os._exit(0)
    with open(os.devnull, "r+b") as nothing:
        for target in (0, 1, 2):
            os.dup2(nothing.fileno(), target)
    os.environ.clear()
    os.environ.update(json.loads(environment))
    assert threading.active_count() == 1
    request, descriptors = fork_server.serve(line, command, [])
    arm(kills, Path(request["arguments"][0]).parent.name)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # PYTHONUNBUFFERED, as `start` sets it
    fork_server.end_with(lambda: fork_server.run_child(request, descriptors))


def _hire_folds(count: int, kills: list[dict[str, Any]]) -> None:
    """Fork `count` processes that wait for the jobs of folds, and replace `FoldProcess` by `Hired`."""
    from competition.training import fold_process

    Hired.read_error = fold_process.FoldProcess.read_error  # type: ignore[attr-defined]
    fold_process.FoldProcess = Hired  # type: ignore[assignment,misc]
    for _ in range(count):
        mine, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            mine.close()
            for _, line in Hired.waiting:
                line.close()
            _be_a_fold(theirs, kills)
        theirs.close()
        Hired.waiting.append((pid, mine))


def _be_a_fold(line: socket.socket, kills: list[dict[str, Any]]) -> None:
    """Wait for the job of a fold, and run it; exit if the command ends without sending one.

    Args:
        line: socket to the command.
        kills: the kills, see `tests.faults.kills.arm`.
    """
    parent = os.getppid()
    while not select.select([line], [], [], 0.5)[0]:
        if os.getppid() != parent:
            os._exit(0)
    text, descriptors, _, _ = socket.recv_fds(line, 1_000_000, 4)
    line.close()
    if not text:
        os._exit(0)
    from competition.fork_server import end_with
    from competition.training.fold_process import ERROR_PIPE

    job = json.loads(text)
    os.setsid()
    for target in (1, 2):
        os.dup2(descriptors[0], target)
    os.environ.clear()
    os.environ.update(job["env"])
    os.environ[ERROR_PIPE] = str(descriptors[1])
    from competition.training import fold
    from tests.faults.kills import arm

    path = job["args"][-1]
    arm(kills, Path(path).parent.name)
    fold.PROCESS_START = time.monotonic()
    assert threading.active_count() == 1
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # PYTHONUNBUFFERED, as `start` sets it
    end_with(lambda: fold.main(path))


if __name__ == "__main__":
    serve()
