"""`train.cases`: the training cases that count, where not all of them shall."""

from __future__ import annotations

from pathlib import Path

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.csv_table import read_csv


def chosen(comp: Competition, ids: list[str]) -> list[str]:
    """The training cases that `train.cases` names; all where it names none.

    Args:
        comp: what the host gave.
        ids: of all cases that have images, sorted.

    Raises:
        MaskfoldError: the table cannot be read, or names a case that has no image (status 2).
    """
    if comp.train.cases is None:
        return ids
    named, source = _named(comp)
    for name in named:
        if name not in ids:
            near = nearest(name, ids)
            raise MaskfoldError(f"{source} names the id {name}, which is no case{f'; nearest is {near[0]}' if near else ''}.",
                                "Correct it, or leave it out.", status=2)
    wanted = set(named)
    return [case_id for case_id in ids if case_id in wanted]


def _named(comp: Competition) -> tuple[list[str], str]:
    """The ids, and where they stand."""
    cases = comp.train.cases
    if not isinstance(cases, str):
        return list(cases or []), "train.cases"
    path = Path(cases)
    if not path.exists() and (Path(comp.root) / path).exists():
        path = Path(comp.root) / path
    table = read_csv(path, {"the column `id` in that table, or train.columns.id": comp.train.columns.id})
    return table[comp.train.columns.id].tolist(), f"train.cases, {path},"
