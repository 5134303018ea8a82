"""What somebody probably meant: the known words nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known words most like `word`, best first; capitals do not matter.

    Args:
        word: what was written.
        known: what could have been meant.
        count: how many at most.
        cutoff: least likeness in [0, 1], as in `difflib.get_close_matches`.

    Example:
        >>> nearest("epoch", ["epochs", "batch_size"])
        ['epochs']
    """
    spelling: dict[str, list[str]] = {}
    for name in known:
        spelling.setdefault(name.casefold(), []).append(name)
    matches = difflib.get_close_matches(word.casefold(), spelling, n=count, cutoff=cutoff)
    return [name for match in matches for name in spelling[match]][:count]


def one_of(words: Iterable[str]) -> str:
    """The words as an enumeration: `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
