"""A row of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "unusable"]


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        what: what was looked at.
        state: `ok`; `warning`: training goes on, with a loss that `found` names; `unusable`: it does not.
        found: one line.
        cure: a sentence that says what to do; empty where nothing is to be done.
    """

    what: str
    state: State
    found: str
    cure: str = ""

    @property
    def text(self) -> str:
        """What was found, and what to do, in one line."""
        found = f"{self.found.rstrip('. ')}." if self.cure else self.found
        return f"{found} {self.cure}".strip()


def first_line(error: BaseException | str, longest: int = 200) -> str:
    """The first line of an error's message that says something, cut.

    Example:
        >>> first_line(ValueError("  no such thing\\nsecond line"))
        'no such thing'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 2]} …"
