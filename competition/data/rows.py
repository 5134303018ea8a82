"""One row of the case table, whatever way it was taken out."""

from __future__ import annotations

from typing import Any


def cell(row: Any, column: str) -> Any:
    """A cell of a row that is a Series, a tuple of `itertuples`, or any object with the columns as attributes.

    A Series has attributes of its own, `shape` among them, that would hide the columns.
    """
    return row[column] if hasattr(row, "iloc") else getattr(row, column)
