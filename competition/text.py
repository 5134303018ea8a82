"""Check names of cases and classes, and make text for messages: similar names, lists, counts and ids."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from competition.errors import SURROGATE

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Characters that start a spreadsheet formula (OWASP, "CSV Injection"), and the characters that a formula needs to
# access data outside of its sheet. A minus before a number and a plus after a name are harmless.
FORMULA_STARTS, DANGEROUS_CHARACTERS = "=+-@", re.compile(r"[(|!]")
MAX_ID_LENGTH = 26  # longer ids are shortened in lists


# Names of cases and classes become file names, log lines and spreadsheet cells.


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet that opens a CSV would execute a cell with this text.

    Example:
        >>> is_formula("=cmd|' /C calc'!A0"), is_formula("-12"), is_formula("T1+ (late)")
        (True, False, False)
    """
    plain = text.lstrip("\t\r\n \"'")
    return plain[:1] in FORMULA_STARTS and plain != "" and DANGEROUS_CHARACTERS.search(plain) is not None


def name_problem(name: str) -> str | None:
    """Return the problem of a case or class name, such as "is not UTF-8"; None if the name is valid.

    Names are used in file names (`{id}_{class}.nii.gz`), log lines and table cells.
    """
    if SURROGATE.search(name):
        return "is not UTF-8"
    if CONTROL_CHARACTERS.search(name):
        return "contains a line break or another control character"
    if "/" in name or "\\" in name:
        return "contains a slash, which would create another folder"
    if not name.strip(" ."):
        return "contains only dots and spaces"
    return "would be executed as a formula by a spreadsheet" if is_formula(name) else None


def fold_name(name: str) -> str:
    r"""Return a normal form of a name: two names with the same form are the same file on some file systems.

    Some file systems ignore case, or treat composed and decomposed Unicode characters as equal.

    Example:
        >>> fold_name("E\u0301") == fold_name("\u00e9")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def escape_formula(cell: str) -> str:
    """Return a cell's text; a formula gets an apostrophe in front, so that spreadsheets show it as text."""
    return f"'{cell}" if is_formula(cell) and not cell.startswith("'") else cell


# Suggestions and enumerations


def nearest_names(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names most similar to `word`, best first, ignoring case.

    Args:
        word: the name to look up.
        known: the valid names.
        count: maximum number of results.
        cutoff: minimum similarity in [0, 1], as in `difflib.get_close_matches`.

    Example:
        >>> nearest_names("epoch", ["epochs", "batch_size"])
        ['epochs']
    """
    spelling: dict[str, list[str]] = {}
    for name in known:
        spelling.setdefault(name.casefold(), []).append(name)
    matches = difflib.get_close_matches(word.casefold(), spelling, n=count, cutoff=cutoff)
    return [name for match in matches for name in spelling[match]][:count]


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """Return the words that name the most similar known name, to append to an error message.

    The text is empty if no known name is similar.

    Example:
        >>> nearest_hint("case_7", ["case_07", "spleen"])
        '; nearest is case_07'
    """
    return "".join(f"; nearest is {name}" for name in nearest_names(word, known))


def join_or(words: Iterable[str]) -> str:
    """Join alternatives: `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def join_names(names: Sequence[str]) -> str:
    """Join names in a list: `red, green and blue`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# Counts, units and case ids in messages


def format_count(count: int, noun: str) -> str:
    """Format a count: `1 case`, `1,200 cases`."""
    return format_amount(count, noun, ",")


def format_amount(amount: float, noun: str, spec: str = "g") -> str:
    """Format a number and its noun, which is singular if the number is shown as 1: `1 minute`, `1.5 minutes`.

    Args:
        amount: the number.
        noun: singular noun with a regular plural: `case`, `class`, `patch`, `study`.
        spec: format of the number, as in an f-string.
    """
    shown = format(amount, spec)
    if shown == "1":
        return f"{shown} {noun}"
    if re.search(r"[^aeiou]y$", noun):
        return f"{shown} {noun[:-1]}ies"
    return f"{shown} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def and_more(total: int, shown: int, noun: str) -> str:
    """Return the end of a shortened list, e.g. ` and 3 more cases`; an empty text if the list is complete.

    Args:
        total: number of all items.
        shown: maximum number of items that the list names.
        noun: singular noun for one item.
    """
    return f" and {format_count(total - shown, f'more {noun}')}" if total > shown else ""


def name_some(names: Sequence[str], shown: int = 3) -> str:
    """Join the first names of a list; `…` stands for the others.

    Example:
        >>> name_some(["a", "b", "c", "d"])
        'a, b, c, …'
    """
    return ", ".join([*names[:shown], *(["…"] if len(names) > shown else [])])


def same_problem(more: int, noun: str) -> str:
    """Return a sentence that counts further items with the problem of a message; an empty text if there are none.

    Args:
        more: number of further items.
        noun: singular noun for one item.

    Example:
        >>> same_problem(3, "case")
        ' 3 more cases have the same problem.'
    """
    return f" {format_count(more, f'more {noun}')} {has_or_have(more)} the same problem." if more else ""


def has_or_have(count: int) -> str:
    """Return `has` or `have`, to agree with the count."""
    return "has" if count == 1 else "have"


def is_or_are(count: int) -> str:
    """Return `is` or `are`, to agree with the count."""
    return "is" if count == 1 else "are"


def pixel_or_voxel(dimensions: int) -> str:
    """Return `pixel` for 2D and `voxel` for 3D."""
    return "pixel" if dimensions == 2 else "voxel"


def shorten_id(case_id: str) -> str:
    """Return an id; shorten a long id to its beginning and end."""
    return case_id if len(case_id) <= MAX_ID_LENGTH else f"{case_id[:12]}…{case_id[-12:]}"


def format_listed_case(case_id: str, path: str) -> str:
    """Format a case for a list of several cases: id and file, or only a shortened id if the id is long."""
    return f"{case_id} ({path})" if len(case_id) <= MAX_ID_LENGTH else shorten_id(case_id)


def format_single_case(case_id: str, path: str) -> str:
    """Format a single case for a message: id and file, or only the id if it is long and occurs in the file's path."""
    return case_id if len(case_id) > MAX_ID_LENGTH and case_id in path else f"{case_id} ({path})"


def format_number(value: float | None, spec: str = ".4f") -> str:
    """Format a score for a message; None, which means that no case has a score, becomes `absent`.

    Example:
        >>> format_number(0.25), format_number(None)
        ('0.2500', 'absent')
    """
    return "absent" if value is None else format(value, spec)
