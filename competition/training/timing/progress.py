"""Report the progress of a fold, as lines in the log or as lines for a progress bar on the terminal.

The process of the fold only writes lines. The command's process reads the lines for the bar, and draws it, see
`competition.cli.progress`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

Status = Callable[[], tuple[str, float]]  # a text about the current work, and the finished share of all work
BAR_VARIABLE = "MASKFOLD_PROGRESS_BAR"  # environment variable that a command with a terminal sets
BAR_MARK = "  progress "  # a fold's line with this prefix is for the bar, not for the user
LINE_SECONDS = 30.0  # seconds without a line in the log after which a line about the progress is written
BAR_SECONDS = 1.0  # seconds between two lines for the bar
TICK_SECONDS = 1.0  # seconds between two checks whether a line is due


class ProgressLog:
    """Write the log of a fold, and lines about its progress.

    If there is no progress bar, a line about the progress is written to the log when no other line was written for
    `LINE_SECONDS`. If there is a bar, a line for the bar is written every `BAR_SECONDS` instead.

    Args:
        say: function that receives a line for the log and the user.
        show: function that receives a line for the bar; None if there is no bar.
        clock: function that returns the time in seconds; None for `time.monotonic`.

    Example:
        >>> log = ProgressLog(print)
        >>> log.set(lambda: ("validating: 3 of 40 cases", 0.5))  # said after 30 s without another line
    """

    def __init__(
        self,
        say: Callable[[str], None],
        show: Callable[[str], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._say, self._show = say, show
        self._clock = clock or time.monotonic
        self._lock = threading.RLock()
        self._status: Status = lambda: ("reading the cases", 0.0)
        self._last_line = self._clock()
        self._last_bar = self._last_line - BAR_SECONDS

    def __call__(self, line: str) -> None:
        """Write a line to the log."""
        with self._lock:
            self._say(line)
            self._last_line = self._clock()

    def set(self, status: Status) -> None:
        """Set the function that describes the present work of the fold.

        `status` is called whenever a line is due, possibly in another thread.
        """
        self._status = status
        self.tick()

    def tick(self) -> None:
        """Write a line about the progress of the fold, to the log or for the bar, if one is due."""
        with self._lock:
            now = self._clock()
            if self._show is None:
                if now - self._last_line >= LINE_SECONDS:
                    self(self._status()[0])
            elif now - self._last_bar >= BAR_SECONDS:
                self._last_bar = now
                text, share = self._status()
                self._show(f"{BAR_MARK}{share:.4f} {text}")

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Call `tick` from a thread during the `with` block, so that lines are also written during a long step."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(TICK_SECONDS):
                self.tick()

        thread = threading.Thread(target=work, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(5.0)


def progress_of(say: Callable[[str], None]) -> ProgressLog:
    """Return a `ProgressLog` that writes to the function `say`; if `say` already is a `ProgressLog`, return it."""
    return say if isinstance(say, ProgressLog) else ProgressLog(say)


def wants_bar() -> bool:
    """Return whether the command that started this process draws a progress bar."""
    return os.environ.get(BAR_VARIABLE) == "1"


def parse_bar(line: str) -> tuple[float, str] | None:
    """Return the finished share (0 to 1) and the text in a line for the progress bar; None for any other line."""
    share, _, text = line.removeprefix(BAR_MARK).partition(" ")
    try:
        return (min(max(float(share), 0.0), 1.0), text) if line.startswith(BAR_MARK) else None
    except ValueError:
        return None


def format_seconds(seconds: float) -> str:
    """Format a duration: `0.41 s`, `31 s`, `12 min`, `3.5 h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock_time(seconds: float, now: datetime | None = None) -> str:
    """Return the time of day `seconds` from now, e.g. `14:32`, with the date if that day is not today."""
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"
