"""A process that has imported everything once and forks a child for each command: imports alone take seconds.

The children are real processes that run the whole command line, with signals, exit statuses and deaths of their own. So
are their folds: they are forked before the command begins, from a process without threads, and wait for the job that
`competition.training.fold_process.start_fold` gives them. Only `exec` and the imports are left out.

Requests are lines of JSON on standard input, answers on standard output.
"""

from __future__ import annotations

import atexit
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
import traceback
from collections.abc import Callable
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
    """Answer until the input ends."""
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
    from competition.tracking.store import configure_mlflow

    configure_mlflow()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never looked at again is never copied


def _fork(request: dict[str, Any]) -> int:
    sys.stdout.flush()
    return os.fork()


def _status(pid: int, seconds: float) -> int | None:
    """The exit status of a child, negative for a signal; None while it lives."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _act(request: dict[str, Any]) -> None:
    """In the child: become a command, or make an empty database for several tests to begin with."""
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
    _hire_folds(request["folds"], request["kills"])

    from tests.faults.kills import arm

    arm(request["kills"], "command")
    _hurry()
    sys.argv = ["maskfold", *request["argv"]]
    from competition.cli.main import main

    _leave(main)


def _leave(work: Callable[[], Any]) -> NoReturn:
    """Do the work and end as an interpreter does, but for taking all modules apart, which takes seconds."""
    status: Any = 1
    try:
        status = work()
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _join(process: int) -> None:
    """See the disks that a process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "mnt"):
        with open(f"/proc/{process}/ns/{kind}") as file:
            if libc.setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), kind)


def _hurry() -> None:
    """MLflow is told every tenth of a second what happens in tenths of a second."""
    from competition.tracking.sync import MlflowSync

    MlflowSync.__init__.__kwdefaults__.update(interval=0.1, sampling_interval=0.5)  # type: ignore[attr-defined]


# Folds


class Hired:
    """Stands for `FoldProcess`: hands the job to a process that waits for one."""

    waiting: list[tuple[int, socket.socket]] = []

    def __init__(
        self, args: list[str], *, env: dict[str, str], stdout: Any, pass_fds: tuple[int, ...], **_: Any
    ) -> None:
        self.args, self.returncode, self.pipe = args, None, -1
        self.pid, line = Hired.waiting.pop(0)
        socket.send_fds(line, [json.dumps({"args": args, "env": env}).encode()], [stdout.fileno(), *pass_fds])
        line.close()

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        Path("terminated").touch()
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _hire_folds(count: int, kills: list[dict[str, Any]]) -> None:
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
    """Wait for a job, and become its process; without one, leave with the command."""
    parent = os.getppid()
    while not select.select([line], [], [], 0.5)[0]:
        if os.getppid() != parent:
            os._exit(0)
    text, descriptors, _, _ = socket.recv_fds(line, 1_000_000, 4)
    line.close()
    if not text:
        os._exit(0)
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
    _leave(lambda: fold.main(path))


if __name__ == "__main__":
    serve()
