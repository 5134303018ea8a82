"""One process at a time in a fold's folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from competition.config import MaskfoldError


@contextmanager
def alone(folder: Path, patience: float = 0.0, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process dies, however it dies.

    Args:
        folder: of the fold.
        patience: seconds that another process gets to let go of it.
        say: takes a line for the log where there is something to wait for.

    Raises:
        MaskfoldError: another process holds it.
    """
    with open(folder / "lock", "a+") as file:
        if not _taken(file) and patience:
            say(f"waits until {_holder(file)} lets go of the folder")
        deadline = time.monotonic() + patience
        while not _taken(file):
            if time.monotonic() > deadline:
                raise MaskfoldError(f"{folder} is being trained by {_holder(file)}.",
                                    "Wait until it is done, or stop it first.")
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_free(folder: Path) -> bool:
    """Whether no process trains in the folder."""
    if not (folder / "lock").exists():
        return True
    with open(folder / "lock", "a+") as file:
        return _taken(file)


def _taken(file: IO[str]) -> bool:
    """Whether this process holds the lock now, until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
