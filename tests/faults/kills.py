"""Kill a process by SIGKILL at the n-th call of a function: before the call, after it, or during it.

Instead of killing the process, the functions of this module can make it pause there, or make calls fail with an error,
e.g. because the disk is full.

An instant during a call is given as a number of calls of other functions. The same seed thus kills at the same point on
a fast and on a busy machine.
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

# Points at which a process can be killed, by name: module, function, and a text. Only calls are counted in which one of
# the first two arguments contains this text.
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

command = 0  # process id of the command; set in the process of the command and in those of its folds


def arm(kills: list[dict[str, Any]], who: str) -> None:
    """Replace functions in this process by versions that kill it, make it wait, or fail at the given points.

    Each kill is a dictionary with these keys:

    * `who`: "command", or the name of a fold's folder;
    * `at`: a key of `POINTS`;
    * `nth`: number of the call, from 1;
    * `how`: "before" or "after" the call; or a number of function calls after the call began. "hold" waits until the
      parent process has ended. "pause" makes a file `paused` in the working folder and waits until it is removed. The
      name of an error such as "ENOSPC" makes the n-th call and all later calls fail with this error, as long as the
      working folder contains a file `full`;
    * `both`: whether the command is killed as well.

    Args:
        kills: the kills; those for other processes are ignored.
        who: which process this is, in the form of the key `who`.
    """
    for kill in kills:
        if kill["who"] == who:
            _wrap(*POINTS[kill["at"]], kill["nth"], kill["how"], kill.get("both", False))


def _wrap(module: str, name: str, part: str, nth: int, how: str | int, both: bool) -> None:
    """Replace the function `name` of a module; see `POINTS` and `arm` for the arguments."""
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
    """Kill this process after `calls` further calls of Python or C functions in this thread."""
    left = calls

    def look(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left <= 0:
            die(both)

    sys.setprofile(look)


def die(both: bool = False) -> None:
    """Kill this process by SIGKILL, and the command as well if `both` is set, as when a container is killed."""
    if both:
        os.kill(command, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _until(true: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait until `true()` returns True; raise an AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
