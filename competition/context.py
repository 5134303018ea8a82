"""Define `Context`, which a command passes to the functions that it calls: trusted packages, log and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any


def no_log(line: str) -> None:
    """Ignore a line of the log."""


Bar = Callable[[Iterator[Any], int], Iterator[Any]]  # function that shows the progress of an iterator of known length


def no_bar(what: str) -> Bar | None:
    """Return None: no bar is drawn, and the progress of the iteration appears as lines in the log."""
    return None


@dataclass(frozen=True)
class Context:
    """Hold what a command passes to the functions it calls: trusted packages, the log and progress bars.

    Some functions take only the log function `say` instead of a context. They import no `target` (a class or function
    that the YAML names), or they get the trusted packages from another argument, a `FoldJob` or an `ExperimentSource`.

    Attributes:
        trust: packages from which a `target` may be imported, in addition to the packages in
            `competition.config.instantiate.TRUSTED_PACKAGES` and in the environment variable `MASKFOLD_TRUST`.
        say: function that receives a line (without line end) for the user or a log; the default ignores the line.
        bar: function that takes a label, such as `cases preprocessed`, and returns a function that shows the progress
            of an iterator. If there is no terminal, it returns None, and the progress appears as lines in the log.

    Example:
        >>> Context(say=print).indented().say("fold 0")
          fold 0
    """

    trust: tuple[str, ...] = ()
    say: Callable[[str], None] = no_log
    bar: Callable[[str], Bar | None] = no_bar

    def silent(self) -> Context:
        """Return a copy of the context without its log and progress bars."""
        return replace(self, say=no_log, bar=no_bar)

    def indented(self) -> Context:
        """Return a copy of the context whose log indents each line by two spaces."""
        return replace(self, say=lambda line: self.say(f"  {line}"))
