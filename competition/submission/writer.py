"""Write a submission file mask by mask, with rows in the host's order; after an error, leave no file behind."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.profiles import Profile, get_profile
from competition.errors import MaskfoldError
from competition.io import disk_full_as_error, ensure_writable, make_temporary_path, open_atomic, sync_folder
from competition.rle import draw_objects, encode, encode_labels, runs_overlap
from competition.submission.reader import (
    IdLookup,
    RowKey,
    SampleSubmission,
    decode_object_runs,
    decode_objects,
    format_key,
    format_row,
    read_sample,
)
from competition.submission.validate import ValidationReport, validate_submission
from competition.text import nearest_hint

MaskItem = tuple[str, str | None, NDArray[Any]] | tuple[str, str | None, NDArray[Any], float]


class ObjectsItem(NamedTuple):
    """Hold all objects of one case and class; each object becomes one text, in the order of their numbers.

    Attributes:
        case_id: id of the case; if rows are per slice, id of the slice.
        class_name: the class; ignored if rows have no class.
        labels: integers of any shape, 0 for background.
        confidences: confidence of each object by its number, for files with confidences; None means 1 for all.
    """

    case_id: str
    class_name: str | None
    labels: NDArray[Any]
    confidences: Mapping[int, float] | None = None


def write_submission(
    masks: Iterable[MaskItem | ObjectsItem],
    profile: Profile | str,
    path: str | Path,
    sample: str | Path | SampleSubmission | None = None,
) -> ValidationReport:
    """Write and validate a submission.

    Only one mask is in memory at a time; the encoded texts are stored in a temporary file. Each text is decoded and
    compared with its mask, and the finished file is validated, before it gets its final name.

    Args:
        masks: (case id, class name or None, mask) in any order; the mask is bool or integers, non-zero is foreground.
            Every case is required, with an empty mask if nothing was found. Profiles with several objects take several
            masks of one case. For `hubmap-vasculature` a fourth item is the object's confidence (default 1). If rows
            are per slice, the case id is the slice's id. If rows have no class, the class is ignored. An `ObjectsItem`
            contains all objects of a case, which are encoded in one pass.
        profile: the file format, or the name of a known competition. If the profile has its own grid, masks of another
            size are resized to it: a pixel is foreground if at least half of its area is foreground.
        path: the CSV; replaced if it exists.
        sample: the host's sample, or the result of `read_sample`; None: rows are in the order of the masks.

    Returns:
        The validation report of the valid file.

    Raises:
        MaskfoldError: a mask has no row in the sample, a row has no mask, a mask is a duplicate, or the file is
            invalid. Nothing is left behind, and an existing file is kept.
    """
    path = Path(path)
    if isinstance(profile, str):
        profile = get_profile(profile)
    if sample is not None and not isinstance(sample, SampleSubmission):
        sample = read_sample(sample, profile)
    profile = profile if sample is None else sample.profile
    ensure_writable(path.parent)
    temporary_path = make_temporary_path(path)
    try:
        with _TextStore(profile, sample) as texts:
            for item in masks:
                texts.add_objects(*item) if isinstance(item, ObjectsItem) else texts.add(*item)
            with open_atomic(temporary_path, texts.size()) as stream:
                lines = io.TextIOWrapper(stream, "utf-8", newline="")
                _write(lines, texts)
                lines.detach()  # flush without closing the file, which must still be synced
            shapes = {key[0]: shape for key, shape in texts.shapes.items()}
            report = validate_submission(temporary_path, profile, sample, shapes)
        report = ValidationReport(path, report.rows, report.empty, report.problems)
        report.raise_if_invalid()
        os.replace(temporary_path, path)
        sync_folder(path.parent)
    finally:
        temporary_path.unlink(missing_ok=True)
    return report


def _write(lines: Any, texts: _TextStore) -> None:
    out = csv.writer(lines, lineterminator="\n")
    out.writerow(texts.profile.columns)
    for key in texts.order():
        for text in texts.of(key):
            out.writerow(format_row(texts.profile, key, text, texts.shapes[key]))


class _TextStore:
    """Store encoded masks in a temporary file, indexed by (image, class)."""

    def __init__(self, profile: Profile, sample: SampleSubmission | None) -> None:
        self.profile, self.sample = profile, sample
        self.shapes: dict[RowKey, tuple[int, ...]] = {}
        self._offsets: dict[RowKey, list[tuple[int, int]]] = {}  # start and length of each text; [] for an empty mask
        self._sample_keys = set(sample.keys) if sample is not None else set()
        self._names = IdLookup(dict.fromkeys(key[0] for key in sample.keys)) if sample is not None else None
        with disk_full_as_error(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of this object's block)

    def __enter__(self) -> _TextStore:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # an error of a full disk was already raised
            self._file.close()

    def add(self, case_id: str, cls: str | None, mask: NDArray[Any], confidence: float = 1.0) -> None:
        """Encode and store one mask."""
        mask = resize_to_grid(np.asarray(mask), self.profile)
        key, offsets = self._begin(case_id, cls, mask.shape)
        if mask.any():
            self._store(offsets, [_encode_checked(key, mask, self.profile, confidence)])

    def add_objects(
        self, case_id: str, cls: str | None, labels: NDArray[Any], confidences: Mapping[int, float] | None = None
    ) -> None:
        """Encode and store the objects of a label image."""
        if self.profile.grid is not None and labels.shape != self.profile.grid:  # objects are resized one by one
            self.add(case_id, cls, np.zeros_like(labels))
            for number in np.unique(labels[labels != 0]).tolist():
                self.add(case_id, cls, labels == number, 1.0 if confidences is None else confidences[number])
            return
        key, offsets = self._begin(case_id, cls, labels.shape)
        self._store(offsets, _encode_objects_checked(key, labels, self.profile, confidences))

    def _begin(self, case_id: str, cls: str | None, shape: tuple[int, ...]) -> tuple[RowKey, list[tuple[int, int]]]:
        """Check that a mask of this shape may be added; return its row key and the row's list of (start, length).

        Raises:
            MaskfoldError: no row exists for the mask, its shape differs from the row's first mask, or the row already
                has its mask.
        """
        key = self._key(str(case_id), cls)
        first = self.shapes.setdefault(key, shape)
        if shape != first:
            raise MaskfoldError(
                f"Mask shape of {format_key(key)}: found {shape}, expected {first}, the shape of its first mask.",
                "Resize the masks to the size of the image.",
            )
        if key in self._offsets and not self.profile.several_masks:
            raise MaskfoldError(
                f"Masks of {format_key(key)}: found a second mask, expected one.",
                "Merge the masks of one case before writing.",
            )
        return key, self._offsets.setdefault(key, [])

    def _store(self, offsets: list[tuple[int, int]], texts: list[str]) -> None:
        """Append texts to the temporary file, and their starts and lengths to `offsets`."""
        if not texts:
            return
        raw = "".join(texts).encode("ascii")
        with disk_full_as_error(Path(tempfile.gettempdir()), len(raw)):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(raw)
        for text in texts:
            offsets.append((start, len(text)))
            start += len(text)

    def size(self) -> int:
        """Return the number of bytes of all texts, a lower bound of the file's size."""
        return sum(length for offsets in self._offsets.values() for _, length in offsets)

    def order(self) -> Iterator[RowKey]:
        """Yield the keys of the rows in the order of the sample; without a sample, in the order of the masks.

        Raises:
            MaskfoldError: a row of the sample has no mask.
        """
        if self.sample is None:
            if not self._offsets:
                raise MaskfoldError("Masks to write: found 0, expected at least 1.", "Predict at least one case.")
            yield from self._offsets
            return
        for key in self.sample.keys:
            if key not in self._offsets:
                raise MaskfoldError(
                    f"{self.sample.path} requires {format_key(key)}, but it has no mask.",
                    "Predict every test case; write an empty mask if nothing is found.",
                )
            yield key

    def of(self, key: RowKey) -> list[str]:
        """Return the mask cells of all rows with a key; there are several cells only if each object has its own row."""
        cells = []
        for start, length in self._offsets[key]:
            if self._file.tell() != start:  # an unnecessary seek would discard the file's read-ahead buffer
                self._file.seek(start)
            cells.append(self._file.read(length).decode("ascii"))
        if not cells:
            return [self.profile.rle.empty]
        if self.profile.rows == "object":
            return cells
        return [(";" if self.profile.rle.container == "json" else " ").join(cells)]

    def _key(self, case_id: str, cls: str | None) -> RowKey:
        """Return the row key of a mask, with the sample's spelling of the id."""
        if not self.profile.rows_have_class:
            cls = None
        elif cls not in self.profile.classes:
            raise MaskfoldError(
                f"Class of the mask of {case_id}: found {cls}, expected one of {', '.join(self.profile.classes)} "
                f"({self.profile.name}).",
                "Name the classes as the host does.",
            )
        if self._names is None or self.sample is None:
            return case_id, cls
        image = self._names.get(case_id)
        if image is None or (image, cls) not in self._sample_keys:
            hint = nearest_hint(case_id, self._names.ids) if image is None else ""
            raise MaskfoldError(
                f"{self.sample.path} has no row for {format_key((case_id, cls))}{hint}.",
                "Correct test.images, or use the sample of these images.",
            )
        return image, cls


