"""Read tables of run lengths (`train.rle`): find the format, the columns, and the case or slice of each row."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from competition.config.axes import rle_counts_in_pictures
from competition.config.competition import Competition, RleConfig, TableColumns
from competition.config.profiles import Profile, profile_of, split_class
from competition.data.patterns import CaseFiles, SliceFile, slice_aliases
from competition.data.readers import get_column, strip_extension
from competition.data.rle.order import check_order, detect_order
from competition.data.selection import SkippedCases
from competition.errors import MaskfoldError
from competition.rle_text import RleFormat
from competition.tables import read_csv
from competition.text import nearest_hint, same_problem

RleRow = list[Any]  # line in the file, class, index of the slice or None
RowTarget = tuple[str, int | None]  # id, index of the slice or None


@dataclass(frozen=True)
class RleTableColumns:
    """Hold the names of the columns of `train.rle` that contain id, mask and class.

    Attributes:
        id, mask, cls: names of the columns; `cls` is None if no column contains the class of a mask.
        class_in_id: whether the id cell also contains the class: `name.jpg_Fish`.
    """

    id: str
    mask: str
    cls: str | None
    class_in_id: bool

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the table must have."""
        return [column for column in (self.id, self.cls, self.mask) if column is not None]


def assign_rows(comp: Competition, cases: dict[str, CaseFiles], skipped: SkippedCases) -> dict[str, list[RleRow]]:
    """Assign the rows of `train.rle` to the cases.

    Ids in the table may include the file's extension. If a case is a stack of slices, an id may also name one slice,
    see `slice_aliases`. A case without a row has an empty mask.

    Args:
        comp: the competition.
        cases: the first channel's files, by id.
        skipped: receives the rows with unknown ids if `on_bad_case` is `skip`.

    Returns:
        For each id, [line, class, slice] of each row that is not empty: the line number in the table, the name of the
        class, and the index of the slice (None if the row does not name one).

    Raises:
        MaskfoldError: the table lacks a column; no id matches, or an id is unknown and may not be skipped; a class is
            unknown; or the data clearly contradict the order of run lengths in the YAML or profile (see
            `competition.data.rle.order`).
    """
    if not cases:  # all cases are skipped
        return {}
    path, table, layout = _open_table(comp)
    if layout.cls is None and not layout.class_in_id and len(comp.classes) > 1:
        raise MaskfoldError(
            f"{path} has no column for the class, but competition.classes has {len(comp.classes)} classes.",
            "Set train.columns.class in the competition's YAML.",
            status=2,
        )
    names, classes = _names_and_classes(comp, path, table, layout)
    texts, empty = _mask_texts(comp, table, layout), _empty_texts(comp)
    targets = targets_by_name(cases)
    target_of = {name: _find_target(name, targets) for name in dict.fromkeys(names)}
    unknown = [
        (line, name)
        for line, name in zip(table.index, names, strict=True)
        if target_of[name] is None and name not in skipped.reasons
    ]
    if unknown and not any(target_of.values()):
        raise MaskfoldError(
            f"None of the ids in {path} has an image: the table has ids such as {unknown[0][1]}, and the images "
            f"have ids such as {next(iter(cases))}.",
            "Change train.columns.id or train.images.",
            status=2,
        )
    _skip_images_of_misspelt_rows(path, unknown, target_of, list(cases), skipped)
    if not comp.train.selects_cases:  # with a selection, the table may have rows of other images, which are ignored
        _skip_rows_without_image(path, unknown, list(cases), skipped)
    rows: dict[str, list[RleRow]] = {case_id: [] for case_id in cases}
    for line, name, cls, text in zip(table.index, names, classes, texts, strict=True):
        target = target_of[name]
        if target is not None and text not in empty:
            rows[target[0]].append([int(line), _class_name(comp, path, line, cls), target[1]])
    _check_order(comp, cases, rows, texts, path)
    return rows


def table_id_suffix(comp: Competition) -> str:
    """Return the text, such as `.jpg`, that all ids of `train.rle` have after the image's name.

    Return an empty text if the ids have no such text, or if it differs between the ids.

    Raises:
        MaskfoldError: the table cannot be read, or lacks a column.
    """
    path, table, layout = _open_table(comp)
    names, _ = _names_and_classes(comp, path, table, layout)
    suffixes = {name[len(strip_extension(name)) :] for name in dict.fromkeys(names)}
    return suffixes.pop() if len(suffixes) == 1 else ""


