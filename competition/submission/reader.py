"""Read CSV files in the host's format: the sample submission, a submission, and a solution (the labels of test cases).

- `open_rows` yields the rows of a file.
- `read_submission` yields the masks of a file in the order of its rows.
- `MaskFile` reads all rows, and returns the masks of any case.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.profiles import Profile
from competition.data.masks import CaseObjects, HiddenPixels, find_covered
from competition.data.patterns import SliceFile, slice_aliases
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.metrics.scoring import Mask
from competition.rle import RleError, decode, decode_runs, draw_objects, parse_json_lists, runs_overlap
from competition.text import and_more, format_count, nearest_hint

if TYPE_CHECKING:
    import pandas as pd


BoolMask = NDArray[np.bool_]
Runs = tuple[NDArray[np.int64], NDArray[np.int64]]  # starts and ends of run lengths, see `rle.decode_runs`
RowKey = tuple[str, str | None]  # name of the image as the file writes it, and class (None if rows have no class)
CaseSlice = tuple[str, int | None]  # id of the case, and index of a slice (None for the whole case)
SliceClass = tuple[int | None, str | None]  # index of a slice (None for the whole case), and class (None without one)

# Rows and the host's sample


class CsvRow(NamedTuple):
    """Hold one row of a file.

    Attributes:
        line: number of the line; the header is line 1.
        key: name of the image, and class.
        text: text of the mask.
        cells: all cells of the row, by name of the column.
    """

    line: int
    key: RowKey
    text: str
    cells: dict[str, str]


@dataclass(frozen=True)
class SampleSubmission:
    """Hold the host's sample submission: the required rows and their order.

    Attributes:
        path: path of the file.
        profile: the file format, with the columns of the sample.
        keys: (image, class) of each row, in order, without duplicates.
    """

    path: Path
    profile: Profile
    keys: tuple[RowKey, ...]

    def check_ids(self, cases: Iterable[str]) -> None:
        """Check that the sample and the test images (or slices) belong together.

        Args:
            cases: ids of the test images or slices.

        Raises:
            MaskfoldError: an id of the sample has no image, or an image has no row in the sample.
        """
        names = IdLookup(cases)
        case_ids = {key[0]: names.get(key[0]) for key in self.keys}
        for name, case_id in case_ids.items():
            if case_id is None:
                raise MaskfoldError(
                    f"{self.path} requires the id {name}, but no test image has this "
                    f"id{nearest_hint(name, names.ids)}.",
                    "Change test.images or submission.sample, or add the image.",
                )
        missing = sorted(set(names.ids) - set(case_ids.values()))
        if missing:
            more = and_more(len(missing), 1, "image")
            raise MaskfoldError(
                f"{self.path} has no row for the test image {missing[0]}{more}.",
                "Change test.images, or use the sample that belongs to these images.",
            )


@dataclass
class IdLookup:
    """Find the id of a case by a name from a CSV file; either of them may have the extension of an image file.

    Args:
        cases: ids of the cases.
    """

    cases: Iterable[str]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = list(self.cases)
        self._exact = set(self.ids)
        self._by_stem: dict[str, str | None] = {}  # id by name without extension; None if two ids have the same name
        for name in self.ids:
            self._by_stem[strip_extension(name)] = (
                name if self._by_stem.setdefault(strip_extension(name), name) == name else None
            )

    def get(self, name: str) -> str | None:
        """Return the id of the case with this name; None if there is no such case, or if several match."""
        return name if name in self._exact else self._by_stem.get(strip_extension(name))


class SubmissionRow(NamedTuple):
    """Hold the masks of one case, or of one class of a case, in a submission.

    Attributes:
        case_id: id of the case.
        class_name: name of the class; None if the rows of the file have no class.
        objects: one bool mask for each object, or a single mask if the file has no objects. Empty for an empty mask.
        shape: shape of the masks.
    """

    case_id: str
    class_name: str | None
    objects: list[BoolMask]
    shape: tuple[int, ...]

    @property
    def mask(self) -> BoolMask:
        """The union of all masks in `objects`, a bool array with the shape `shape`."""
        union = np.zeros(self.shape, np.bool_)
        for mask in self.objects:
            union |= mask
        return union


def open_rows(path: Path, profile: Profile) -> tuple[Profile, Iterator[CsvRow]]:
    """Open a CSV file in the host's format, and return its format and an iterator over its rows.

    The cells of the rows are texts, exactly as in the file.

    Args:
        path: path of the file.
        profile: the expected format.

    Returns:
        The format, which is `profile` or its alternative, with the columns of the file; and the iterator.

    Raises:
        MaskfoldError: the file is missing, its header differs from the profile's, or a row has too many or too few
            cells.
    """
    if not path.is_file():
        raise MaskfoldError(f"The file {path} does not exist.", "Correct the path of the file.", status=2)
    csv.field_size_limit(sys.maxsize)  # the text of a large mask is longer than the default limit
    cells = _cells(path)
    _, header = next(cells, (1, []))
    if not header:
        raise MaskfoldError(f"{path} is empty.", "Download the file from the host again, or write it again.", status=2)
    layout = profile.match_header(header, path)
    return layout, _rows(path, layout, cells)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except (csv.Error, UnicodeError) as error:
        raise MaskfoldError(
            f"Cannot read {path} as a CSV ({error}).",
            "Write the file as a CSV in UTF-8, with commas and one header line.",
        ) from error


def _rows(path: Path, layout: Profile, lines: Iterator[tuple[int, list[str]]]) -> Iterator[CsvRow]:
    for line, cells in lines:
        if len(cells) != len(layout.columns):
            raise MaskfoldError(
                f"{path}, line {line}: found {len(cells)} cells, expected {len(layout.columns)}.",
                "Write one cell per column. Put cells that contain a comma into quotes.",
            )
        named = dict(zip(layout.columns, cells, strict=True))
        image, cls = layout.split_id(named[layout.id_column])
        cls = named[layout.class_column] if layout.class_column is not None else cls
        yield CsvRow(line, (image, cls), named[layout.mask_column], named)


def read_sample(path: str | Path, profile: Profile) -> SampleSubmission:
    """Read the host's sample submission: the required rows, in their order.

    Raises:
        MaskfoldError: the file is missing or empty, its header differs from the profile's, a row is a duplicate, or a
            class is not in the profile.
    """
    path = Path(path)
    layout, rows = open_rows(path, profile)
    seen: dict[RowKey, int] = {}
    for row in rows:
        if row.key in seen:
            raise MaskfoldError(
                f"{path}, line {row.line}: {format_key(row.key)} is a duplicate of line {seen[row.key]}.",
                "Remove one of the two rows. If this is the host's sample, download it again.",
            )
        if layout.rows_have_class and row.key[1] not in layout.classes:
            raise MaskfoldError(
                f"{path}, line {row.line}: found the class `{row.key[1]}`, expected one of "
                f"{', '.join(layout.classes)}.",
                "Change competition.classes or the sample.",
            )
        seen[row.key] = row.line
    if not seen:
        raise MaskfoldError(f"The sample {path} has no rows.", "Download the host's sample again.", status=2)
    return SampleSubmission(path, layout, tuple(seen))


def read_submission(
    path: str | Path, profile: Profile, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[SubmissionRow]:
    """Read the masks of a file, one case (and class) at a time.

    Args:
        path: a CSV in the profile's format. If each row contains one object, the rows of an image must follow each
            other.
        profile: the file format.
        shapes: shape of the masks of each case, by id. The names in the file may have the extension of an image file.
            If the profile has a grid of its own, all masks have the shape of this grid.

    Yields:
        One `SubmissionRow` for each image and class, in the order of the file.

    Raises:
        MaskfoldError: the file does not have the profile's format, an id has no shape, or a text is not a mask of that
            shape; the message names the line.
    """
    path = Path(path)
    names = IdLookup(shapes)
    layout, rows = open_rows(path, profile)
    done: set[RowKey] = set()
    for key, group in groupby(rows, key=lambda row: row.key):
        case_id, key_rows = names.get(key[0]), list(group)
        location = f"{path}, line {key_rows[0].line}"
        if case_id is None:
            raise MaskfoldError(f"{location}: the id {key[0]} has no image.", "Correct the row, or add the image.")
        if key in done or (len(key_rows) > 1 and layout.rows != "object"):
            raise MaskfoldError(
                f"{location}: the rows of {format_key(key)} are not consecutive, or one of them is a duplicate.",
                "Sort the file like the sample, and remove duplicate rows.",
            )
        done.add(key)
        shape = layout.grid or tuple(shapes[case_id])
        objects: list[BoolMask] = []
        for row in key_rows:
            try:
                objects += decode_objects(row.text, shape, layout)
            except RleError as error:
                raise MaskfoldError(
                    f"{path}, line {row.line}, {format_key(key)}: {error.message}", error.hint
                ) from error
        yield SubmissionRow(case_id, key[1], objects, shape)


def decode_objects(text: str, shape: tuple[int, ...], profile: Profile) -> list[BoolMask]:
    """Decode the masks in one cell of a file; masks without pixels are left out.

    Args:
        text: content of the cell.
        shape: shape of the masks.
        profile: the file format.

    Raises:
        RleError: the text is not a mask of this shape.
    """
    masks = [decode(part, shape, profile.rle) for part in _split_objects(text, profile)]
    return [mask for mask in masks if mask.any()]


def decode_object_runs(text: str, shape: tuple[int, ...], profile: Profile) -> list[Runs]:
    """Decode the masks in one cell of a file to run lengths (see `rle.decode_runs`), without building arrays.

    Masks without pixels are left out.

    Args:
        text: content of the cell.
        shape: shape of the masks.
        profile: the file format.

    Raises:
        RleError: the text is not a mask of this shape.
    """
    objects = [decode_runs(part, shape, profile.rle) for part in _split_objects(text, profile)]
    return [runs for runs in objects if len(runs[0])]


def _split_objects(text: str, profile: Profile) -> list[str]:
    """Split the content of a cell into the texts of its objects; none if it is the text for an empty mask.

    Raises:
        RleError: the cell does not have the form that the format requires.
    """
    text = text.strip()
    if text == profile.rle.empty.strip():
        return []
    if profile.rle.container == "json":
        parse_json_lists(text)  # this call only validates the text, because its errors name the whole list
        return text.split(";")
    if not profile.confidence:
        return [text]
    tokens = text.split()
    if len(tokens) % 3:
        raise RleError(
            f"Found {len(tokens)} words in a cell, expected three per object (class, confidence and mask).",
            "Write `0 confidence mask` for each object.",
        )
    for number in range(len(tokens) // 3):
        _check_confidence(number + 1, tokens[3 * number], tokens[3 * number + 1])
    return tokens[2::3]


def _check_confidence(number: int, cls: str, confidence: str) -> None:
    try:
        valid = cls == "0" and 0.0 <= float(confidence) <= 1.0
    except ValueError:
        valid = False
    if not valid:
        raise RleError(
            f"Object {number}: found the class and confidence `{cls} {confidence}`, expected 0 and a "
            "confidence from 0 to 1.",
            "Write `0 confidence mask` for each object.",
        )


def format_key(key: RowKey) -> str:
    """Return the key of a row, (image, class), as text for messages."""
    return f"the id {key[0]}" if key[1] is None else f"the id {key[0]} with the class {key[1]}"


def format_row(profile: Profile, key: RowKey, text: str, shape: tuple[int, ...]) -> list[Any]:
    """Return the cells of one row of a submission, in the order of the format's columns.

    Args:
        profile: the file format.
        key: (image, class) of the row.
        text: text of the mask.
        shape: shape of the mask, for columns such as height and width.
    """
    image, cls = key
    cells: dict[str, Any] = dict(zip(profile.extra_columns, shape, strict=False))
    cells[profile.id_column] = f"{image}_{cls}" if profile.class_in_id else image
    if profile.class_column is not None:
        cells[profile.class_column] = cls
    cells[profile.mask_column] = text
    return [cells.get(column, "") for column in profile.columns]


# Masks of a file by case, in any order of rows


@dataclass(frozen=True)
class RowIndex:
    """Find the case, or the slice of a stack, to which a name in a file refers.

    Attributes:
        rows: rows of the case table by id.
        kind: kind of the images (training or test), for messages.
        names: name of each case or slice in messages.
        slices: number of slices of each case, by id; 0 for a case that is a single file.
        exact: (case id, None) by case id. Cases that have one row per slice in the file are left out.
        aliases: (case id, slice) by each spelling of a name that a file may use; None for a spelling that fits more
            than one case or slice.
    """

    rows: dict[str, Any]
    kind: str
    names: dict[CaseSlice, str]
    slices: dict[str, int]
    exact: dict[str, CaseSlice]
    aliases: dict[str, CaseSlice | None]

    @classmethod
    def from_table(cls, table: pd.DataFrame, profile: Profile, kind: str) -> RowIndex:
        """Return the index for the cases of a case table.

        Args:
            table: the case table.
            profile: the file format.
            kind: kind of the images (training or test), for messages.
        """
        index = cls({str(row.id): row for row in table.itertuples(index=False)}, kind, {}, {}, {}, {})
        for case_id, row in index.rows.items():
            texts, paths = json.loads(row.slices) or [], next(iter(json.loads(row.images).values()))
            index.slices[case_id] = len(texts)
            if not texts or profile.rows != "slice_class":
                index.exact[case_id] = (case_id, None)
                index._add((case_id, None), [case_id, strip_extension(case_id)])
            for z, text in enumerate(texts):
                index._add((case_id, z), slice_aliases(case_id, SliceFile(text, paths[z])))
        return index

    def _add(self, case_slice: CaseSlice, names: list[str]) -> None:
        self.names[case_slice] = names[0]
        for name in names:
            self.aliases[name] = case_slice if self.aliases.setdefault(name, case_slice) == case_slice else None

    def get(self, name: str) -> CaseSlice | None:
        """Return the case and slice with this name, which may have an extension; None if unknown or ambiguous."""
        return self.exact.get(name) or self.aliases.get(name) or self.aliases.get(strip_extension(name))


@dataclass(frozen=True)
class MaskFile:
    """Hold the rows of a file by case, slice and class; masks are decoded only when they are needed.

    Attributes:
        path: path of the file.
        layout: format of the file, which is the expected format or its alternative.
        strict: whether the file must follow all rules of the host: True for a submission, False for a file that the
            host has made.
        rows: the rows of each case, by case id and then by (slice, class). There are several rows if each row contains
            one object.
    """

    path: Path
    layout: Profile
    strict: bool
    rows: dict[str, dict[SliceClass, list[CsvRow]]]

    @classmethod
    def read(cls, path: Path, profile: Profile, index: RowIndex, strict: bool) -> MaskFile:
        """Read all rows of a file.

        Args:
            path: path of the file.
            profile: the expected format.
            index: index that finds the case of a row.
            strict: whether the file must follow all rules of the host.

        Raises:
            MaskfoldError: a row has no image, has an unknown class, or is a duplicate; or a class or slice of a case
                is missing.
        """
        layout, rows = open_rows(path, profile)
        file = cls(path, layout, strict, {})
        for row in rows:
            file._add(row, index)
        if not file.rows:
            raise MaskfoldError(f"{path} has no rows.", "Give a file with rows of masks.")
        for case_id in file.rows:
            file._check_complete(case_id, index)
        return file

    def class_mask(self, case_id: str, name: str, shape: tuple[int, ...]) -> tuple[Mask, CaseObjects | None]:
        """Return the mask and the objects of one class of one case.

        Args:
            case_id: id of the case.
            name: name of the class.
            shape: shape of the mask.

        Returns:
            The mask, (*spatial) bool; and the objects, or None if the rows of the file do not define objects.

        Raises:
            MaskfoldError: a text is not a mask of this shape, or objects overlap although the format forbids it.
        """
        rows, cls = self.rows[case_id], name if self.layout.rows_have_class else None
        if (None, cls) in rows:
            return self._union(rows[None, cls], shape)
        volume = np.zeros(shape, np.bool_)
        for z in range(shape[-1]):
            volume[..., z] = self._union(rows[z, cls], shape[:-1])[0]
        return volume, None

    def first_line(self, case_id: str) -> int:
        """Return the number of the first line that belongs to a case."""
        return min(row.line for rows in self.rows[case_id].values() for row in rows)

    def _add(self, row: CsvRow, index: RowIndex) -> None:
        case_slice, (image, cls) = index.get(row.key[0]), row.key
        if case_slice is None:
            raise self._error(
                row,
                f"has no {index.kind} image{nearest_hint(image, index.names.values())}",
                "Correct the row. To score predictions of test cases, add --solution."
                if index.kind == "training"
                else "Correct the row, or test.images.",
            )
        if self.layout.rows_have_class and cls not in self.layout.classes:
            raise self._error(
                row, f"has an unknown class, expected one of {', '.join(self.layout.classes)}", "Correct the row."
            )
        case_id, z = case_slice
        shape = self.layout.grid or json.loads(index.rows[case_id].shape)
        for column, size in zip(self.layout.extra_columns if self.strict else (), shape, strict=False):
            if row.cells[column] != str(size):
                raise self._error(
                    row,
                    f"has {row.cells[column]} as {column}, expected {size}, as in the image",
                    "Write the height and width of the image.",
                )
        rows = self.rows.setdefault(case_id, {}).setdefault((z, cls), [])
        if rows and self.layout.rows != "object":
            raise self._error(row, f"is a duplicate of line {rows[0].line}", "Remove one of the two rows.")
        rows.append(row._replace(cells={}))

    def _check_complete(self, case_id: str, index: RowIndex) -> None:
        """Check that a case has rows for all its slices and classes.

        Raises:
            MaskfoldError: a row is missing, or the case has rows both for the whole volume and for slices.
        """
        slices, line = {z for z, _ in self.rows[case_id]}, self.first_line(case_id)
        if None in slices and len(slices) > 1:
            raise MaskfoldError(
                f"{self.path}, line {line}: the case {case_id} has rows for the whole volume and rows for "
                "single slices, expected only one kind.",
                "Write rows for the whole volume or for its slices, but not both.",
            )
        for z in (None,) if None in slices else range(index.slices[case_id]):
            for cls in self.layout.classes or (None,):
                if (z, cls) not in self.rows[case_id]:
                    raise MaskfoldError(
                        f"{self.path} has no row for {format_key((index.names[case_id, z], cls))}, although the "
                        f"file has rows for the case {case_id}, from line {line} on.",
                        "Write all classes and slices of a case, with an empty mask if nothing is found.",
                    )

    def _union(self, rows: list[CsvRow], shape: tuple[int, ...]) -> tuple[Mask, CaseObjects | None]:
        if self.layout.several_masks and (labels := self._draw(rows, shape)) is not None:
            return labels != 0, CaseObjects(labels)
        mask, number, hidden = np.zeros(shape, np.bool_), 0, list[HiddenPixels]()
        labels = np.zeros(shape, np.int32) if self.layout.several_masks else None
        for row in rows:
            for obj in self._objects(row, shape, only_row=len(rows) == 1):
                shared = np.count_nonzero(mask & obj) if labels is not None else 0
                if shared and self.strict and not self.layout.overlap_allowed:
                    raise self._error(
                        row,
                        f"shares {format_count(int(shared), 'pixel')} with another object of this image",
                        "Assign each pixel to only one object.",
                    )
                mask |= obj
                if labels is not None:
                    if shared:
                        hidden += find_covered(labels, obj)
                    number += 1
                    labels[obj] = number
        return mask, None if labels is None else CaseObjects(labels, tuple(hidden))

    def _draw(self, rows: list[CsvRow], shape: tuple[int, ...]) -> NDArray[np.int32] | None:
        """Return the objects in several rows as a label image, (*spatial) int32 with numbers from 1.

        If a row is empty or invalid, or objects overlap, return None; the caller then uses a slower method.
        """
        try:
            objects = [decode_object_runs(row.text, shape, self.layout) for row in rows]
        except RleError:
            return None
        runs = [one for row in objects for one in row]
        if not all(objects) or runs_overlap(runs):
            return None
        order: Literal["C", "F"] = "F" if self.layout.rle.order == "column" else "C"
        return np.ascontiguousarray(draw_objects(runs, math.prod(shape)).reshape(shape, order=order))

    def _objects(self, row: CsvRow, shape: tuple[int, ...], only_row: bool) -> list[Mask]:
        token = self.layout.rle.empty
        try:
            objects = decode_objects(row.text, shape, self.layout)
        except RleError as error:
            raise MaskfoldError(
                f"{self.path}, line {row.line}, {format_key(row.key)}: {error.message}", error.hint
            ) from error
        if self.strict and not objects and row.text.strip() != token.strip():
            raise self._error(
                row,
                "has a mask without pixels",
                f"Write {f'`{token}`' if token else 'an empty cell'} for an empty mask.",
            )
        if self.strict and not objects and not only_row:
            raise self._error(row, "has an empty row in addition to other rows", "Remove the empty row.")
        return objects

    def _error(self, row: CsvRow, problem: str, hint: str) -> MaskfoldError:
        return MaskfoldError(f"{self.path}, line {row.line}: {format_key(row.key)} {problem}.", hint)


def solution_profile(path: Path, profile: Profile) -> Profile:
    """Return the format of a solution file: the profile, and the file's additional columns, such as Usage.

    If the file does not exist or has other columns than the profile, return the profile unchanged.
    """
    if path.is_file():
        header: tuple[str, ...] = ()
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream, contextlib.suppress(csv.Error):
            header = tuple(next(csv.reader(stream), ()))
        for layout in (profile, profile.alternative):
            if layout is not None and set(layout.columns) <= set(header):
                return replace(layout, columns=header, alternative=None)
    return profile
