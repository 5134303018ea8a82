"""`scores.csv`: what each case and class scored, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from competition.data.records import damaged

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS, COUNTS = ("score", "dice", "iou"), ("fold", "tp", "fp", "fn")


def read_scores(path: Path) -> pd.DataFrame:
    """Reads a `scores.csv`; a case or a class may be called nan.

    Returns:
        Columns id and class (str), fold (int), score and dice (float, nan where the class is absent) and, where they
        are there, iou (float), tp, fp and fn (int).

    Raises:
        FileNotFoundError: it is not there.
        MaskfoldError: it is damaged.
    """
    import pandas as pd

    kinds: dict[str, type] = {"id": str, "class": str, **dict.fromkeys(FRACTIONS, float), **dict.fromkeys(COUNTS, int)}
    try:
        table = pd.read_csv(
            path,
            dtype=kinds,
            keep_default_na=False,
            float_precision="round_trip",
            na_values={name: [""] for name in FRACTIONS},
        )
        if lost := [name for name in ("id", "class", "fold", "score", "dice") if name not in table.columns]:
            raise ValueError(f"the column {lost[0]} is missing")
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for names of the rows
            raise ValueError("its rows have more cells than its header")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise damaged(
            path,
            error,
            "Copy it back from elsewhere, or delete the fold's result.json: its scores are made again "
            "from the checkpoint.",
        ) from error
    return table
