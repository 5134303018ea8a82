"""series.csv: one row for each series that was found, over all conversions into one folder."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from competition.config.errors import MaskfoldError
from competition.config.names import as_text
from competition.data.files import temporary, whole_file

BETWEEN = "; "  # of several files or remarks in one cell


@dataclass
class Row:
    """What became of a series.

    Attributes:
        id: the case; of a label series the case it labels; of what is neither the patient.
        patient: PatientID, cleaned; see `names.patients`.
        study, series: UIDs.
        number: SeriesNumber.
        layout: imagesTr or imagesTs.
        slices: frames found; of a converted series the slices of the volume.
        shape: 512x512x40, along X, Y, Z.
        spacing: 0.7x0.7x5, mm.
        status: converted (an image), label (a mask) or refused.
        reason: why it was refused.
        notes: remarks on what was converted.
        file: what was written, below the output folder.
        ignored: files that were left out, and why.
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
        """The series in a line for people."""
        number = f"series {self.number}" if self.number else f"series …{self.series[-8:]}" if self.series else ""
        return " ".join(word for word in (self.patient, number, self.description) if word) or "files of no known series"


COLUMNS = [one.name for one in fields(Row)]


def read_rows(path: Path) -> list[Row]:
    """The rows of earlier conversions; none where there is no table.

    Raises:
        MaskfoldError: the file is no such table.
    """
    return [Row(**row) for row in read_table(path, COLUMNS)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes the table whole or not at all, sorted."""
    rows = sorted(rows, key=lambda row: (row.layout, row.id or "~", row.status, row.series))
    write_table(path, COLUMNS, [asdict(row) for row in rows])


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Rows of a CSV as text; none where the file does not exist.

    Raises:
        MaskfoldError: the file cannot be read, or has other columns.
    """
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MaskfoldError(f"{path} cannot be read ({error}).", "Delete it, or name another output folder.") from error
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing or any(None in row or None in row.values() for row in rows):
        raise MaskfoldError(f"{path} is no table of this command: it should have the columns {', '.join(columns)}.",
                            "Delete it, or name another output folder.")
    return [{column: row[column] for column in columns} for row in rows]


def write_table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Writes a CSV (UTF-8) beside its final name, then renames it; a cell that spreadsheets would run becomes text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: as_text(cell) for column, cell in row.items()} for row in rows)
    beside = temporary(path)
    try:
        with whole_file(beside) as stream:
            stream.write(text.getvalue().encode())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
