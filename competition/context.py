"""What a command passes to all functions below it: the trusted packages and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any


def no_log(line: str) -> None:
    """Ignore a line."""


Bar = Callable[[Iterator[Any], int], Iterator[Any]]  # wraps an iterator of known length to show its progress


def no_bar(what: str) -> Bar | None:
    """Return None: progress is shown as lines of the log."""
    return None


@dataclass(frozen=True)
class Context:
    """The trusted packages and the log of a command.

    A function takes a plain `say` instead if another argument has the trusted packages already (a `FoldJob`, an
    `ExperimentSource`), or if it loads no target and passes its log to no other function.

    Attributes:
        trust: packages that a `target` may come from, in addition to `competition.config.instantiate.TRUSTED_PACKAGES`
            and `MASKFOLD_TRUST`.
        say: takes a line for the user or for a log, without its line end; the default ignores it.
        bar: takes what an iteration does, such as `cases preprocessed`, and returns its progress bar; None without a
            terminal, where the iteration writes lines to the log instead.

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
