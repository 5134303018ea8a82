"""Start commands through the process of `tests.faults.stage`, with experiments that take only seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from competition.io import TEMPORARY_NAME
from tests.conftest import ROOT

EXPERIMENT = ROOT / "experiments" / "demo2d" / "unet2d.yaml"
LONGEST = 240.0  # maximum seconds that a command may take on a busy machine
EPOCHS, STEPS = 7, 4  # epochs of a fold, and training steps of an epoch
SMALL = [
    "folds.k=2",
    f"training.epochs={EPOCHS}",
    f"training.steps_per_epoch={STEPS}",
    "training.checkpoint_minutes=0",
    "training.budget_minutes=null",
    "training.batch_size=2",
    "training.validate_every=1",
    "training.pictures_every=100",
    "encoder_weights=null",
    "run.threads=1",
    "run.parallel_folds=1",
    "patch.size=[32,32]",
    "model.target=monai.networks.nets.UNet",
    "model.args={channels: [4, 8], strides: [2], num_res_units: 0, norm: [group, {num_groups: 2}]}",
    "inference.tta=[]",
]

PLAIN = ["training.precision=fp32", "schedule={name: plateau, patience: 1}", "training.ema=0.9"]


def words_of(demo: Path) -> list[object]:
    """Return the arguments of a cross-validation that takes seconds and writes a checkpoint after each step."""
    return ["cv", EXPERIMENT, f"competition.root={demo}", *SMALL, *PLAIN]


def pause(who: str, at: str, nth: int = 1) -> list[dict[str, Any]]:
    """Return kills for `tests.faults.kills.arm` that make a process wait until its file `paused` is removed."""
    return [{"who": who, "at": at, "nth": nth, "how": "pause"}]


@dataclass
class Command:
    """A command that was started.

    Attributes:
        stage: the stage that started it.
        pid: its process id.
        output: file with the text that it prints.
        status: its exit status, negative for a signal; None until `wait` has returned.
    """

    stage: Stage
    pid: int
    output: Path
    status: int | None = None

    def wait(self, seconds: float = LONGEST) -> int:
        """Wait for the end of the command, and return its exit status (negative for a signal)."""
        if self.status is None:
            self.status = self.stage.ask({"wait": self.pid, "seconds": seconds})["status"]
        assert self.status is not None, f"still there after {seconds} s: {self.said}"
        return self.status

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """The text that the command has printed so far."""
        return self.output.read_text(errors="replace")

    def until(self, true: Callable[[], Any], seconds: float = LONGEST) -> None:
        """Wait until `true()` returns a true value.

        Raises:
            AssertionError: the command has ended, or `seconds` have passed.
        """
        deadline = time.monotonic() + seconds
        while not true():
            assert psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        """Return all descendant processes of the command."""
        return psutil.Process(self.pid).children(recursive=True)


class Stage:
    """Start commands through the process of `tests.faults.stage`.

    Args:
        process: this process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._one = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        A long wait is sent as many short requests, so that other threads can send theirs in between.
        """
        deadline = time.monotonic() + request.get("seconds", 0.0)
        while True:
            with self._one:
                assert self.process.stdin is not None and self.process.stdout is not None
                self.process.stdin.write(json.dumps({**request, "seconds": 0.05}) + "\n")
                self.process.stdin.flush()
                answer = dict(json.loads(self.process.stdout.readline()))
            if "wait" not in request or answer["status"] is not None or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)

    def start(
        self,
        cwd: Path,
        *argv: object,
        kills: Sequence[dict[str, Any]] = (),
        folds: int = 2,
        env: dict[str, str] | None = None,
        name: str = "output",
        output: Path | None = None,
        namespace: int | None = None,
    ) -> Command:
        """Start `maskfold ARGV` in a folder.

        Args:
            cwd: the folder.
            *argv: arguments of the command.
            kills: see `tests.faults.kills.arm`.
            folds: maximum number of folds that the command starts.
            env: additional environment variables.
            name: name without ending of the file in `cwd` for the text that the command prints.
            output: another file for this text; None for the file that `name` gives.
            namespace: id of a process whose mount and user namespaces the command enters; None for none.
        """
        output = output or cwd / f"{name}.txt"
        output.unlink(missing_ok=True)
        output.touch()
        answer = self.ask(
            {
                "argv": [str(word) for word in argv],
                "cwd": str(cwd),
                "kills": list(kills),
                "folds": folds,
                "output": str(output),
                "env": env or {},
                "namespace": namespace,
            }
        )
        return Command(self, answer["pid"], output)

    def database(self, path: Path) -> Path:
        """Make an empty MLflow database at `path`, which takes seconds, and return the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        command = Command(self, self.ask({"database": str(path)})["pid"], path.with_name("database.txt"))
        assert command.wait() == 0 and path.exists()
        return path

    def run(self, cwd: Path, *argv: object, status: int = 0, **how: Any) -> str:
        """Run a command to its end, check its exit status, and return the text that it printed.

        Args:
            cwd: the folder.
            *argv: arguments of the command.
            status: the expected exit status.
            **how: further arguments of `start`.
        """
        command = self.start(cwd, *argv, **how)
        found = command.wait()
        assert found == status, (found, command.said)
        return command.said


def leftovers(*folders: Path) -> list[Path]:
    """Return all files and folders with temporary names, which a killed command may have left behind."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if TEMPORARY_NAME.fullmatch(path.name)
        or path.name.endswith((".tmp", ".part"))
        or path.name.endswith("-journal")
    ]


def the_run(cwd: Path) -> Path:
    """Return the folder of the only run of a project."""
    folders = [path for path in (cwd / "mlruns" / "runs").glob("*/*") if path.is_dir()]
    assert len(folders) == 1, folders
    return folders[0]


def tracked(cwd: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the active MLflow runs of a project, by the name of the fold's folder ("." for the whole run).

    Each run is a dictionary with its status, name and points. A point is the name, step, value, and "is NaN" flag of a
    metric.
    """
    import sqlite3
    import tempfile

    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, sqlite3.connect(Path(folder) / "copy.db") as database:
        for path in (cwd / "mlruns").glob(
            "mlflow.db*"
        ):  # SQLite does not find a path that leads to another one's disks
            shutil.copy(path, Path(folder) / path.name.replace("mlflow", "copy"))
        runs = database.execute("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        for run, name, status in runs:
            points = database.execute(
                "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", [run]
            ).fetchall()
            place = "_".join(name.split(" · ")[0].split()) if name.startswith(("fold ", "full")) else "."
            found.setdefault(place, []).append({"status": status, "points": points, "name": name})
    database.close()
    return found


def gone(pids: Sequence[int], seconds: float = 60.0) -> bool:
    """Return whether all processes end within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


def interrupt(command: Command, number: signal.Signals) -> int:
    """Send a signal to a command, wait for its end, and return its exit status."""
    command.signal(number)
    return command.wait()
