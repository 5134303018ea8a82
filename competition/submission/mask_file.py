"""Read all rows of a submission or of a solution (the labels of test cases), and return the masks of any case.

The rows of the file may be in any order. `RowIndex` finds the case to which a row belongs, and `MaskFile` holds the
rows by case.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.profiles import Profile
from competition.data.objects import CaseObjects, HiddenPixels, find_covered
from competition.data.patterns import SliceFile, slice_aliases
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.metrics.scoring import Mask
from competition.rle import draw_objects, runs_overlap
from competition.rle_text import RleError
from competition.submission.reader import CsvRow, decode_object_runs, decode_objects, format_key, open_rows
from competition.text import format_count, nearest_hint

if TYPE_CHECKING:
    import pandas as pd

CaseSlice = tuple[str, int | None]  # id of the case, and index of a slice (None for the whole case)
SliceClass = tuple[int | None, str | None]  # index of a slice (None for the whole case), and class (None without one)


@dataclass(frozen=True)
class RowIndex:
    """Find the case, or the slice of a stack, to which a name in a file refers.

    Attributes:
        rows: rows of the case table by id.
        kind: kind of the images (training or test), for messages.
        names: name of each case or slice for messages, by (case id, slice).
        slices: number of slices of each case, by id; 0 for a case that is a single file.
        exact: (case id, None) by case id, for each case that a row may contain as a whole. If the format requires one
            row per slice, these are the cases without slices; otherwise, these are all cases.
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
        """Return the case and slice with a name, which may have an extension; None if no case or several match."""
        return self.exact.get(name) or self.aliases.get(name) or self.aliases.get(strip_extension(name))


@dataclass(frozen=True)
class MaskFile:
    """Hold the rows of a file by case, slice and class; masks are decoded only when they are needed.

    Attributes:
        path: path of the file.
        layout: format of the file: the expected profile or its `alternative`, whichever fits the header.
        strict: whether the file must follow all rules of the host: True for a submission, False for a file that the
            host has made.
        rows: lists of rows, by case id and then by (slice, class). A list has several rows only if each row contains
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
            MaskfoldError: the file has no rows; a row has no image, has an unknown class, or is a duplicate; or a class
                or slice of a case has no row. If `strict` is True, a wrong height or width is an error as well.
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
                        f"{self.path} has no row for {format_key((index.names[case_id, z], cls))}, although line "
                        f"{line} is a row of the case {case_id}.",
                        "Write a row for each class and slice of a case; write an empty mask if nothing is found.",
                    )

    def _union(self, rows: list[CsvRow], shape: tuple[int, ...]) -> tuple[Mask, CaseObjects | None]:
        """Join rows of one class, all of one case or slice; return mask and objects in the form of `class_mask`."""
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
        """Decode the masks in one row, each of the given shape.

        Args:
            row: the row.
            shape: shape of the masks.
            only_row: whether this is the only row of its case, slice and class. If there are several rows, a row
                with an empty mask is an error in a submission.

        Raises:
            MaskfoldError: the text is invalid, or breaks a rule of the host.
        """
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
            raise self._error(
                row, "has a row with an empty mask in addition to other rows", "Remove the row with the empty mask."
            )
        return objects

    def _error(self, row: CsvRow, problem: str, hint: str) -> MaskfoldError:
        return MaskfoldError(f"{self.path}, line {row.line}: {format_key(row.key)} {problem}.", hint)


def solution_profile(path: Path, profile: Profile) -> Profile:
    """Return the format of a solution file, which may have additional columns, such as Usage.

    The format is `profile` or `profile.alternative`: the first one whose columns are all in the file. The returned
    format has the columns of the file. If the file does not exist, or neither format fits, return `profile` unchanged.
    """
    if path.is_file():
        header: tuple[str, ...] = ()
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream, contextlib.suppress(csv.Error):
            header = tuple(next(csv.reader(stream), ()))
        for layout in (profile, profile.alternative):
            if layout is not None and set(layout.columns) <= set(header):
                return replace(layout, columns=header, alternative=None)
    return profile