def find_blank_rows(comp: Competition, cases: dict[str, CaseFiles]) -> dict[str, list[int]]:
    """Find the rows without a mask whose image (or slice) also has rows with a mask; return line numbers by case id.

    If no row of an image has a mask, the image has no objects, and its rows are not returned.

    Args:
        comp: the competition, whose table `assign_rows` accepts.
        cases: the first channel's files, by id.
    """
    path, table, layout = _open_table(comp)
    names, _ = _names_and_classes(comp, path, table, layout)
    targets, empty = targets_by_name(cases), _empty_texts(comp)
    lines: dict[RowTarget, list[int]] = {}
    filled: set[RowTarget] = set()
    for line, name, text in zip(table.index, names, _mask_texts(comp, table, layout), strict=True):
        target = _find_target(name, targets)
        if target is not None and text in empty:
            lines.setdefault(target, []).append(int(line))
        elif target is not None:
            filled.add(target)
    found: dict[str, list[int]] = {}
    for target in filled & lines.keys():
        found.setdefault(target[0], []).extend(lines[target])
    return {case_id: sorted(found[case_id]) for case_id in cases if case_id in found}


def row_texts(comp: Competition, lines: Sequence[int]) -> list[str]:
    """Return the run lengths in the given lines of `train.rle`.

    The file is checked for changes once per call, not for each line.

    Raises:
        KeyError: the table has no row in one of these lines, because it is shorter or the line is blank.
    """
    global _last_texts
    if not lines:
        return []
    _, table, layout = _open_table(comp)
    if _last_texts is None or _last_texts[0] is not table or _last_texts[1] != layout.mask:
        _last_texts = table, layout.mask, dict(zip(table.index.tolist(), table[layout.mask].tolist(), strict=True))
    texts = _last_texts[2]
    return [texts[line] for line in lines]


def current_rows(comp: Competition, row: Any) -> list[RleRow]:
    """Read the table `train.rle` again, and return the rows of one case.

    The caller compares these rows with the case table.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        [line, class, slice] of each non-empty row of this case in `train.rle`, in the table's order.

    Raises:
        MaskfoldError: the table cannot be read, or the class of a row is unknown.
    """
    path, table, layout = _open_table(comp)
    names, classes, texts, positions = _index_rows(comp, path, table, layout)
    case_id = str(get_column(row, "id"))
    files = next(iter(json.loads(get_column(row, "images")).values()))
    numbers = json.loads(get_column(row, "slices")) or []
    slices = [SliceFile(z, file) for z, file in zip(numbers, files, strict=True)] if numbers else []
    targets = targets_by_name({case_id: CaseFiles([] if numbers else [files], slices)})
    empty, found = _empty_texts(comp), []
    for position in sorted({position for name in targets for position in positions.get(name, ())}):
        target = _find_target(names[position], targets)
        if target is not None and texts[position] not in empty:
            line = int(table.index[position])
            found.append([line, _class_name(comp, path, line, classes[position]), target[1]])
    return found


def _mask_texts(comp: Competition, table: Any, layout: RleTableColumns) -> Any:
    """Return the column of run lengths.

    If the YAML names a profile, spaces around each cell are removed, because the tables of SIIM-ACR have such spaces.
    """
    texts = table[layout.mask]
    return texts if comp.submission.profile is None else texts.str.strip()


def _empty_texts(comp: Competition) -> set[str]:
    """Return the texts that mean an empty mask."""
    return {"", rle_format(comp).empty}


_last_texts: tuple[Any, str, dict[int, str]] | None = None  # texts by line of the last table
_RowIndex = tuple[list[str], list[str], list[str], dict[str, list[int]]]
_last_index: tuple[Any, Competition, _RowIndex] | None = None  # index of the table that was used last


def _index_rows(comp: Competition, path: Path, table: Any, layout: RleTableColumns) -> _RowIndex:
    """Return the image name, class and run lengths of each row, and an index of the rows.

    The index maps each spelling of a row's image or slice name to the positions of the rows with this name. The result
    is cached for the table that was used last.
    """
    global _last_index
    if _last_index is None or _last_index[0] is not table or _last_index[1] is not comp:
        names, classes = _names_and_classes(comp, path, table, layout)
        positions: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            for text in set(_spellings(name)):
                positions.setdefault(text, []).append(position)
        _last_index = table, comp, (names, classes, _mask_texts(comp, table, layout).tolist(), positions)
    return _last_index[2]


def rle_format(comp: Competition) -> RleFormat:
    """Return the run-length format of the table `train.rle`.

    The format is `train.rle_format` if the YAML sets this key, otherwise the profile's format. Without a profile, it
    is `submission.rle`.
    """
    profile = _profile(comp)
    if comp.train.rle_format is None and profile is not None:
        return profile.rle
    rle = comp.train.rle_format or comp.submission.rle
    return RleFormat(order=rle.order, base=rle.base, relative=rle.relative, empty=rle.empty)


