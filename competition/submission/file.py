"""A finished file by case: which image each row means, and its masks, decoded when they are asked for."""

from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import MaskfoldError
from competition.config.nearest import nearest
from competition.data.readers import stem
from competition.data.sources import Slice, slice_names
from competition.rle import RleError
from competition.scoring.cases import Mask
from competition.scoring.instances import Labels
from competition.submission.profiles import Profile
from competition.submission.read import Row, objects_of, open_rows, said

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[str, int | None]  # the case, and the slice of a stack; None: all of the case
Part = tuple[int | None, str | None]  # the slice or None, and the class; None where rows have none


@dataclass(frozen=True)
class Places:
    """Finds the case, or the slice of a stack, that a name in a file means.

    Attributes:
        rows: rows of the case table by id.
        kind: of the images, for messages.
        names: under which a message speaks of a place.
        slices: how many a stack has; 0 for a case that is one file.
        exact: the place of each case's own id.
        loose: the place of other names; None for a name that could mean two.
    """

    rows: dict[str, Any]
    kind: str
    names: dict[Place, str]
    slices: dict[str, int]
    exact: dict[str, Place]
    loose: dict[str, Place | None]

    @classmethod
    def of(cls, table: pd.DataFrame, profile: Profile, kind: str) -> Places:
        places = cls({str(row.id): row for row in table.itertuples(index=False)}, kind, {}, {}, {}, {})
        for case_id, row in places.rows.items():
            texts, paths = json.loads(row.slices) or [], next(iter(json.loads(row.images).values()))
            places.slices[case_id] = len(texts)
            if not texts or profile.rows != "slice_class":
                places.exact[case_id] = (case_id, None)
                places._add((case_id, None), [case_id, stem(case_id)])
            for index, text in enumerate(texts):
                places._add((case_id, index), slice_names(case_id, Slice(text, paths[index])))
        return places

    def _add(self, place: Place, names: list[str]) -> None:
        self.names[place] = names[0]
        for name in names:
            self.loose[name] = place if self.loose.setdefault(name, place) == place else None

    def get(self, name: str) -> Place | None:
        """The place, by the name as it is or without the extension of an image."""
        return self.exact.get(name) or self.loose.get(name) or self.loose.get(stem(name))