def resize_to_grid(mask: NDArray[Any], profile: Profile) -> NDArray[Any]:
    """Resize a mask to the profile's grid: a pixel becomes foreground if at least half of its area is foreground.

    Args:
        mask: bool or integers of any shape; (H, W) if the profile has a grid.
        profile: the file format.

    Returns:
        The mask itself if the profile has no grid, else a bool array of the grid's shape.
    """
    if profile.grid is None or mask.shape == profile.grid:
        return mask
    import cv2

    height, width = profile.grid
    share = cv2.resize((mask != 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share) >= 0.5


def _encode_checked(key: RowKey, mask: NDArray[Any], profile: Profile, confidence: float) -> str:
    """Encode one non-empty mask, and check that decoding returns it.

    Raises:
        MaskfoldError: the decoded mask differs.
    """
    text = _with_confidence(encode(mask, profile.rle), confidence, profile)
    decoded = decode_objects(text, mask.shape, profile)
    if len(decoded) != 1 or not large_arrays.are_equal(decoded[0], mask if mask.dtype == np.bool_ else mask != 0):
        raise _changed_error(key, mask.shape, profile)
    return text


def _encode_objects_checked(
    key: RowKey, labels: NDArray[Any], profile: Profile, confidences: Mapping[int, float] | None
) -> list[str]:
    """Encode the objects of a label image in one pass, and check that the decoded texts give the same image.

    Raises:
        MaskfoldError: the decoded objects differ from the label image.
    """
    texts = {
        number: _with_confidence(text, 1.0 if confidences is None else confidences[number], profile)
        for number, text in encode_labels(labels, profile.rle).items()
    }
    decoded = [decode_object_runs(text, labels.shape, profile) for text in texts.values()]
    runs = [cell[0] for cell in decoded if len(cell) == 1]
    if len(runs) != len(texts) or runs_overlap(runs):
        raise _changed_error(key, labels.shape, profile)
    drawn = draw_objects(runs, labels.size)
    numbers = np.array([0, *texts], labels.dtype)
    if not np.array_equal(numbers[drawn], labels.ravel(order="F" if profile.rle.order == "column" else "C")):
        raise _changed_error(key, labels.shape, profile)
    return list(texts.values())


def _with_confidence(text: str, confidence: float, profile: Profile) -> str:
    return f"0 {confidence:.6g} {text}" if profile.confidence else text


def _changed_error(key: RowKey, shape: tuple[int, ...], profile: Profile) -> MaskfoldError:
    return MaskfoldError(
        f"The mask of {format_key(key)} changed when it was encoded and decoded.",
        f"Report this with the mask's shape {shape} and the profile {profile.name}.",
    )
