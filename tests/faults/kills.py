"""Kills a process, by SIGKILL, at the n-th call of a function: before it, after it, or somewhere in its midst.

Or it has the process pause there, or a disk refuse to take more.

An instant in the midst is a number of calls of other functions, so that the same seed kills at the same place on a fast
machine and on a busy one.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What can be met, by a name: module, function, and part of a path in its first argument where only such calls count.
POINTS: dict[str, tuple[str, str, str]] = {
    # in a fold
    "fold starts": ("competition.training.fold", "run_fold", ""),
    "fold begins": ("competition.training.fold", "setup_fold", ""),
    "step": ("competition.training.trainer", "Trainer.training_step", ""),
    "checkpoint": ("competition.training.trainer", "save_checkpoint", ""),
    "file synced": ("os", "fsync", ""),
    "checkpoint renamed": ("os", "replace", "last.pt"),
    "journal": ("competition.runs.checkpoint", "MetricsLog.append_line", ""),
    "validation": ("competition.training.evaluator", "Evaluator.validate", ""),
    "case": ("competition.training.evaluator", "Evaluator.predict", ""),
    "tensors dropped": ("competition.training.trainer", "Trainer.drop_tensors", ""),
    "snapshot": ("competition.training.averaging", "CheckpointAverager.add", ""),
    "weights": ("competition.training.fold", "save_weights", ""),
    "out of fold": ("competition.runs.oof", "OofStore.write", ""),
    "out of fold renamed": ("os", "replace", "zarr.zip"),
    "scores": ("competition.training.fold", "write_table", ""),
    "picture": ("competition.training.evaluator", "draw_case", ""),
    "result": ("competition.training.fold", "write_result", ""),
    # in the command
    "prepared": ("competition.data.cache", "BuiltCase.publish", ""),
    "array": ("competition.data.preprocessing", "write_array", ""),
    "run written": ("competition.runs.run", "Run.write", ""),
    "making the database": ("alembic.operations", "Operations.create_table", ""),
    "look": ("competition.tracking.uploader", "RunUploader.upload", ""),
    "points": ("competition.tracking.uploader", "RunUploader._log_points", ""),
    "state": ("competition.tracking.sync_state", "SyncState.write", ""),
    "making a run": ("competition.tracking.uploader", "RunUploader._make_run", ""),
    "files": ("competition.tracking.uploader", "RunUploader._upload_files", ""),
    "closing": ("competition.tracking.uploader", "RunUploader.close", ""),
    "summary": ("competition.training.cross_validate", "summarize_run", ""),
    "tuning": ("competition.postprocessing.evaluation", "OofScores.score", ""),
    "test case": ("competition.ensembling.ensemble", "EnsemblePredictor.predict", ""),
    "csv": ("competition.submission.writer", "_write", ""),
}

command = 0  # its process id, in the process of a command and in those of its folds


def arm(kills: list[dict[str, Any]], who: str) -> None:
    """Prepare this process's end.

    Args:
        kills: each with `who` (`command`, or a fold's folder), `at` (of `POINTS`), `nth` (from 1), and `how`: `before`,
            `after`, or how many calls of anything after it began. `how: hold` only waits there until the parent is
            gone. `both`: the parent is killed as well. `how: pause` makes a file `paused` in the working folder and
            waits until that is removed. `how: ENOSPC` and other names of errors have every call from the n-th on fail
            with that error, for as long as there is a file `full` in the working folder.
        who: this process.
    """
    for kill in kills:
        if kill["who"] == who:
            _wrap(*POINTS[kill["at"]], kill["nth"], kill["how"], kill.get("both", False))


def _wrap(module: str, name: str, part: str, nth: int, how: str | int, both: bool) -> None:
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    real = getattr(owner, last)
    count = 0
    parent = os.getppid()

    @functools.wraps(real)
    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal count
        if part and not any(part in str(argument) for argument in args[:2]):
            return real(*args, **keywords)
        count += 1
        if isinstance(how, str) and how.startswith("E"):
            if count >= nth and Path("full").exists():
                raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))
            return real(*args, **keywords)
        if count != nth:
            return real(*args, **keywords)
        if how == "hold":
            _until(lambda: os.getppid() != parent)
        elif how == "pause":
            Path("paused").touch()
            _until(lambda: not Path("paused").exists())
        elif how == "before":
            die(both)
        elif not isinstance(how, str):
            _count_down(how, both)
        result = real(*args, **keywords)
        if how == "after":
            die(both)
        return result

    setattr(owner, last, call)


def _count_down(calls: int, both: bool) -> None:
    """Die after so many calls, of functions in Python or in C, in this thread."""
    left = calls

    def look(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left <= 0:
            die(both)

    sys.setprofile(look)


def die(both: bool = False) -> None:
    """What `kill -9` does; `both`: what it does to a container."""
    if both:
        os.kill(command, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _until(true: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
