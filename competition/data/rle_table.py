"""Which rows of a table of run lengths belong to which case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config.competition import Columns, Competition
from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.csv_table import read_csv
from competition.data.profiles import Profile, profile_of
from competition.data.readers import stem
from competition.data.rle_order import probe_table, refuse_order
from competition.data.skipped import Skipped
from competition.data.sources import Case, slice_names
from competition.rle import RleFormat

Row = list[Any]  # line in the file, class, index of the slice or None
Place = tuple[str, int | None]  # id, index of the slice or None


@dataclass(frozen=True)
class Layout:
    """Which column of `train.rle` says what.

    Attributes:
        id, mask, cls: the columns; cls None: no column says of which class a mask is.
        joined: the id's cell also holds the class: `name.jpg_Fish`.
    """

    id: str
    mask: str
    cls: str | None
    joined: bool

    @property
    def columns(self) -> list[str]:
        """The columns that must be there."""
        return [column for column in (self.id, self.cls, self.mask) if column is not None]


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
        MaskfoldError: the table lacks a column, no id matches, a row's id has no image, its class is unknown, or the
            run lengths clearly go the other way than the YAML or its profile says (see `rle_order`).
    """
    path, table, layout = _opened(comp)
    if layout.cls is None and not layout.joined and len(comp.classes) > 1:
        raise MaskfoldError(f"{path} holds masks of {len(comp.classes)} classes, and no column says of which.",
                            "Set train.columns.class in the competition's YAML.", status=2)
    names, classes = _keys(comp, path, table, layout)
    texts = table[layout.mask]
    if comp.submission.profile is not None:
        texts = texts.str.strip()  # SIIM-ACR's cells begin with a space, as its header does
    places = _places(cases)
    found = {name: places.get(name) or places.get(stem(name)) for name in dict.fromkeys(names)}
    strangers = [(line, name) for line, name in zip(table.index, names, strict=True)
                 if found[name] is None and name not in skipped.reasons]
    if strangers and not any(found.values()):
        raise MaskfoldError(f"No id of {path} has an image: the table says {strangers[0][1]}, "
                            f"the images {next(iter(cases))}.", "Correct train.columns.id or train.images.", status=2)
    if comp.train.cases is None:  # else rows of other images are nobody's concern
        _refuse_strangers(path, strangers, list(cases), skipped)
    empty = {"", rle_format(comp).empty}
    rows: dict[str, list[Row]] = {case_id: [] for case_id in cases}
    for line, name, cls, text in zip(table.index, names, classes, texts, strict=True):
        place = found[name]
        if place is not None and text not in empty:
            rows[place[0]].append([int(line), _class_name(comp, path, line, cls), place[1]])
    _refuse_wrong_order(comp, cases, rows, texts, path)
    return rows


def row_text(comp: Competition, line: int) -> str:
    """The run lengths in one line of `train.rle`."""
    _, table, layout = _opened(comp)
    return str(table.at[line, layout.mask])


def rle_format(comp: Competition) -> RleFormat:
    """How the run lengths of `train.rle` are written: as `train.rle_format` says, else the profile, else
    `submission.rle`."""
    profile = _profile(comp)
    if comp.train.rle_format is None and profile is not None:
        return profile.rle
    rle = comp.train.rle_format or comp.submission.rle
    return RleFormat(order=rle.order, base=rle.base, relative=rle.relative, empty=rle.empty)


def rle_grid(comp: Competition) -> tuple[int, int] | None:
    """(H, W) on which the masks of `train.rle` are written; None: the image's own."""
    profile = _profile(comp)
    return None if profile is None else profile.train.grid


def rows_are_parts(comp: Competition) -> bool:
    """Whether rows of one image and class are parts of one mask, not an object each."""
    profile = _profile(comp)
    return profile is not None and profile.train.several_rows


def _profile(comp: Competition) -> Profile | None:
    """The known competition that the YAML names, if any."""
    return None if comp.submission.profile is None else profile_of(comp)


def _opened(comp: Competition) -> tuple[Path, Any, Layout]:
    """The path of `train.rle`, its content as a pandas table, and its layout.

    The columns that the YAML says win. Else the profile's: a host's training table often has another header than the
    submission, and hosts changed some in mid-competition, so that the table's own header decides between them.

    Raises:
        MaskfoldError: a column is missing (status 2).
    """
    path, said, profile = Path(comp.root) / str(comp.train.rle), comp.train.columns, _profile(comp)
    if profile is None or said != Columns():
        wanted = {"train.columns.id": said.id, "train.columns.mask": said.mask}
        if said.cls is not None:
            wanted["train.columns.class"] = said.cls
        joined = said.cls is None and profile is not None and any(one.joined for one in _both(profile))
        return path, read_csv(path, wanted), Layout(said.id, said.mask, said.cls, joined)
    table = read_csv(path, {})
    layouts = _layouts(profile)
    plain = Layout(said.id, said.mask, said.cls, any(one.joined for one in _both(profile)))
    for layout in (*layouts, plain):
        if set(layout.columns) <= set(table.columns):
            return path, table, layout
    raise MaskfoldError(
        f"{path} has the columns {_quoted(table.columns)}, but submission.profile {profile.name} looks for "
        f"{', or '.join(_quoted(layout.columns) for layout in layouts)}.",
        "Name the table's own in train.columns (id, class, mask), or correct train.rle or submission.profile.",
        status=2)


def _both(profile: Profile) -> list[Profile]:
    return [profile] if profile.other is None else [profile, profile.other]


def _layouts(profile: Profile) -> list[Layout]:
    """The layouts a profile's training table may have: its own, and the submission's."""
    found = []
    for one in _both(profile):
        cls = one.train.class_column or one.class_column
        found.append(Layout(one.train.id_column or one.id_column, one.train.mask_column or one.mask_column, cls,
                            one.classed and cls is None))
        found.append(Layout(one.id_column, one.mask_column, one.class_column, one.joined))
    return list(dict.fromkeys(found))


def _quoted(columns: Iterable[Any]) -> str:
    """With quotes, as a space may be part of a name."""
    return ", ".join(f"`{column}`" for column in columns)


def _keys(comp: Competition, path: Path, table: Any, layout: Layout) -> tuple[list[str], list[str]]:
    """The name of the image (or slice), and the class as it is written, of each row."""
    names = table[layout.id].tolist()
    if layout.cls is not None:
        return names, table[layout.cls].tolist()
    if not layout.joined:
        return names, [comp.classes[0]] * len(names)
    parts = [name.rpartition("_") for name in names]
    for line, name, (image, _, _) in zip(table.index, names, parts, strict=True):
        if not image:
            raise MaskfoldError(f"{path}, line {line}: the id {name} does not end in a class, as in "
                                f"`{name}_{comp.classes[0]}`.", "Correct the row, or set train.columns.class.")
    return [image for image, _, _ in parts], [cls for _, _, cls in parts]


def _refuse_wrong_order(comp: Competition, cases: dict[str, Case], rows: dict[str, list[Row]], texts: Any,
                        path: Path) -> None:
    fmt, key = rle_format(comp), "train.rle_format"
    if comp.train.rle_format is None:
        key = "submission.rle" if comp.submission.profile is None else f"submission.profile {comp.submission.profile}"
    refuse_order(probe_table(comp, cases, rows, texts, fmt, rle_grid(comp)), fmt, path, key)


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
