"""Detect that the process of a fold must stop: SIGTERM, Ctrl-C, or the death of the command that started it.

The signal handler only records the signal. After each step, `Trainer` asks whether there is a reason to stop. If
there is one, it writes a checkpoint and raises KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from competition.process import parent_process


class StopSignal:
    """Detect reasons to stop this process: SIGTERM, Ctrl-C, and the death of the parent process.

    The constructor installs signal handlers, so that a signal does not end the process at once.
    """

    def __init__(self) -> None:
        self._reason = ""
        self._parent = parent_process()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._on_signal)
            except ValueError:
                return  # a test calls `run_fold` outside of the main thread

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name

    def reason(self) -> str:
        """Return the reason to stop, e.g. `SIGTERM`; an empty text if there is none."""
        if not self._reason and os.getppid() != self._parent:
            self._reason = "the parent process ended"
        return self._reason

    def check(self) -> None:
        """Raise KeyboardInterrupt, with the reason as its message, if there is a reason to stop."""
        if reason := self.reason():
            raise KeyboardInterrupt(reason)
