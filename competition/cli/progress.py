"""A progress bar on a terminal, some plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console


def watcher(console: Console, what: str = "cases predicted") -> Callable[[Iterator[Any], int], Iterator[Any]]:
    """A function that wraps an iterator, given its length, and tells how far it is."""

    def watch(rows: Iterator[Any], count: int) -> Iterator[Any]:
        if console.is_terminal:
            from rich.progress import track

            yield from track(rows, what, total=count, console=console)
            return
        for done, row in enumerate(rows):
            if done and done % max(1, count // 10) == 0:
                console.print(f"{done} of {count} {what}")
            yield row

    return watch
