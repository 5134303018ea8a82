"""Read and write CSV tables."""

from __future__ import annotations

import csv
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from competition.errors import MaskfoldError
from competition.io import atomic_write
from competition.text import nearest_names

if TYPE_CHECKING:
    import pandas

MAX_COLUMNS = 10_000
MAX_HEADER_LENGTH = 1 << 20  # number of characters of the first line from which the separator is detected
FORMAT_HINT = "Write the file as a CSV in UTF-8, with commas and one header line."


def read_csv(path: Path, columns: dict[str, str]) -> pandas.DataFrame:
    """Read a table as text: `001` stays `001`, and an empty cell is an empty string.

    Args:
        path: path of the file.
        columns: the required columns. The value is the name of the column; the key is the YAML key that sets this
            name, for error messages. If no YAML key sets the name, key and value are equal.

    Returns:
        All columns as str; the index is the line number in the file (the header is line 1). Blank lines are dropped.

    Raises:
        MaskfoldError: the file is missing, broken or empty, or lacks a column.
    """
    if not path.is_file():
        near = nearest_names(path.name, sorted(p.name for p in path.parent.glob("*.[ct]sv")), count=3, cutoff=0.0)
        files = f"; its folder has {', '.join(near)}" if near else ""
        raise MaskfoldError(
            f"The table {path} does not exist{files}.",
            "Correct the path of the table, or competition.root. In competition.yaml, the paths of tables are relative "
            "to competition.root.",
            status=2,
        )
    stat = path.stat()
    table = _read_table(path, stat.st_mtime_ns, stat.st_size)
    for key, column in columns.items():
        if column not in table.columns:
            near = nearest_names(column, list(table.columns))
            raise MaskfoldError(
                f"{path} has no column `{column}`: found {', '.join(map(str, table.columns))}.",
                f"Rename a column to `{column}`, or give another table."
                if key == column
                else f"Set {key}, for example to `{near[0]}`."
                if near
                else f"Set {key} to one of these columns.",
                status=2,
            )
    return table


def write_table(table: pandas.DataFrame, path: Path) -> None:
    """Write a pandas table atomically as CSV, or with tabs if the path ends in `.tsv`; numbers are not rounded."""
    content = table.to_csv(index=False, sep=separator_of(path), lineterminator="\n").encode()
    atomic_write(path, lambda file: file.write(content), len(content))


def separator_of(path: Path) -> str:
    """Return the cell separator of tables that `write_table` writes to this path."""
    return "\t" if path.suffix == ".tsv" else ","


@lru_cache(maxsize=4)
def _read_table(path: Path, modified: int, size: int) -> pandas.DataFrame:
    """Read a table as `read_csv` does, without the check for required columns.

    The result is cached until the file's modification time or size changes, because each case reads the same table of
    run lengths.
    """
    import pandas

    try:
        separator = _check_header(path)
        table = pandas.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except (ValueError, OSError, csv.Error) as error:  # pandas' own errors are ValueErrors
        raise _unreadable_table_error(path, " ".join(str(error).split())[:300]) from error
    if not isinstance(table.index, pandas.RangeIndex):  # pandas would use additional cells as row names
        raise _unreadable_table_error(path, "its rows have more cells than its header")
    table = table.fillna("")
    table.index = pandas.RangeIndex(2, len(table) + 2)
    return table[(table != "").any(axis=1)]


def _unreadable_table_error(path: Path, reason: str) -> MaskfoldError:
    return MaskfoldError(f"{path} cannot be read as a table ({reason}).", FORMAT_HINT)


def _check_header(path: Path) -> str:
    """Check the header of a table, and return the character that separates its cells.

    The separator is a comma if the header contains one, otherwise a semicolon or a tab.

    Raises:
        MaskfoldError: the file is JSON; a column occurs twice (pandas would rename it); or there are more columns than
            `MAX_COLUMNS` (which pandas would read for minutes).
    """
    csv.field_size_limit(sys.maxsize)  # texts of run lengths may be longer than the default limit
    with path.open(encoding="utf-8-sig", newline="") as stream:
        line = stream.readline(MAX_HEADER_LENGTH)
        separator = "," if "," in line else next((mark for mark in ";\t" if mark in line), ",")
        if line.lstrip()[:1] in ("{", "["):
            raise _unreadable_table_error(path, "it is JSON, expected comma-separated values with a header")
        stream.seek(0)
        header = next(csv.reader(stream, delimiter=separator), [])
    if len(header) > MAX_COLUMNS:
        raise _unreadable_table_error(path, f"its header has {len(header):,} columns")
    duplicate = next((name for name in header if name and header.count(name) > 1), None)
    if duplicate is not None:
        raise MaskfoldError(
            f"{path} has two columns `{duplicate}`, expected different names.", "Rename one of these columns.", status=2
        )
    return separator
