"""Names that strangers gave: which of them become files, lines and cells without becoming more than that."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
# What a spreadsheet takes for a formula (OWASP, "CSV Injection"), and what such a formula needs to reach further than
# its own sheet. A minus before a number, or a plus behind a name, is neither.
SIGNS, REACH = "=+-@", re.compile(r"[(|!]")


def is_formula(text: str) -> bool:
    """Whether a spreadsheet that opens a CSV would run a cell of this text.

    Example:
        >>> is_formula("=cmd|' /C calc'!A0"), is_formula("-12"), is_formula("T1+ (late)")
        (True, False, False)
    """
    plain = text.lstrip("\t\r\n \"'")
    return plain[:1] in SIGNS and plain != "" and REACH.search(plain) is not None


def why_unfit(name: str) -> str | None:
    """Why a case or a class cannot be called so, as a sentence without its subject; None where it can.

    Names become files (`{id}_{class}.nii.gz`), lines of logs, and cells of tables.
    """
    if CONTROL.search(name):
        return "holds a line break or another control character"
    if "/" in name or "\\" in name:
        return "holds a slash, which would make another folder of it"
    if not name.strip(" ."):
        return "holds nothing but dots and spaces"
    return "would be run as a formula by a spreadsheet" if is_formula(name) else None


def as_text(cell: str) -> str:
    """A cell that spreadsheets show as it is: one that they would run gets an apostrophe in front, as they write it."""
    return f"'{cell}" if is_formula(cell) and not cell.startswith("'") else cell
