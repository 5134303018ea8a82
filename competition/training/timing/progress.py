"""What a fold says about its progress: a line from time to time, or the lines of a bar on the user's terminal.

The fold's process only writes lines. `competition.cli.progress` reads those of the bar and draws it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

Status = Callable[[], tuple[str, float]]  # what a fold does now, and the share of its work that is done
BAR_VARIABLE = "MASKFOLD_PROGRESS_BAR"  # environment variable that a command with a terminal sets
BAR_MARK = "  progress "  # two spaces: such a line of a fold is not shown as it is
LINE_SECONDS = 30.0  # between two lines
BAR_SECONDS = 1.0  # between two lines of the bar
TICK_SECONDS = 1.0


class ProgressLog:
    """The log of a fold, which also says how far the fold is if nothing else was said for `LINE_SECONDS`.

    Args:
        say: takes a line for the log and the user.
        show: takes a line for the bar; None without a bar.
        clock: returns seconds.

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
        """Say a line."""
        with self._lock:
            self._say(line)
            self._last_line = self._clock()

    def set(self, status: Status) -> None:
        """Set what the fold does now; the function is called when a line is due, possibly in another thread."""
        self._status = status
        self.tick()

    def tick(self) -> None:
        """Say what the fold does if it is time to."""
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
        """Tick from a thread inside the block: also during a single long step, or before the first one."""
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
    """Return a log as a `ProgressLog`, itself if it is one."""
    return say if isinstance(say, ProgressLog) else ProgressLog(say)


def wants_bar() -> bool:
    """Return whether the command that started this process draws a bar."""
    return os.environ.get(BAR_VARIABLE) == "1"


def parse_bar(line: str) -> tuple[float, str] | None:
    """Return the share that is done and the text of a line of the bar; None for another line."""
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
    """Return the time of day in some seconds, with the date if it is another day: `14:32`."""
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"
