"""What the commands have in common: telling runs from `key=value`, and ending when asked to."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import ParamSpec

from competition.cli.main import fail
from competition.config import MaskfoldError

P = ParamSpec("P")


def words_and_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of runs, and `key=value` words.

    Raises:
        MaskfoldError: there is no name.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    if not names:
        raise MaskfoldError("No run is named.", "Name an experiment's YAML, a run's folder or its hash.", status=2)
    return names, overrides


def stoppable(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Makes a command end with `text` and status 130 on Ctrl-C, and 143 on SIGTERM."""

    def outer(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def inner(*args: P.args, **keywords: P.kwargs) -> None:
            signal.signal(signal.SIGTERM, terminate)
            try:
                command(*args, **keywords)
            except KeyboardInterrupt as reason:
                why = str(reason) or "Ctrl-C"
                fail(f"{text} ({why})", 143 if "SIGTERM" in why else 130)

        return inner

    return outer


def terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM as an exception, so that what is open is closed."""
    raise KeyboardInterrupt("SIGTERM")
