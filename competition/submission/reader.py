"""Read CSV files in the host's format: the sample submission, a submission, and a solution (the labels of test cases).

- `open_rows` yields the rows of a file.
- `read_submission` yields the masks of a file in the order of its rows.
- `competition.submission.mask_file.MaskFile` reads all rows, and returns the masks of any case.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.profiles import Profile
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.rle import decode, decode_runs
from competition.rle_text import RleError, parse_json_lists
from competition.text import and_more, nearest_hint

BoolMask = NDArray[np.bool_]
Runs = tuple[NDArray[np.int64], NDArray[np.int64]]  # starts and ends of run lengths, see `rle.decode_runs`
RowKey = tuple[str, str | None]  # name of the image as the file writes it, and class (None if rows have no class)


class CsvRow(NamedTuple):
    """Hold one row of a file.

    Attributes:
        line: number of the line; the header is line 1.
        key: (name of the image, name of the class); the class is None if the rows have no class.
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
        profile: the file format, with the columns of the sample submission.
        keys: (image, class) of each row, in order, without duplicates.
    """

    path: Path
    profile: Profile
    keys: tuple[RowKey, ...]

    def check_ids(self, cases: Iterable[str]) -> None:
        """Check that the sample submission has rows for exactly the test images (or slices).

        Args:
            cases: ids of the test images or slices.

        Raises:
            MaskfoldError: an id of the sample submission has no image, or an image has no row in the sample submission.
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
                "Change test.images, or set submission.sample to the sample submission for these test images.",
            )


@dataclass
class IdLookup:
    """Find the id of a case by its name in a CSV file, even if id and name differ in the extension.

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
        objects: one bool mask for each object, or a single mask if the file has no objects. The list is empty for an
            empty mask.
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
        The format, which is `profile` or `profile.alternative`, with the columns of the file; and the iterator.

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
                "Remove one of the two rows. If this is the host's sample submission, download it again.",
            )
        if layout.rows_have_class and row.key[1] not in layout.classes:
            raise MaskfoldError(
                f"{path}, line {row.line}: found the class `{row.key[1]}`, expected one of "
                f"{', '.join(layout.classes)}.",
                "Correct competition.classes, or download the sample submission again.",
            )
        seen[row.key] = row.line
    if not seen:
        raise MaskfoldError(f"The sample submission {path} has no rows.", "Download it from the host again.", status=2)
    return SampleSubmission(path, layout, tuple(seen))


def read_submission(
    path: str | Path, profile: Profile, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[SubmissionRow]:
    """Read the masks of a submission file, one case (and class) at a time.

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
                "Sort the file like the sample submission, and remove duplicate rows.",
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
    """Decode the masks in one cell of a file to starts and ends of runs, as `rle.decode_runs` returns them.

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
    """Split the content of a cell into the texts of its objects; return an empty list for an empty mask.

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
            f"Object {number}: found the class {cls} and the confidence {confidence}, expected the class 0 and a "
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
