"""Check that the host's grader will accept a submission file: its columns, rows, ids and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from competition.config.profiles import Profile
from competition.errors import MaskfoldError
from competition.rle import runs_overlap
from competition.rle_text import RleError
from competition.submission.reader import (
    CsvRow,
    IdLookup,
    RowKey,
    Runs,
    SampleSubmission,
    decode_object_runs,
    format_key,
    open_rows,
    read_sample,
)
from competition.text import format_count

MAX_PROBLEMS = 20  # maximum number of stored problems, because one mistake often affects every row
_MISSING_VALUES = {"nan", "none", "null", "<na>"}  # texts that table libraries may write for an empty cell


@dataclass(frozen=True)
class ValidationReport:
    """Hold the result of the validation of a submission file.

    Attributes:
        path: path of the file.
        rows: number of rows, without the header.
        empty: number of rows with the text for an empty mask.
        problems: one sentence for each problem, at most `MAX_PROBLEMS`. If a problem is in one line of the file, the
            sentence contains the number of this line. Empty if the file is valid.
    """

    path: Path
    rows: int
    empty: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the file is valid."""
        return not self.problems

    def raise_if_invalid(self) -> None:
        """Raise an error if the file is invalid.

        Raises:
            MaskfoldError: the file is invalid; the message states the first problem.
        """
        if self.problems:
            rest = len(self.problems) - 1
            more = f" The file has {format_count(rest, 'more problem')}." if rest else ""
            raise MaskfoldError(
                f"{self.path.name}: {self.problems[0].rstrip('.')}.{more}",
                f"Write {self.path.name} with `maskfold submit`, or correct the file.",
            )


