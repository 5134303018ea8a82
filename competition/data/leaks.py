"""The check that no group and no image is on both sides of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from competition.config.errors import MaskfoldError
from competition.data.duplicates import duplicates

if TYPE_CHECKING:
    import pandas


def check_leaks(table: pandas.DataFrame, folds: pandas.DataFrame) -> None:
    """Refuses folds in which a model is validated on what it was trained on.

    Args:
        table: the case table.
        folds: columns id and fold.

    Raises:
        MaskfoldError: a group, or one image under two ids, is in two folds (status 2).
    """
    fold = {str(case_id): int(number) for case_id, number in zip(folds["id"], folds["fold"], strict=True)}
    first: dict[str, str] = {}
    for case_id, group in zip(table["id"], table["group"], strict=True):
        other = first.setdefault(str(group), str(case_id))
        if fold[other] != fold[case_id]:
            raise _leak(f"The group {group} is", other, case_id, fold)
    for ids in duplicates(table):
        for case_id in ids[1:]:
            if fold[case_id] != fold[ids[0]]:
                raise _leak("One image is, under two ids,", ids[0], case_id, fold)


def _leak(what: str, one: str, other: str, fold: dict[str, int]) -> MaskfoldError:
    return MaskfoldError(f"{what} in fold {fold[one]} (case {one}) and in fold {fold[other]} (case {other}).",
                         "Put both cases into one fold.", status=2)
