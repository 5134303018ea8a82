"""Whether the host's grader will take a file: its rows, its ids, and every mask decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from competition.config.errors import MaskfoldError
from competition.rle import RleError
from competition.submission.profiles import Profile
from competition.submission.read import Key, Names, Row, Sample, objects_of, open_rows, read_sample, said

SHOWN = 20  # problems that are kept; a file that is wrong in one way is often wrong in every row
_NOT_A_TEXT = {"nan", "none", "null", "<na>"}  # what a careless table library writes for an empty cell


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a file.

    Attributes:
        path: the file.
        rows: rows below the header. empty: those of them without a mask.
        problems: one sentence each, with the line; none when the file is good. At most `SHOWN` are kept.
    """

    path: Path
    rows: int
    empty: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the file is good."""
        return not self.problems

    def check(self) -> None:
        """Raises:
        MaskfoldError: the file is not good.
        """
        if self.problems:
            rest = len(self.problems) - 1
            more = f" ({rest} more problem{' follows' if rest == 1 else 's follow'})" if rest else ""
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
        if len(self.problems) < SHOWN:
            self.problems.append(problem)


def validate_submission(
    path: str | Path, profile: Profile, sample: str | Path | Sample | None, shapes: Mapping[str, tuple[int, ...]]
) -> Verdict:
    """Checks a file against the sample, and its masks against the images.

    Checked are the header, the ids (none missing, extra or doubled) and their order; that each text is sorted,
    positive and within the image; that objects do not overlap where the host forbids it; that an empty mask is the
    host's token and never `nan`; height and width where there are such columns.

    Args:
        path: the file.
        profile: what it should look like.
        sample: the host's sample; None: rows and their order are not checked.
        shapes: shape of each case's mask by its id, see `read.read_submission`.

    Returns:
        The verdict; nothing is raised about what the file holds.

    Raises:
        MaskfoldError: the sample cannot be used.
    """
    path = Path(path)
    if sample is not None and not isinstance(sample, Sample):
        sample = read_sample(sample, profile)
    findings = _Findings([])
    try:
        layout, rows = open_rows(path, sample.profile if sample is not None else profile)
        if sample is not None and layout.columns != sample.profile.columns:
            findings.add(
                f"The columns are {','.join(layout.columns)}, those of the sample {','.join(sample.profile.columns)}."
            )
        keys = _check_rows(rows, layout, Names(shapes), shapes, findings)
        if sample is not None:
            _check_keys(keys, sample, findings)
    except MaskfoldError as error:  # a file that cannot be read to its end is a bad file, not a failed check
        findings.add(error.wrong)
    return Verdict(path, findings.rows, findings.empty, tuple(findings.problems))


def _check_rows(
    rows: Iterator[Row], layout: Profile, names: Names, shapes: Mapping[str, tuple[int, ...]], findings: _Findings
) -> list[Key]:
    """Checks the texts; returns the keys in order, one for each group of rows of one object each."""
    keys: list[Key] = []
    seen: set[Key] = set()
    for key, group in groupby(rows, key=lambda row: row.key):
        case_id = names.get(key[0])
        shape = None if case_id is None else layout.grid or tuple(shapes[case_id])
        taken = None if shape is None or layout.overlap_allowed else np.zeros(shape, np.bool_)
        empties = []
        for number, row in enumerate(group):
            findings.rows += 1
            if key in seen and (number == 0 or layout.rows != "object"):
                findings.add(f"Line {row.line}: {said(key)} is there a second time.")
            seen.add(key)
            if case_id is None:
                findings.add(f"Line {row.line}: {said(key)} has no image.")
            if row.text.strip() == layout.rle.empty.strip():
                findings.empty += 1
                empties.append(row.line)
            _check_row(row, layout, shape, taken, findings)
        if empties and number:
            findings.add(f"Line {empties[0]}: {said(key)} has an empty row beside other rows.")
        keys.append(key)
    return keys


def _check_row(
    row: Row, layout: Profile, shape: tuple[int, ...] | None, taken: np.ndarray | None, findings: _Findings
) -> None:
    place = f"Line {row.line}, {said(row.key)}"
    if layout.classed and row.key[1] not in layout.classes:
        findings.add(f"{place}: the class is not one of {', '.join(layout.classes)}.")
    if row.text.strip() == "" and layout.rle.empty != "":
        findings.add(f"{place}: an empty mask is written `{layout.rle.empty}` and not as nothing.")
        return
    if row.text.strip().lower() in _NOT_A_TEXT:
        findings.add(
            f"{place}: the mask is the word `{row.text.strip()}`; an empty mask is "
            f"{f'`{layout.rle.empty}`' if layout.rle.empty else 'an empty cell'}."
        )
        return
    if shape is None:
        return
    for column, size in zip(layout.extra, shape, strict=False):
        if row.cells[column] != str(size):
            findings.add(f"{place}: {column} is {row.cells[column]}, the image's is {size}.")
    try:
        objects = objects_of(row.text, shape, layout)
    except RleError as error:
        findings.add(f"{place}: {error.wrong}")
        return
    if not objects and row.text.strip() != layout.rle.empty.strip():
        findings.add(
            f"{place}: a mask without pixels must be "
            f"{f'`{layout.rle.empty}`' if layout.rle.empty else 'an empty cell'}."
        )
    if taken is not None:
        for one in objects:
            shared = int(np.count_nonzero(taken & one))
            if shared:
                findings.add(f"{place}: the object shares {shared} pixels with another of this image.")
            taken |= one


def _check_keys(keys: list[Key], sample: Sample, findings: _Findings) -> None:
    """Nothing missing, nothing extra, and the sample's order."""
    wanted, there = set(sample.keys), set(keys)
    for key in sample.keys:
        if key not in there:
            findings.add(f"A row for {said(key)} is missing.")
    extra = [key for key in dict.fromkeys(keys) if key not in wanted]
    for key in extra:
        findings.add(f"A row for {said(key)} is not in the sample.")
    kept = list(dict.fromkeys(key for key in keys if key in wanted))
    expected = [key for key in sample.keys if key in there]
    for have, want in zip(kept, expected, strict=True):
        if have != want:
            findings.add(f"The rows are not in the sample's order: {said(have)} stands where {said(want)} should.")
            return