@dataclass
class _Findings:
    problems: list[str]
    rows: int = 0
    empty: int = 0

    def add(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def validate_submission(
    path: str | Path,
    profile: Profile,
    sample: str | Path | SampleSubmission | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> ValidationReport:
    """Check a submission file: its rows against the host's sample submission, and its masks against the images.

    The following is checked:

    - the header, and the ids and their order: no id may be missing, unknown or a duplicate;
    - height and width, if the file has such columns;
    - the runs of each mask: they must be sorted by their starts, have positive lengths, and lie within the image;
    - objects: they must not overlap if the host forbids it;
    - empty masks: they must be written as the host's text for an empty mask, and not as `nan` or similar texts.

    Args:
        path: path of the file.
        profile: the file format.
        sample: the host's sample submission, or its path. If it is None, the ids and their order are not compared.
        shapes: shape of the masks of each case, by id; see `competition.submission.reader.read_submission`.

    Returns:
        The report with the problems of the file.

    Raises:
        MaskfoldError: the sample submission is invalid. Problems of the file itself raise no error; they are in the
            report.
    """
    path = Path(path)
    if sample is not None and not isinstance(sample, SampleSubmission):
        sample = read_sample(sample, profile)
    findings = _Findings([])
    try:
        layout, rows = open_rows(path, sample.profile if sample is not None else profile)
        if sample is not None and layout.columns != sample.profile.columns:
            findings.add(
                f"The file has the columns {','.join(layout.columns)}, expected "
                f"{','.join(sample.profile.columns)} as in the sample submission."
            )
        keys = _check_rows(rows, layout, IdLookup(shapes), shapes, findings)
        if sample is not None:
            _check_keys(keys, sample, findings)
    except MaskfoldError as error:  # an unreadable file is reported as a problem of the file
        findings.add(error.message)
    return ValidationReport(path, findings.rows, findings.empty, tuple(findings.problems))


def _check_rows(
    rows: Iterator[CsvRow], layout: Profile, names: IdLookup, shapes: Mapping[str, tuple[int, ...]], findings: _Findings
) -> list[RowKey]:
    """Check all rows one by one, and return their keys, (image, class), in order.

    If consecutive rows have the same key, they contain the objects of one image, and the key is returned once.

    Args:
        rows: the rows of the file.
        layout: format of the file.
        names: lookup of the id of a case by its name in the file.
        shapes: shape of the masks of each case, by id.
        findings: object that collects problems and counts rows.

    Raises:
        MaskfoldError: a line cannot be read, or has too many or too few cells. Other problems are added to `findings`.
    """
    keys: list[RowKey] = []
    seen: set[RowKey] = set()
    for key, iterator in groupby(rows, key=lambda row: row.key):
        group, error = _take(iterator)
        case_id = names.get(key[0])
        shape = None if case_id is None else layout.grid or tuple(shapes[case_id])
        decoded = [_decode_row(row, layout, shape) for row in group]
        shared = [] if shape is None or layout.overlap_allowed else _shared_pixels(decoded, math.prod(shape))
        empty_lines = []
        for number, row in enumerate(group):
            findings.rows += 1
            if key in seen and (number == 0 or layout.rows != "object"):
                findings.add(f"Line {row.line}: {format_key(key)} is a duplicate.")
            seen.add(key)
            if case_id is None:
                findings.add(f"Line {row.line}: {format_key(key)} has no image.")
            if row.text.strip() == layout.rle.empty.strip():
                findings.empty += 1
                empty_lines.append(row.line)
            _check_row(row, layout, shape, decoded[number], findings)
            for count in shared[number] if shared else ():
                findings.add(
                    f"Line {row.line}, {format_key(row.key)}: the object shares {format_count(count, 'pixel')} with "
                    "another object of this image."
                )
        if error is not None:
            raise error
        if empty_lines and number:
            findings.add(
                f"Line {empty_lines[0]}: {format_key(key)} has a row with an empty mask in addition to other rows."
            )
        keys.append(key)
    return keys


def _take(rows: Iterator[CsvRow]) -> tuple[list[CsvRow], MaskfoldError | None]:
    """Read the rows of one image; stop at the first line that cannot be read.

    Returns:
        The rows that were read; and the error for the line that cannot be read, or None if all lines can be read.
    """
    taken: list[CsvRow] = []
    try:
        for row in rows:
            taken.append(row)
    except MaskfoldError as error:
        return taken, error
    return taken, None


Decoded = list[Runs] | RleError | None


def _decode_row(row: CsvRow, layout: Profile, shape: tuple[int, ...] | None) -> Decoded:
    """Decode the mask of a row.

    Args:
        row: the row.
        layout: format of the file.
        shape: shape of the mask; None if there is no image with the id of the row.

    Returns:
        The objects in the row as run lengths, or the error of decoding. None if `shape` is None, or if the text stands
        for an empty mask, but not in the form that the host requires.
    """
    if shape is None or _empty_problem(row.text, layout) is not None:
        return None
    try:
        return decode_object_runs(row.text, shape, layout)
    except RleError as error:
        return error


def _empty_problem(text: str, layout: Profile) -> str | None:
    """Return a description of a text that means an empty mask, but is not written as the host requires.

    For every other text, return None.
    """
    text = text.strip()
    if text == layout.rle.empty.strip():
        return None
    if text == "":
        return "an empty cell"
    return f"`{text}`" if text.lower() in _MISSING_VALUES else None


def _shared_pixels(decoded: list[Decoded], size: int) -> list[list[int]]:
    """Count the pixels that each object of an image shares with earlier objects.

    Args:
        decoded: results of `_decode_row` for the rows of the image.
        size: number of pixels of the image.

    Returns:
        One list for each row. An object that overlaps earlier objects of the image adds one number to the list of its
        row: the number of shared pixels. If no objects of the image overlap, the result is an empty list.
    """
    objects = [[] if row is None or isinstance(row, RleError) else row for row in decoded]
    if not runs_overlap([runs for row in objects for runs in row]):
        return []
    occupied, shared = np.zeros(size, np.bool_), []
    for row in objects:
        counts = []
        for starts, ends in row:
            pairs = list(zip(starts.tolist(), ends.tolist(), strict=True))
            counts.append(sum(int(np.count_nonzero(occupied[start:end])) for start, end in pairs))
            for start, end in pairs:
                occupied[start:end] = True
        shared.append([count for count in counts if count])
    return shared


def _check_row(
    row: CsvRow, layout: Profile, shape: tuple[int, ...] | None, decoded: Decoded, findings: _Findings
) -> None:
    """Check the class, the mask and the size columns of one row.

    Args:
        row: the row.
        layout: format of the file.
        shape: shape of the mask; None if there is no image with the id of the row.
        decoded: result of `_decode_row` for the row.
        findings: object that collects problems.
    """
    if layout.rows_have_class and row.key[1] not in layout.classes:
        findings.add(f"{_location(row)}: found an unknown class, expected one of {', '.join(layout.classes)}.")
    if (found := _empty_problem(row.text, layout)) is not None:
        findings.add(f"{_location(row)}: an empty mask is written as {found}, expected {_empty_token(layout)}.")
        return
    if shape is None:
        return
    for column, size in zip(layout.extra_columns, shape, strict=False):
        if row.cells[column] != str(size):
            findings.add(f"{_location(row)}, {column}: found {row.cells[column]}, expected {size} as in the image.")
    if isinstance(decoded, RleError):
        findings.add(f"{_location(row)}: {decoded.message}")
    elif not decoded and row.text.strip() != layout.rle.empty.strip():
        findings.add(
            f"{_location(row)}: an empty mask is written as run lengths without pixels, "
            f"expected {_empty_token(layout)}."
        )


def _location(row: CsvRow) -> str:
    return f"Line {row.line}, {format_key(row.key)}"


def _empty_token(layout: Profile) -> str:
    return f"`{layout.rle.empty}`" if layout.rle.empty else "an empty cell"


def _check_keys(keys: list[RowKey], sample: SampleSubmission, findings: _Findings) -> None:
    """Check that the file has exactly the rows of the sample submission, in the same order.

    Args:
        keys: keys of the rows in the file.
        sample: the host's sample submission.
        findings: object that collects problems.
    """
    required, present = set(sample.keys), set(keys)
    for key in sample.keys:
        if key not in present:
            findings.add(f"A row for {format_key(key)} is missing.")
    for key in dict.fromkeys(keys):
        if key not in required:
            findings.add(f"The row for {format_key(key)} is not in the sample submission.")
    order = dict.fromkeys(key for key in keys if key in required)
    sample_order = [key for key in sample.keys if key in present]
    for key, sample_key in zip(order, sample_order, strict=True):
        if key != sample_key:
            findings.add(
                f"The order of the rows differs from the sample submission: found {format_key(key)}, expected "
                f"{format_key(sample_key)}."
            )
            return
