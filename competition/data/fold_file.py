"""Folds as a CSV: read, written, and checked against the cases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.csv_table import read_csv
from competition.data.files import room, sync_folder, temporary

if TYPE_CHECKING:
    import pandas


def write_folds(folds: pandas.DataFrame, path: str | Path) -> None:
    """Writes columns id, fold, group as a CSV with LF line ends, the same bytes on every machine; whole or not at all.

    Args:
        folds: as `folds.split` gives them.
        path: the file; its folder is made if need be.

    Raises:
        MaskfoldError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = folds if "group" in folds.columns else folds.assign(group=folds["id"])
    text = table[["id", "fold", "group"]].to_csv(index=False, lineterminator="\n")
    beside = temporary(path)
    try:
        with room(path, len(text)), beside.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_folds(path: str | Path) -> pandas.DataFrame:
    """Reads what `write_folds` wrote.

    Returns:
        Columns id (str), fold (int) and group (str; the id where the file has no such column), in the file's order.

    Raises:
        MaskfoldError: the file is missing or broken, or a row is.
    """
    import pandas

    lines = _lines(Path(path))
    return pandas.DataFrame(lines, columns=["line", "id", "fold", "group"]).drop(columns="line")


def _lines(path: Path) -> list[tuple[int, str, int, str]]:
    """(line in the file, id, fold, group) of each row."""
    table = read_csv(path, {"the column `id` in that file": "id", "the column `fold` in that file": "fold"})
    groups = table["group"] if "group" in table.columns else table["id"]
    first: dict[str, int] = {}
    lines = []
    for line, case_id, fold, group in zip(table.index, table["id"], table["fold"], groups, strict=True):
        if not case_id or case_id in first:
            what = f"the id {case_id} again, after line {first[case_id]}" if case_id else "no id"
            raise MaskfoldError(f"{path}, line {line} has {what}.", "Keep one row for each case.", status=2)
        first[case_id] = line
        if not fold.lstrip("-").isdecimal() or int(fold) < -2:
            raise MaskfoldError(f"{path}, line {line} puts the id {case_id} into fold `{fold}`.",
                                "Folds are 0, 1, …; -1 is only trained on and -2 is held out.", status=2)
        lines.append((int(line), case_id, int(fold), group))
    return lines


def fold_file(path: Path, ids: list[str]) -> list[int]:
    """The fold of each case by a file that has each case exactly once.

    Raises:
        MaskfoldError: a case is missing or unknown, or the folds leave nothing to train on or to validate (status 2).
    """
    lines = _lines(path)
    fold_of = {case_id: fold for _, case_id, fold, _ in lines}
    missing = [case_id for case_id in ids if case_id not in fold_of]
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if missing:
        raise MaskfoldError(f"{path} has no row for the case {missing[0]}{more}.", "Add a row for every case.", status=2)
    known = set(ids)
    for line, case_id, _, _ in lines:
        if case_id not in known:
            near = nearest(case_id, ids)
            hint = f"; nearest is {near[0]}" if near else ""
            raise MaskfoldError(f"{path}, line {line} names the id {case_id}, which is no case{hint}.",
                                "Correct or remove the row.", status=2)
    numbers = set(fold_of.values())
    validated = sorted(number for number in numbers if number >= 0)
    if validated != list(range(len(validated))) or not validated:
        raise MaskfoldError(f"{path} has the folds {', '.join(map(str, sorted(numbers)))}.",
                            "Number the validated folds 0, 1, … without a gap.", status=2)
    if validated == [0] and -1 not in numbers:
        raise MaskfoldError(f"{path} has every case in fold 0, so nothing is left to train on.",
                            "Add a second fold, or put the training cases into fold -1.", status=2)
    return [fold_of[case_id] for case_id in ids]
