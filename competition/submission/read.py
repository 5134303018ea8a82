"""A submission file row by row, the host's sample, and the masks of a finished file."""

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

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.readers import stem
from competition.rle import RleError, decode
from competition.rle_text import json_lists
from competition.submission.profiles import Profile

Mask = NDArray[np.bool_]
Key = tuple[str, str | None]  # the image's name as the file writes it, the class where rows have one


class Row(NamedTuple):
    """One row of a file: its line (the header is line 1), whose mask it is, and the text of the mask."""

    line: int
    key: Key
    text: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """The host's sample submission: which rows it wants, in which order.

    Attributes:
        path: the file.
        profile: the profile, in the layout that the sample has.
        keys: (image, class) of each row, in order; each once.
    """

    path: Path
    profile: Profile
    keys: tuple[Key, ...]

    def check(self, cases: Iterable[str]) -> None:
        """Refuses a sample that does not fit the test images (or slices), before any long work.

        Raises:
            MaskfoldError: naming an id that has no image, or an image that the sample leaves out.
        """
        names = Names(cases)
        found = {key[0]: names.get(key[0]) for key in self.keys}
        for text, case_id in found.items():
            if case_id is None:
                near = nearest(text, names.all)
                raise MaskfoldError(
                    f"{self.path} asks for the id {text}, which has no test image"
                    f"{f'; nearest is {near[0]}' if near else ''}.",
                    "Correct test.images or submission.sample, or add the image.",
                )
        missing = sorted(set(names.all) - set(found.values()))
        if missing:
            raise MaskfoldError(
                f"{self.path} does not ask for the test image {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}.",
                "Correct test.images, or take the sample that belongs to these images.",
            )


@dataclass
class Names:
    """Finds a case by the name that a table uses: as it is, or without the extension of an image."""

    cases: Iterable[str]
    all: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.all = list(self.cases)
        self._exact = set(self.all)
        loose: dict[str, str | None] = {}
        for name in self.all:  # a name that could mean two cases means none
            loose[stem(name)] = name if loose.setdefault(stem(name), name) == name else None
        self._loose = loose

    def get(self, text: str) -> str | None:
        """The case, or None."""
        return text if text in self._exact else self._loose.get(stem(text))


class Entry(NamedTuple):
    """The masks of one case, and class where the file has classes: one per object, none for an empty mask."""

    case_id: str
    class_name: str | None
    objects: list[Mask]
    shape: tuple[int, ...]

    @property
    def mask(self) -> Mask:
        """The objects united: bool array of `shape`."""
        united = np.zeros(self.shape, np.bool_)
        for one in self.objects:
            united |= one
        return united


def open_rows(path: Path, profile: Profile) -> tuple[Profile, Iterator[Row]]:
    """The layout of a file and its rows, read one at a time with every cell as the text that is written there.

    Raises:
        MaskfoldError: the file is missing, its header is not the profile's, or a row has too many or too few cells.
    """
    if not path.is_file():
        raise MaskfoldError(f"The file {path} does not exist.", "Correct its path.", status=2)
    csv.field_size_limit(sys.maxsize)  # a text of run lengths has no natural limit
    cells = _cells(path)
    _, header = next(cells, (1, []))
    if not header:
        raise MaskfoldError(f"{path} is empty.", "Take the host's own file, or write it again.", status=2)
    layout = profile.layout(header, path)
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
            f"{path} cannot be read as a table ({error}).", "Write it as a CSV with commas, UTF-8 and one header line."
        ) from error


