"""Check that the host's grader will accept a file: its rows, its ids, and every decoded mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from competition.config.profiles import Profile
from competition.errors import MaskfoldError
from competition.rle import RleError
from competition.submission.reader import (
    CsvRow,
    IdLookup,
    RowKey,
    SampleSubmission,
    decode_objects,
    format_key,
    open_rows,
    read_sample,
)

MAX_PROBLEMS = 20  # maximum number of stored problems, because one mistake often affects every row
_MISSING_VALUES = {"nan", "none", "null", "<na>"}  # texts that table libraries may write for an empty cell


@dataclass(frozen=True)
class ValidationReport:
    """The problems of a file.

    Attributes:
        path: the file.
        rows: number of rows below the header.
        empty: number of rows without a mask.
        problems: one sentence per problem, with the line; empty if the file is valid. At most `MAX_PROBLEMS` are
            stored.
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
            MaskfoldError: the first problem.
        """
        if self.problems:
            rest = len(self.problems) - 1
            more = f" ({rest} more problem{'s' * (rest > 1)})" if rest else ""
            raise MaskfoldError(
                f"{self.path.name}: {self.problems[0].rstrip('.')}{more}.",
                "Write the file with `maskfold submit`, or correct these rows.",
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
    """Check a file against the sample, and its masks against the images.

    The function checks the header, the ids (missing, extra or duplicate) and their order, and height and width if there
    are such columns. It also checks that each text is sorted, positive and within the image, that objects do not
    overlap if the host forbids it, and that an empty mask is the host's token and never `nan`.

    Args:
        path: the file.
        profile: the file format.
        sample: the host's sample; None: rows and their order are not checked.
        shapes: shape of each case's mask by its id, see `reader.read_submission`.

    Returns:
        The report, which lists the problems of the file.

    Raises:
        MaskfoldError: the sample is invalid.
    """
    path = Path(path)
    if sample is not None and not isinstance(sample, SampleSubmission):
        sample = read_sample(sample, profile)
    findings = _Findings([])
    try:
        layout, rows = open_rows(path, sample.profile if sample is not None else profile)
        if sample is not None and layout.columns != sample.profile.columns:
            findings.add(
                f"Columns: found {','.join(layout.columns)}, expected {','.join(sample.profile.columns)} as in the "
                "sample."
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
    """Check the texts, and return the keys in order; consecutive rows with the objects of one image give one key."""
    keys: list[RowKey] = []
    seen: set[RowKey] = set()
    for key, group in groupby(rows, key=lambda row: row.key):
        case_id = names.get(key[0])
        shape = None if case_id is None else layout.grid or tuple(shapes[case_id])
        occupied = None if shape is None or layout.overlap_allowed else np.zeros(shape, np.bool_)
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
            _check_row(row, layout, shape, occupied, findings)
        if empty_lines and number:
            findings.add(f"Line {empty_lines[0]}: {format_key(key)} has an empty row in addition to other rows.")
        keys.append(key)
    return keys


def _check_row(
    row: CsvRow, layout: Profile, shape: tuple[int, ...] | None, occupied: np.ndarray | None, findings: _Findings
) -> None:
    location = f"Line {row.line}, {format_key(row.key)}"
    empty = f"`{layout.rle.empty}`" if layout.rle.empty else "an empty cell"
    if layout.rows_have_class and row.key[1] not in layout.classes:
        findings.add(f"{location}: unknown class, expected one of {', '.join(layout.classes)}.")
    if row.text.strip() == "" and layout.rle.empty != "":
        findings.add(f"{location}, empty mask: found an empty cell, expected {empty}.")
        return
    if row.text.strip().lower() in _MISSING_VALUES:
        findings.add(f"{location}, empty mask: found `{row.text.strip()}`, expected {empty}.")
        return
    if shape is None:
        return
    for column, size in zip(layout.extra_columns, shape, strict=False):
        if row.cells[column] != str(size):
            findings.add(f"{location}, {column}: found {row.cells[column]}, expected {size} as in the image.")
    try:
        objects = decode_objects(row.text, shape, layout)
    except RleError as error:
        findings.add(f"{location}: {error.message}")
        return
    if not objects and row.text.strip() != layout.rle.empty.strip():
        findings.add(f"{location}, empty mask: found a text without pixels, expected {empty}.")
    if occupied is not None:
        for mask in objects:
            shared = int(np.count_nonzero(occupied & mask))
            if shared:
                findings.add(f"{location}: the object shares {shared} pixels with another object of this image.")
            occupied |= mask


def _check_keys(keys: list[RowKey], sample: SampleSubmission, findings: _Findings) -> None:
    """Check that no row is missing or extra, and that the rows have the order of the sample."""
    required, present = set(sample.keys), set(keys)
    for key in sample.keys:
        if key not in present:
            findings.add(f"A row for {format_key(key)} is missing.")
    for key in dict.fromkeys(keys):
        if key not in required:
            findings.add(f"The row for {format_key(key)} is not in the sample.")
    order = dict.fromkeys(key for key in keys if key in required)
    sample_order = [key for key in sample.keys if key in present]
    for key, sample_key in zip(order, sample_order, strict=True):
        if key != sample_key:
            findings.add(
                f"The rows are not in the sample's order: found {format_key(key)}, expected {format_key(sample_key)}."
            )
            return
