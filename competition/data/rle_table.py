"""Which rows of a table of run lengths belong to which case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.csv_table import read_csv
from competition.data.readers import stem
from competition.data.rle_order import probe_table, refuse_order
from competition.data.skipped import Skipped
from competition.data.sources import Case, slice_names
from competition.rle import RleFormat

Row = list[Any]  # line in the file, class, index of the slice or None
Place = tuple[str, int | None]  # id, index of the slice or None


def find_rows(comp: Competition, cases: dict[str, Case], skipped: Skipped) -> dict[str, list[Row]]:
    """Divides the rows of `train.rle` among the cases.

    A table may write ids with or without the file's extension. For a stack it may also name slices, see
    `sources.slice_names`. A case without a row has an empty mask.

    Args:
        comp: what the host gave.
        cases: the first channel's files, by id.
        skipped: takes rows of unknown ids.

    Returns:
        By id, [line, class, slice] of each row that is not empty.

    Raises:
        MaskfoldError: no id matches, a row's id has no image, its class is unknown, or the run lengths clearly go the
            other way than the YAML says (see `rle_order`).
    """
    path, columns = Path(comp.root) / str(comp.train.rle), comp.train.columns
    wanted = {"train.columns.id": columns.id, "train.columns.mask": columns.mask}
    if columns.cls is not None:
        wanted["train.columns.class"] = columns.cls
    elif len(comp.classes) > 1:
        raise MaskfoldError(f"{path} holds masks of {len(comp.classes)} classes, and no column says of which.",
                            "Set train.columns.class in the competition's YAML.", status=2)
    table = read_csv(path, wanted)
    places = _places(cases)
    names = table[columns.id]
    found = {name: places.get(name) or places.get(stem(name)) for name in names.unique()}
    strangers = [(line, name) for line, name in names.items() if found[name] is None and name not in skipped.reasons]
    if strangers and not any(found.values()):
        raise MaskfoldError(f"No id of {path} has an image: the table says {strangers[0][1]}, "
                            f"the images {next(iter(cases))}.", "Correct train.columns.id or train.images.", status=2)
    _refuse_strangers(path, strangers, list(cases), skipped)
    empty = {"", (comp.train.rle_format or comp.submission.rle).empty}
    classes = table[columns.cls] if columns.cls is not None else [comp.classes[0]] * len(table)
    rows: dict[str, list[Row]] = {case_id: [] for case_id in cases}
    for line, name, cls, text in zip(table.index, names, classes, table[columns.mask], strict=True):
        place = found[name]
        if place is not None and text not in empty:
            rows[place[0]].append([int(line), _class_name(comp, path, line, cls), place[1]])
    _refuse_wrong_order(comp, cases, rows, table[columns.mask], path)
    return rows


def row_text(comp: Competition, line: int) -> str:
    """The run lengths in one line of `train.rle`."""
    table = read_csv(Path(comp.root) / str(comp.train.rle), {})
    return str(table.at[line, comp.train.columns.mask])


def _refuse_wrong_order(comp: Competition, cases: dict[str, Case], rows: dict[str, list[Row]], texts: Any,
                        path: Path) -> None:
    rle = comp.train.rle_format or comp.submission.rle
    fmt = RleFormat(order=rle.order, base=rle.base, relative=rle.relative, empty=rle.empty)
    key = "submission.rle" if comp.train.rle_format is None else "train.rle_format"
    refuse_order(probe_table(comp, cases, rows, texts, fmt), fmt, path, key)


def _places(cases: dict[str, Case]) -> dict[str, Place]:
    """What each name that a table may use stands for; names that could mean two slices are left out."""
    loose: dict[str, Place | None] = {}
    for case_id, case in cases.items():
        names: list[tuple[str, int | None]] = [(stem(case_id), None)]
        for index, one in enumerate(case.slices):
            names += [(name, index) for name in slice_names(case_id, one)]
        for name, number in names:
            place = (case_id, number)
            loose[name] = place if loose.setdefault(name, place) == place else None
    exact: dict[str, Place] = {case_id: (case_id, None) for case_id in cases}
    return {name: place for name, place in loose.items() if place is not None} | exact


def _refuse_strangers(path: Path, strangers: list[tuple[Any, str]], ids: list[str], skipped: Skipped) -> None:
    more = f" (and {len(strangers) - 1} more rows)" if len(strangers) > 1 and not skipped.allowed else ""
    for line, name in strangers:
        near = nearest(name, ids)
        hint = f"; nearest is {near[0]}" if near else ""
        skipped.add(name, MaskfoldError(
            f"{path}, line {line}: the id {name} has no image{hint}{more}.",
            "Add the image, remove the row, or leave such rows out with competition.on_bad_case=skip."))


def _class_name(comp: Competition, path: Path, line: Any, text: str) -> str:
    """The class that a cell means: its name, or else its label value."""
    if text in comp.classes:
        return text
    values = [str(value) for value in comp.values]
    if text in values:
        return comp.classes[values.index(text)]
    near = nearest(text, comp.classes)
    raise MaskfoldError(f"{path}, line {line}: the class `{text}` is not one of {', '.join(comp.classes)}.",
                        f"Correct the row, or competition.classes{f'; nearest is {near[0]}' if near else ''}.")