def keep_table_format(comp: Competition, trained: Competition) -> Competition:
    """Return `comp` with the run-length format in which `trained` reads the training table.

    Without `train.rle_format`, a training table is read in the format of the submission. A later change of
    `submission` must not change how a run reads its training table. If the user has changed `train.rle_format` itself,
    `comp` is returned unchanged.

    Args:
        comp: the competition.
        trained: the competition that a run was trained with.
    """
    fmt = rle_format(trained)
    # these settings exist only in profiles
    if comp.train.rle is None or rle_format(comp) == fmt or fmt.container != "pairs":
        return comp
    if comp.train.rle_format != trained.train.rle_format:  # the user has set the format of the table
        return comp
    table_format = RleConfig(order=fmt.order, base=fmt.base, relative=fmt.relative, empty=fmt.empty)
    return comp.model_copy(update={"train": comp.train.model_copy(update={"rle_format": table_format})})


def rle_grid(comp: Competition) -> tuple[int, int] | None:
    """Return the size (H, W) of the masks in `train.rle`; None if each mask has the size of its image."""
    profile = _profile(comp)
    return None if profile is None else profile.train.grid


def rows_are_parts(comp: Competition) -> bool:
    """Return whether the rows of one image and class are parts of one mask; otherwise each row is an object."""
    profile = _profile(comp)
    return profile is not None and profile.train.rows_are_parts


def _profile(comp: Competition) -> Profile | None:
    """Return the profile that the YAML names; None if the YAML names no profile."""
    return None if comp.submission.profile is None else profile_of(comp)


def _open_table(comp: Competition) -> tuple[Path, Any, RleTableColumns]:
    """Return the path of `train.rle`, its content as a pandas table, and the columns with id, mask and class.

    Column names in the YAML take precedence over column names in the profile. A profile may contain several sets of
    column names, because the columns of the training table often differ from those of the submission, and some hosts
    changed them during the competition. The first set that the table has is used.

    Raises:
        MaskfoldError: a column is missing (exit status 2).
    """
    path, columns, profile = Path(comp.root) / str(comp.train.rle), comp.train.columns, _profile(comp)
    class_in_id = profile is not None and any(variant.class_in_id for variant in _variants(profile))
    if profile is None or columns != TableColumns():
        required = {"train.columns.id": columns.id, "train.columns.mask": columns.mask}
        if columns.cls is not None:
            required["train.columns.class"] = columns.cls
        table = read_csv(path, required)
        class_in_id = class_in_id or (profile is None and _ids_end_in_classes(comp, table[columns.id]))
        return path, table, RleTableColumns(columns.id, columns.mask, columns.cls, columns.cls is None and class_in_id)
    table = read_csv(path, {})
    layouts = _layouts(profile)
    default = RleTableColumns(columns.id, columns.mask, columns.cls, class_in_id)
    for layout in (*layouts, default):
        if set(layout.columns) <= set(table.columns):
            return path, table, layout
    raise MaskfoldError(
        f"{path} does not have the columns of submission.profile {profile.name}: found ({_quoted(table.columns)}), "
        f"expected {' or '.join(f'({_quoted(layout.columns)})' for layout in layouts)}.",
        "Set train.columns (id, class, mask) to the columns of the table, or correct train.rle or submission.profile.",
        status=2,
    )


def _ids_end_in_classes(comp: Competition, ids: Any) -> bool:
    """Return whether each of the first 20 ids of a table ends in the name of a class, as in `name.jpg_Fish`.

    With only one class, the result is False.
    """
    first = ids.head(20).tolist()
    return (
        len(comp.classes) > 1
        and bool(first)
        and {split_class(text, comp.classes)[1] for text in first} <= set(comp.classes)
    )


def _variants(profile: Profile) -> list[Profile]:
    return [profile] if profile.alternative is None else [profile, profile.alternative]


def _layouts(profile: Profile) -> list[RleTableColumns]:
    """Return the sets of columns that a profile's training table may have.

    Each variant of the profile has two sets: the columns of its training table (`train`), and those of its submission.
    """
    layouts = []
    for variant in _variants(profile):
        train = variant.train
        cls = train.class_column or variant.class_column
        layouts.append(
            RleTableColumns(
                train.id_column or variant.id_column,
                train.mask_column or variant.mask_column,
                cls,
                variant.rows_have_class and cls is None,
            )
        )
        layouts.append(
            RleTableColumns(variant.id_column, variant.mask_column, variant.class_column, variant.class_in_id)
        )
    return list(dict.fromkeys(layouts))


def _quoted(columns: Iterable[Any]) -> str:
    """Join names with quotes, because a space may be part of a name."""
    return ", ".join(f"`{column}`" for column in columns)


