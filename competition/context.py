"""The object that a command passes to the functions that it calls: the trusted packages and the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


def no_log(line: str) -> None:
    """Ignore a line of the log."""


@dataclass(frozen=True)
class Context:
    """The trusted packages and the log of a command.

    A function takes only a function `say` instead if another argument (a `FoldJob`, an `ExperimentSource`) contains the
    trusted packages, or if the function loads no `target` and passes its log to no other function.

    Attributes:
        trust: packages from which a `target` may be imported, in addition to
            `competition.config.instantiate.TRUSTED_PACKAGES` and `MASKFOLD_TRUST`.
        say: function that receives a line (without line end) for the user or a log; the default ignores the line.

    Example:
        >>> Context(say=print).indented().say("fold 0")
          fold 0
    """

    trust: tuple[str, ...] = ()
    say: Callable[[str], None] = no_log

    def silent(self) -> Context:
        """Return a copy of the context without its log."""
        return replace(self, say=no_log)

    def indented(self) -> Context:
        """Return a copy of the context whose log indents each line by two spaces."""
        return replace(self, say=lambda line: self.say(f"  {line}"))