def _rows(path: Path, layout: Profile, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for line, cells in lines:
        if len(cells) != len(layout.columns):
            raise MaskfoldError(
                f"{path}, line {line}: {len(cells)} cells under {len(layout.columns)} columns.",
                "Write one cell for each column, in quotes where it holds a comma.",
            )
        named = dict(zip(layout.columns, cells, strict=True))
        image, cls = layout.split_id(named[layout.id_column])
        cls = named[layout.class_column] if layout.class_column is not None else cls
        yield Row(line, (image, cls), named[layout.mask_column], named)


def read_sample(path: str | Path, profile: Profile) -> Sample:
    """Reads which rows the host wants.

    Raises:
        MaskfoldError: the file is missing or empty, its header is not the profile's, it names a row twice, or a class
            that the profile does not have.
    """
    path = Path(path)
    layout, rows = open_rows(path, profile)
    seen: dict[Key, int] = {}
    for row in rows:
        if row.key in seen:
            raise MaskfoldError(
                f"{path}, line {row.line}: {said(row.key)} is there a second time, after line {seen[row.key]}.",
                "Remove one of the two rows, or take the host's own sample.",
            )
        if layout.classed and row.key[1] not in layout.classes:
            raise MaskfoldError(
                f"{path}, line {row.line}: the class `{row.key[1]}` is not one of {', '.join(layout.classes)}.",
                "Correct competition.classes or the sample.",
            )
        seen[row.key] = row.line
    if not seen:
        raise MaskfoldError(f"The sample {path} has no rows.", "Take the host's own sample.", status=2)
    return Sample(path, layout, tuple(seen))


def read_submission(path: str | Path, profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
    """Reads the masks back, one case (and class) at a time.

    Args:
        path: a CSV of the profile; rows of one object each stand together by image.
        profile: what the file looks like.
        shapes: shape of each case's mask by its id; the file may write ids with an image's extension. A profile's own
            grid goes before it.

    Yields:
        One entry per image and class, in the file's order.

    Raises:
        MaskfoldError: the file is not the profile's, an id has no shape, a text is not a mask of that shape; with the
            line.
    """
    path = Path(path)
    names = Names(shapes)
    layout, rows = open_rows(path, profile)
    done: set[Key] = set()
    for key, group in groupby(rows, key=lambda row: row.key):
        case_id, several = names.get(key[0]), list(group)
        place = f"{path}, line {several[0].line}"
        if case_id is None:
            raise MaskfoldError(f"{place}: the id {key[0]} has no image.", "Correct the row, or add the image.")
        if key in done or (len(several) > 1 and layout.rows != "object"):
            raise MaskfoldError(
                f"{place}: the rows of {said(key)} are doubled, or do not stand together.",
                "Sort the file as the sample is, and remove doubled rows.",
            )
        done.add(key)
        shape = layout.grid or tuple(shapes[case_id])
        objects: list[Mask] = []
        for row in several:
            try:
                objects += objects_of(row.text, shape, layout)
            except RleError as error:
                raise MaskfoldError(f"{path}, line {row.line}, {said(key)}: {error.wrong}", error.cure) from error
        yield Entry(case_id, key[1], objects, shape)


def objects_of(text: str, shape: tuple[int, ...], profile: Profile) -> list[Mask]:
    """The masks in one cell, each with at least one pixel; none for the empty token.

    Raises:
        RleError: the text is not a mask of this shape.
    """
    text = text.strip()
    if text == profile.rle.empty.strip():
        return []
    masks = [decode(part, shape, profile.rle) for part in _parts(text, profile)]
    return [mask for mask in masks if mask.any()]


def _parts(text: str, profile: Profile) -> list[str]:
    """The text of each object in one cell."""
    if profile.rle.container == "json":
        json_lists(text)  # its errors count the lists
        return text.split(";")
    if not profile.confidence:
        return [text]
    words = text.split()
    if len(words) % 3:
        raise RleError(
            f"The text has {len(words)} words, but each object has three: class, confidence and mask.",
            "Write `0 confidence mask` for each object.",
        )
    for number in range(len(words) // 3):
        _check_confidence(number + 1, words[3 * number], words[3 * number + 1])
    return words[2::3]


def _check_confidence(number: int, cls: str, confidence: str) -> None:
    try:
        sound = cls == "0" and 0.0 <= float(confidence) <= 1.0
    except ValueError:
        sound = False
    if not sound:
        raise RleError(
            f"Object {number} begins with `{cls} {confidence}`, not with 0 and a confidence from 0 to 1.",
            "Write `0 confidence mask` for each object.",
        )


def said(key: Key) -> str:
    """An (image, class) in words."""
    return f"the id {key[0]}" if key[1] is None else f"the id {key[0]} with the class {key[1]}"


def fill(profile: Profile, key: Key, text: str, shape: tuple[int, ...]) -> list[Any]:
    """The cells of one row."""
    image, cls = key
    cells: dict[str, Any] = dict(zip(profile.extra, shape, strict=False))
    cells[profile.id_column] = f"{image}_{cls}" if profile.joined else image
    if profile.class_column is not None:
        cells[profile.class_column] = cls
    cells[profile.mask_column] = text
    return [cells.get(column, "") for column in profile.columns]
