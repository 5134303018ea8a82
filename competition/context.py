"""What a command passes to all functions below it: the trusted packages and the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


def no_log(line: str) -> None:
    """Ignore a line."""


@dataclass(frozen=True)
class Context:
    """The trusted packages and the log of a command.

    A function takes a plain `say` instead if another argument has the trusted packages already (a `FoldJob`, an
    `ExperimentSource`), or if it loads no target and passes its log to no other function.

    Attributes:
        trust: packages that a `target` may come from, in addition to `competition.config.instantiate.TRUSTED_PACKAGES`
            and `MASKFOLD_TRUST`.
        say: takes a line for the user or for a log, without its line end; the default ignores it.

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
