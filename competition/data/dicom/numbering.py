"""The value of each segment in the masks: one number per label, over all cases and all conversions into one folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from competition.config.errors import MaskfoldError
from competition.data.dicom.table import read_table, write_table

COLUMNS = ["value", "label"]
MOST = 255  # masks are uint8


class Numbering:
    """Labels and their values, kept in segments.csv; a label once numbered keeps its value.

    Args:
        path: the table; where it exists its values stand, also those a person wrote there.

    Raises:
        MaskfoldError: the table is broken, or gives a value twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.labels: dict[int, str] = {}
        for row in read_table(path, COLUMNS):
            value = int(row["value"]) if row["value"].isdigit() else 0
            if not 0 < value <= MOST or value in self.labels or _key(row["label"]) in self._known():
                raise MaskfoldError(f"{path} has a wrong row: value {row['value']}, label {row['label']}.",
                                    f"Give each label one value of its own from 1 to {MOST}, or delete the table.")
            self.labels[value] = row["label"]

    def _known(self) -> dict[str, int]:
        return {_key(label): value for value, label in self.labels.items()}

    def add(self, segments: Iterable[tuple[int, str]]) -> None:
        """Numbers the labels that have none yet.

        Args:
            segments: (segment number, label) of all files: new labels are numbered in the order of their lowest segment
                number, then of the alphabet, so that the order of files does not matter.

        Raises:
            MaskfoldError: there are more than 255.
        """
        lowest: dict[str, tuple[int, str]] = {}
        for number, label in sorted(segments):
            lowest.setdefault(_key(label), (number, label))
        for key, (_, label) in sorted(lowest.items(), key=lambda item: (item[1][0], item[0])):
            if key in self._known():
                continue
            value = max(self.labels, default=0) + 1
            if value > MOST:
                raise MaskfoldError(f"The segmentations have more than {MOST} different labels.",
                                    "Convert those with the same labels together, each kind into a folder of its own.")
            self.labels[value] = label

    def keep(self, values: Iterable[int]) -> None:
        """Lists values of a label series, which stand for themselves."""
        for value in values:
            self.labels.setdefault(value, f"value {value}")

    def value(self, label: str) -> int:
        """The value of a label that was added."""
        return self._known()[_key(label)]

    def save(self) -> None:
        """Writes the table, where there is something to write."""
        if self.labels:
            write_table(self._path, COLUMNS, [{"value": str(value), "label": self.labels[value]}
                                              for value in sorted(self.labels)])


def _key(label: str) -> str:
    """Spleen, spleen and ` spleen ` are one label."""
    return " ".join(label.casefold().split())
