"""The parent of a fold's process: find it, and end with it."""

from __future__ import annotations

import os
import threading
import time

PARENT_VARIABLE = "MASKFOLD_PARENT"  # in a fold process: the id of the process that started it


def parent_process() -> int:
    """Return the id of the process that started this one, even if it has ended."""
    return int(os.environ.get(PARENT_VARIABLE) or os.getppid())


def exit_with_parent(process: int) -> None:
    """End this process soon after its parent `process` ends; otherwise it could wait forever in a collective call."""

    def watch() -> None:
        while os.getppid() == process:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
