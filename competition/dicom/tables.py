"""Read and write series.csv, which has one row per series or 2D picture, and other small CSV tables."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from competition.errors import MaskfoldError
from competition.io import make_temporary_path, open_synced
from competition.text import escape_formula

CELL_SEPARATOR = "; "  # separator between files or remarks in one cell


@dataclass
class SeriesRow:
    """Hold the result of converting one series or one 2D picture.

    Attributes:
        id: id of the case; for a label series, id of the labelled case. If the series is no case, the value of
            `patient`.
        patient: cleaned PatientID; see `scan.name_patients`.
        study, series: StudyInstanceUID and SeriesInstanceUID.
        number: SeriesNumber.
        description: SeriesDescription, without private texts.
        modality: Modality, e.g. CT.
        layout: imagesTr or imagesTs.
        slices: number of frames; for a converted series, number of slices of the volume.
        shape: size along X, Y, Z, e.g. 512x512x40.
        spacing: voxel size along X, Y and Z in mm, e.g. 0.7x0.7x5.
        status: converted (an image), label (a mask) or refused.
        reason: reason why the series was refused.
        notes: remarks on the conversion.
        file: path of the written file below the output folder.
        ignored: ignored files with the reasons.
    """

    id: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    number: str = ""
    description: str = ""
    modality: str = ""
    layout: str = ""
    slices: str = ""
    shape: str = ""
    spacing: str = ""
    status: str = "refused"
    reason: str = ""
    notes: str = ""
    file: str = ""
    ignored: str = ""

    @property
    def title(self) -> str:
        """The name of the series for messages."""
        number = f"series …{self.series[-8:]}" if self.series else ""
        if self.number:
            number = f"series {self.number}"
        parts = [part for part in (self.patient, number, self.description) if part]
        return " ".join(parts) or "files of an unknown series"


COLUMNS = [column.name for column in fields(SeriesRow)]


def read_rows(path: Path) -> list[SeriesRow]:
    """Read the rows of earlier conversions; return an empty list if the table does not exist.

    Raises:
        MaskfoldError: the file cannot be read, or lacks a column.
    """
    return [SeriesRow(**row) for row in read_table(path, COLUMNS)]


def write_rows(path: Path, rows: list[SeriesRow]) -> None:
    """Sort the rows, and write the table atomically."""
    rows = sorted(rows, key=lambda row: (row.layout, row.id or "~", row.status, row.series))
    write_table(path, COLUMNS, [asdict(row) for row in rows])


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV as text; return an empty list if the file does not exist.

    Raises:
        MaskfoldError: the file cannot be read, or lacks a column.
    """
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MaskfoldError(
            f"{path} cannot be read ({error}).", "Delete this table, or give another output folder."
        ) from error
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing or any(None in row or None in row.values() for row in rows):
        raise MaskfoldError(
            f"{path} was not written by maskfold dicom: found the columns "
            f"{', '.join(reader.fieldnames or [])}, expected {', '.join(columns)} in every row.",
            "Delete this table, or give another output folder.",
        )
    return [{column: row[column] for column in columns} for row in rows]


def write_table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write a CSV (UTF-8) atomically; a cell that a spreadsheet would execute as a formula becomes text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: escape_formula(cell) for column, cell in row.items()} for row in rows)
    temporary_path = make_temporary_path(path)
    try:
        with open_synced(temporary_path) as stream:
            stream.write(text.getvalue().encode())
        os.replace(temporary_path, path)
    finally:
        temporary_path.unlink(missing_ok=True)
