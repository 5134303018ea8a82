"""The host's CSV files, every cell as the text that is written there."""

from __future__ import annotations

import csv
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest

if TYPE_CHECKING:
    import pandas

MOST_COLUMNS = 10_000
CURE = "Write it as a CSV with commas, UTF-8 and one header line."


def read_csv(path: Path, columns: dict[str, str]) -> pandas.DataFrame:
    """Reads a table as text: `001` stays `001`, and an empty cell is an empty text.

    Args:
        path: the file.
        columns: the columns that must be there, by the YAML key that names them.

    Returns:
        All columns as str; the index is the line in the file (the header is line 1). Blank lines are left out.

    Raises:
        MaskfoldError: the file is missing, broken, empty, or lacks a column.
    """
    if not path.is_file():
        near = nearest(path.name, sorted(p.name for p in path.parent.glob("*.csv")), count=3, cutoff=0.0)
        seen = f"; that folder holds {', '.join(near)}" if near else ""
        raise MaskfoldError(f"The table {path} does not exist{seen}.",
                            "Correct its name in the YAML, or competition.root.", status=2)
    stat = path.stat()
    table = _read(path, stat.st_mtime_ns, stat.st_size)
    for key, column in columns.items():
        if column not in table.columns:
            near = nearest(column, list(table.columns), cutoff=0.0)
            raise MaskfoldError(f"{path} has no column `{column}`; it has {', '.join(map(str, table.columns))}.",
                                f"Set {key}, to `{near[0]}` for example." if near else f"Set {key}.", status=2)
    return table


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> pandas.DataFrame:
    """Kept in memory while the file is unchanged: a table of run lengths is asked for once per case."""
    import pandas

    try:
        _check_header(path)
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except (ValueError, OSError, csv.Error) as error:  # pandas' own errors are ValueErrors
        raise MaskfoldError(f"{path} cannot be read as a table ({' '.join(str(error).split())[:300]}).", CURE) from error
    if not isinstance(table.index, pandas.RangeIndex):  # pandas takes what is too much for names of the rows
        raise MaskfoldError(f"{path} cannot be read as a table (its rows have more cells than its header).", CURE)
    table = table.fillna("")
    table.index = pandas.RangeIndex(2, len(table) + 2)
    return table[(table != "").any(axis=1)]


def _check_header(path: Path) -> None:
    """Refuses columns that pandas would rename, and so many that it would take minutes.

    Raises:
        MaskfoldError: a name is there twice, or there are more than `MOST_COLUMNS`.
    """
    csv.field_size_limit(sys.maxsize)  # a text of run lengths has no natural limit
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream), [])
    if len(header) > MOST_COLUMNS:
        raise MaskfoldError(f"{path} cannot be read as a table (its header has {len(header):,} columns).", CURE)
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise MaskfoldError(f"{path} has the column `{twice}` twice.", "Give each column a name of its own.", status=2)
