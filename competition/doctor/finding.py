"""Define the result of one check, which is a row of the table that `maskfold doctor` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CheckState = Literal["ok", "warning", "unusable"]


@dataclass(frozen=True)
class CheckResult:
    """Hold the result of one check.

    Attributes:
        name: the subject of the check, e.g. `memory`.
        state: `ok`; `warning` if training works with a limitation, which `detail` describes; `unusable` if training
            does not work.
        detail: the result in one line.
        hint: a sentence that says what to do; empty if nothing needs to be done.
    """

    name: str
    state: CheckState
    detail: str
    hint: str = ""

    @property
    def text(self) -> str:
        """The detail and the hint in one line."""
        detail = f"{self.detail.rstrip('. ')}." if self.hint else self.detail
        return f"{detail} {self.hint}".strip()


def first_line(error: BaseException | str, longest: int = 200) -> str:
    """Return the first non-empty line of an error's message, shortened to `longest` characters.

    Example:
        >>> first_line(ValueError("  no such thing\\nsecond line"))
        'no such thing'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 2]} …"
