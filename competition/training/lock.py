"""One process at a time in a fold's folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from competition.config import MaskfoldError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process dies, however it dies.

    Raises:
        MaskfoldError: another process holds it.
    """
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise MaskfoldError(f"{folder} is being trained by {file.read().strip() or 'another process'}.",
                                "Wait until it is done, or stop it first.") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