@dataclass(frozen=True)
class MaskFile:
    """The rows of a file by case, slice and class; their texts wait to be decoded.

    Attributes:
        path: the file.
        layout: which of its profile's layouts it has.
        strict: it is a submission, which a host's grader would look at; not a host's own file.
        cells: its rows; of one object each, all of a case together.
    """

    path: Path
    layout: Profile
    strict: bool
    cells: dict[str, dict[Part, list[Row]]]

    @classmethod
    def read(cls, path: Path, profile: Profile, places: Places, strict: bool) -> MaskFile:
        """Reads all rows.

        Raises:
            MaskfoldError: a row is of no image or class, or there twice; or a case is not there whole.
        """
        layout, rows = open_rows(path, profile)
        file = cls(path, layout, strict, {})
        for row in rows:
            file._add(row, places)
        if not file.cells:
            raise MaskfoldError(f"{path} has no rows.", "Name a file with masks.")
        for case_id in file.cells:
            file._refuse_part(case_id, places)
        return file

    def layer(self, case_id: str, name: str, shape: tuple[int, ...]) -> tuple[Mask, Labels | None]:
        """Mask (*spatial) of one class of one case; and its objects from 1, where rows say what an object is.

        Raises:
            MaskfoldError: a text is not a mask of this shape, or objects overlap that must not.
        """
        cells, cls = self.cells[case_id], name if self.layout.classed else None
        if (None, cls) in cells:
            return self._united(cells[None, cls], shape)
        volume = np.zeros(shape, np.bool_)
        for index in range(shape[-1]):
            volume[..., index] = self._united(cells[index, cls], shape[:-1])[0]
        return volume, None

    def first_line(self, case_id: str) -> int:
        """Where a case begins."""
        return min(row.line for rows in self.cells[case_id].values() for row in rows)

    def _add(self, row: Row, places: Places) -> None:
        place, (image, cls) = places.get(row.key[0]), row.key
        if place is None:
            near = nearest(image, places.names.values())
            raise self._wrong(
                row,
                f"has no {places.kind} image{f'; nearest is {near[0]}' if near else ''}",
                "Correct the row, or score predictions of test cases with --solution."
                if places.kind == "training"
                else "Correct the row, or test.images.",
            )
        if self.layout.classed and cls not in self.layout.classes:
            raise self._wrong(
                row, f"is not of a class; the classes are {', '.join(self.layout.classes)}", "Correct the row."
            )
        shape = self.layout.grid or json.loads(places.rows[place[0]].shape)
        for column, size in zip(self.layout.extra if self.strict else (), shape, strict=False):
            if row.cells[column] != str(size):
                raise self._wrong(
                    row,
                    f"has the {column} {row.cells[column]}, and the image has {size}",
                    "Write the image's own height and width.",
                )
        rows = self.cells.setdefault(place[0], {}).setdefault((place[1], cls), [])
        if rows and self.layout.rows != "object":
            raise self._wrong(row, f"is there a second time, after line {rows[0].line}", "Remove one of the two rows.")
        rows.append(row._replace(cells={}))

    def _refuse_part(self, case_id: str, places: Places) -> None:
        """Raises `MaskfoldError` for a case of which something is missing."""
        there, begins = {index for index, _ in self.cells[case_id]}, self.first_line(case_id)
        if None in there and len(there) > 1:
            raise MaskfoldError(
                f"{self.path}, line {begins}: the case {case_id} has rows of its own and of its slices.",
                "Write one or the other.",
            )
        for index in (None,) if None in there else range(places.slices[case_id]):
            for cls in self.layout.classes or (None,):
                if (index, cls) not in self.cells[case_id]:
                    raise MaskfoldError(
                        f"{self.path} has no row for {said((places.names[case_id, index], cls))}, although the case "
                        f"{case_id} begins in line {begins}.",
                        "Give a case all its classes and slices, with an empty mask where nothing is found.",
                    )

    def _united(self, rows: list[Row], shape: tuple[int, ...]) -> tuple[Mask, Labels | None]:
        mask, number = np.zeros(shape, np.bool_), 0
        labels = np.zeros(shape, np.int32) if self.layout.many else None
        for row in rows:
            for one in self._objects(row, shape, alone=len(rows) == 1):
                shared = 0 if self.layout.overlap_allowed or not self.strict else np.count_nonzero(mask & one)
                if shared:
                    raise self._wrong(
                        row,
                        f"shares {shared} pixels with another object of this image",
                        "Give each pixel to one object.",
                    )
                mask |= one
                if labels is not None:
                    number += 1
                    labels[one] = number
        return mask, labels

    def _objects(self, row: Row, shape: tuple[int, ...], alone: bool) -> list[Mask]:
        token = self.layout.rle.empty
        try:
            objects = objects_of(row.text, shape, self.layout)
        except RleError as error:
            raise MaskfoldError(f"{self.path}, line {row.line}, {said(row.key)}: {error.wrong}", error.cure) from error
        if self.strict and not objects and row.text.strip() != token.strip():
            raise self._wrong(
                row,
                "has a mask without pixels",
                f"Write {f'`{token}`' if token else 'an empty cell'} for an empty mask.",
            )
        if self.strict and not objects and not alone:
            raise self._wrong(row, "has an empty row beside other rows", "Remove the empty row.")
        return objects

    def _wrong(self, row: Row, what: str, cure: str) -> MaskfoldError:
        return MaskfoldError(f"{self.path}, line {row.line}: {said(row.key)} {what}.", cure)


def wider(path: Path, profile: Profile) -> Profile:
    """The layout that a solution has, with the further columns that hosts add, such as Usage."""
    if path.is_file():
        header: tuple[str, ...] = ()
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream, contextlib.suppress(csv.Error):
            header = tuple(next(csv.reader(stream), ()))
        for one in (profile, profile.other):
            if one is not None and set(one.columns) <= set(header):
                return replace(one, columns=header, other=None)
    return profile