def _names_and_classes(
    comp: Competition, path: Path, table: Any, layout: RleTableColumns
) -> tuple[list[str], list[str]]:
    """Return for each row the name of the image (or slice) and the class, both as written in the table."""
    names = table[layout.id].tolist()
    if layout.cls is not None:
        return names, table[layout.cls].tolist()
    if not layout.class_in_id:
        return names, [comp.classes[0]] * len(names)
    parts = [split_class(name, comp.classes) for name in names]
    for line, name, (image, _) in zip(table.index, names, parts, strict=True):
        if not image:
            raise MaskfoldError(
                f"{path}, line {line}: the id contains no class: found {name}, expected for example "
                f"`{name}_{comp.classes[0]}`.",
                "Correct the row, or name the class column with train.columns.class.",
            )
    return [image for image, _ in parts], [cls for _, cls in parts]


def _check_order(
    comp: Competition, cases: dict[str, CaseFiles], rows: dict[str, list[RleRow]], texts: Any, path: Path
) -> None:
    fmt, key = rle_format(comp), "train.rle_format"
    if comp.train.rle_format is None:
        key = "submission.rle" if comp.submission.profile is None else f"submission.profile {comp.submission.profile}"
    vote = detect_order(comp, cases, rows, texts, fmt, rle_grid(comp))
    if vote.order is not None and rle_counts_in_pictures(comp):  # the vote was counted on arrays (X, Y)
        vote = replace(vote, order="row" if vote.order == "column" else "column")
    check_order(vote, fmt, path, key)


def targets_by_name(cases: dict[str, CaseFiles]) -> dict[str, RowTarget]:
    """Return the case or slice for each name that a table may use; ambiguous names are omitted."""
    by_name: dict[str, RowTarget | None] = {}
    for case_id, case in cases.items():
        names: list[tuple[str, int | None]] = [(strip_extension(case_id), None)]
        for index, item in enumerate(case.slices):
            names += [(name, index) for name in slice_aliases(case_id, item)]
        for name, number in names:
            target = (case_id, number)
            by_name[name] = target if by_name.setdefault(name, target) == target else None
    exact: dict[str, RowTarget] = {case_id: (case_id, None) for case_id in cases}
    targets = {name: target for name, target in by_name.items() if target is not None} | exact
    return {unicodedata.normalize("NFC", name): target for name, target in targets.items()} | targets


def _find_target(name: str, targets: dict[str, RowTarget]) -> RowTarget | None:
    """Return the case or slice of a name. Names match in any Unicode form, because macOS writes accents differently."""
    return next((targets[text] for text in _spellings(name) if text in targets), None)


def _spellings(name: str) -> tuple[str, ...]:
    composed = unicodedata.normalize("NFC", name)
    return name, strip_extension(name), composed, strip_extension(composed)


def _skip_images_of_misspelt_rows(
    path: Path,
    unknown: list[tuple[Any, str]],
    target_of: dict[str, RowTarget | None],
    ids: list[str],
    skipped: SkippedCases,
) -> None:
    """Skip images whose only row has a misspelt id.

    Otherwise such an image would have no row, and its mask would be taken as empty.
    """
    if not skipped.allowed:
        return
    with_row = {target[0] for target in target_of.values() if target is not None}
    by_spelling: dict[str, list[str]] = {}
    for case_id in ids:
        by_spelling.setdefault(_spelling(case_id), []).append(case_id)
    for line, name in unknown:
        for case_id in by_spelling.get(_spelling(name), []):
            if case_id not in with_row:
                skipped.add(
                    case_id,
                    MaskfoldError(
                        f"{path}, line {line}: the id {name} has no image. The image {case_id}, whose id differs only "
                        "in spelling, has no row.",
                        "Correct the id in the table.",
                    ),
                )


def _spelling(name: str) -> str:
    """Return a simplified form of a name, for comparing spellings.

    The form is Unicode-normalised (NFKC) and case-folded, without extension, punctuation and leading zeros of numbers.
    """
    plain = unicodedata.normalize("NFKC", strip_extension(name)).casefold()
    return re.sub(r"0*([0-9]+)", r"\1", re.sub(r"[\W_]+", "", plain))


def _skip_rows_without_image(path: Path, unknown: list[tuple[Any, str]], ids: list[str], skipped: SkippedCases) -> None:
    more = "" if skipped.allowed else same_problem(len(unknown) - 1, "row")
    for line, name in unknown:
        skipped.add(
            name,
            MaskfoldError(
                f"{path}, line {line}: the id {name} has no image{nearest_hint(name, ids)}.{more}",
                "Add the image, remove the row, or skip such rows with competition.on_bad_case=skip.",
            ),
        )


def _class_name(comp: Competition, path: Path, line: Any, text: str) -> str:
    """Return the class that a cell of the table names, by the class's name or its label value."""
    if text in comp.classes:
        return text
    values = [str(value) for value in comp.output_label_values]
    if text in values:
        return comp.classes[values.index(text)]
    raise MaskfoldError(
        f"{path}, line {line}: unknown class: found `{text}`, expected one of {', '.join(comp.classes)}"
        f"{nearest_hint(text, comp.classes)}.",
        "Correct the row, or change competition.classes.",
    )
