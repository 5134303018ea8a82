"""Read and write files with folds: nnU-Net's `splits_final.json`, and CSV files with the columns id and fold."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from competition.data.splits import HELD_OUT, read_folds
from competition.errors import MaskfoldError
from competition.io import atomic_write
from competition.records import damaged_error

SPLIT_FORMS = ("nnunet", "csv")
DEFAULT_NAMES = {"nnunet": "splits_final.json", "csv": "folds.csv"}


def read_splits(path: Path) -> dict[str, int | None]:
    """Read from a file which fold validates each case.

    Args:
        path: a CSV with the columns id and fold; or a JSON list with one entry per fold. An entry has lists of case
            ids under the keys `train` and `val`, as in nnU-Net's `splits_final.json`.

    Returns:
        The number of the fold by case id; None for a case that no fold or several folds validate.

    Raises:
        MaskfoldError: the file is missing or damaged, or a fold trains on a case that it validates.
    """
    if path.suffix.lower() != ".json":
        table = read_folds(path)
        return {case: int(fold) if fold >= 0 else None for case, fold in zip(table["id"], table["fold"], strict=True)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        folds = [([str(case) for case in fold["train"]], [str(case) for case in fold["val"]]) for fold in content]
    except FileNotFoundError:
        raise MaskfoldError(f"{path} does not exist.", "Give an existing file with --splits.", status=2) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        hint = (
            'The file must be a JSON list with one entry {"train": [ids], "val": [ids]} per fold, as nnU-Net writes it.'
        )
        raise damaged_error(path, error, hint) from error
    fold_of: dict[str, int | None] = {}
    for number, (train, val) in enumerate(folds):
        if both := sorted(set(train) & set(val)):
            raise MaskfoldError(
                f"{path}: fold {number} both trains on the case {both[0]} and validates it.",
                "Correct the file, so that each case either trains or validates in a fold.",
                status=2,
            )
        for case in train:
            fold_of.setdefault(case, None)
    validated: set[str] = set()
    for number, (_, val) in enumerate(folds):
        for case in val:
            fold_of[case] = None if case in validated else number
            validated.add(case)
    return fold_of


def format_splits(fold_of: Mapping[str, int], form: Literal["nnunet", "csv"]) -> str:
    """Return the content of a file with folds.

    Args:
        fold_of: number of the fold by case id, in the order of the file. All folds train on cases with the number -1.
            Cases with the number -2 (the held-out test share) are not part of nnU-Net's file.
        form: `nnunet` for the format of `splits_final.json`; `csv` for a CSV with the columns id and fold.
    """
    if form == "csv":
        stream = io.StringIO()
        import csv

        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("id", "fold"), *fold_of.items()])
        return stream.getvalue()
    used = {case: fold for case, fold in fold_of.items() if fold != HELD_OUT}
    numbers = sorted({fold for fold in used.values() if fold >= 0})
    folds = [
        {
            "train": sorted(case for case, fold in used.items() if fold != number),
            "val": sorted(case for case, fold in used.items() if fold == number),
        }
        for number in numbers
    ]
    return json.dumps(folds, indent=4, ensure_ascii=False) + "\n"


def write_splits(fold_of: Mapping[str, int], form: Literal["nnunet", "csv"], path: Path) -> None:
    """Write a file with folds; an existing file is replaced. See `format_splits` for the arguments.

    Raises:
        MaskfoldError: the path is a folder, or has the wrong extension (status 2).
    """
    suffix = Path(DEFAULT_NAMES[form]).suffix
    if path.is_dir() or path.suffix.lower() != suffix:
        found = f"the folder {path}" if path.is_dir() else str(path)
        raise MaskfoldError(
            f"--output: found {found}, expected a file name that ends in {suffix} (--to {form}).",
            f"Give the name of a file, for example -o {DEFAULT_NAMES[form]}.",
            status=2,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: file.write(format_splits(fold_of, form).encode()))


def check_form(form: str) -> Literal["nnunet", "csv"]:
    """Check the value of the command-line option `--to`, and return it.

    Raises:
        MaskfoldError: the format is unknown (status 2).
    """
    if form not in SPLIT_FORMS:
        raise MaskfoldError(
            f"--to: found {form}, expected {' or '.join(SPLIT_FORMS)}.", "Use --to nnunet or --to csv.", status=2
        )
    return "nnunet" if form == "nnunet" else "csv"


def case_order(fold_of: Mapping[str, int], ids: Sequence[str]) -> dict[str, int]:
    """Return the fold of each case by id, in the order of `ids`; cases without a fold are left out."""
    return {case: int(fold_of[case]) for case in ids if case in fold_of}
