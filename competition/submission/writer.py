"""Write a submission file mask by mask, in the host's order of rows; after an error, no incomplete file is left."""

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
from competition.io import disk_full_as_error, ensure_writable, make_temporary_path, open_synced, sync_folder
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
    """Hold all objects of one case and class, as an item for `write_submission`.

    Each object is encoded as a text of its own, in the order of the objects' numbers.

    Attributes:
        case_id: id of the case, or id of the slice if the file has one row per slice.
        class_name: name of the class; ignored if the rows of the file have no class.
        labels: label image of the objects: integers of any shape, 0 for background.
        confidences: confidence of each object, by its number, for files with confidences. None gives all objects the
            confidence 1.
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
    """Write masks to a submission file in the host's format, and validate the file.

    Only one mask is in memory at a time; the encoded texts are stored in a temporary file. Each text is decoded again
    and compared with its mask. The complete file is validated before it gets its final name.

    Each item of `masks` is a tuple (case id, class name, mask), or an `ObjectsItem`. The following rules apply:

    - The mask is an array of bool or integers, in which values other than 0 are foreground.
    - Every case needs an item, with an empty mask if nothing was found.
    - If the file has one row per slice, the case id is the id of the slice.
    - If the rows of the file have no class, the class name is ignored and may be None.
    - If the format allows several objects, a case may have one item per object. A single `ObjectsItem` with all objects
      of a case and class is faster.
    - For `hubmap-vasculature`, a fourth element of the tuple is the confidence of the object (default 1).

    Args:
        masks: the masks, in any order.
        profile: the file format, or its name in `PROFILES`, e.g. `tgs-salt`. If the format prescribes a size for all
            masks (`profile.grid`), masks of another size are resized to it, see `resize_to_grid`.
        path: path of the CSV; an existing file is replaced.
        sample: the host's sample submission, or its path. None writes the rows in the order of the masks.

    Returns:
        The report of the validation.

    Raises:
        MaskfoldError: a mask has no row in the sample submission, a row of the sample submission has no mask, a row has
            two masks although the format allows only one, or the written file is invalid. Then no new file is left on
            the disk, and an existing file stays unchanged.
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
            with open_synced(temporary_path, texts.size()) as stream:
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
    """Store encoded masks in a temporary file, by (image, class).

    Args:
        profile: the file format.
        sample: the host's sample submission; None if there is none.
    """

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
        """Encode and store one mask.

        Args:
            case_id: id of the case or slice.
            cls: name of the class; None if rows have no class.
            mask: array of bool or integers, in which values other than 0 are foreground.
            confidence: confidence of the object, for files with confidences.

        Raises:
            MaskfoldError: there is no row for the mask, the row already has a mask, or the mask differs after encoding
                and decoding.
        """
        mask = resize_to_grid(np.asarray(mask), self.profile)
        key, offsets = self._begin(case_id, cls, mask.shape)
        if mask.any():
            self._store(offsets, [_encode_checked(key, mask, self.profile, confidence)])

    def add_objects(
        self, case_id: str, cls: str | None, labels: NDArray[Any], confidences: Mapping[int, float] | None = None
    ) -> None:
        """Encode and store the objects of a label image; see `ObjectsItem` for the arguments.

        Raises:
            MaskfoldError: there is no row for the objects, the row already has a mask, or the objects differ after
                encoding and decoding.
        """
        if self.profile.grid is not None and labels.shape != self.profile.grid:  # objects are resized one by one
            self.add(case_id, cls, np.zeros_like(labels))
            for number in np.unique(labels[labels != 0]).tolist():
                self.add(case_id, cls, labels == number, 1.0 if confidences is None else confidences[number])
            return
        key, offsets = self._begin(case_id, cls, labels.shape)
        self._store(offsets, _encode_objects_checked(key, labels, self.profile, confidences))

    def _begin(self, case_id: str, cls: str | None, shape: tuple[int, ...]) -> tuple[RowKey, list[tuple[int, int]]]:
        """Check that a mask may be added to its row, and prepare the list of the row's texts.

        Returns:
            The key of the row, and the list to which (start, length) of each text in the temporary file is appended.

        Raises:
            MaskfoldError: there is no row for the mask, an earlier mask of the row has another shape, or the row
                already has a mask and the format allows only one.
        """
        key = self._key(str(case_id), cls)
        first = self.shapes.setdefault(key, shape)
        if shape != first:
            raise MaskfoldError(
                f"A mask of {format_key(key)} has the shape {shape}, expected {first} like the first mask of this id.",
                "Resize the masks to the size of the image.",
            )
        if key in self._offsets and not self.profile.several_masks:
            raise MaskfoldError(
                f"Found a second mask for {format_key(key)}, expected only one.",
                "Merge the masks of one case before you write them.",
            )
        return key, self._offsets.setdefault(key, [])

    def _store(self, offsets: list[tuple[int, int]], texts: list[str]) -> None:
        """Append texts to the temporary file, and (start, length) of each text to the list `offsets`."""
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
        """Return the number of bytes of all texts, which is a lower bound of the size of the submission file."""
        return sum(length for offsets in self._offsets.values() for _, length in offsets)

    def order(self) -> Iterator[RowKey]:
        """Yield the keys of the rows in the order of the sample submission; without one, in the order of the masks.

        Raises:
            MaskfoldError: a row of the sample submission has no mask; or there is neither a sample submission nor a
                mask.
        """
        if self.sample is None:
            if not self._offsets:
                raise MaskfoldError("There is no mask to write, expected at least one.", "Predict at least one case.")
            yield from self._offsets
            return
        for key in self.sample.keys:
            if key not in self._offsets:
                raise MaskfoldError(
                    f"{self.sample.path} requires a mask of {format_key(key)}, but there is none.",
                    "Predict every test case; write an empty mask if nothing is found.",
                )
            yield key

    def of(self, key: RowKey) -> list[str]:
        """Return the texts of the mask column for the rows with the key `key`.

        There are several texts only if the format has one row per object.
        """
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
        """Return the key of the row for a mask, with the image's name as in the sample submission.

        Raises:
            MaskfoldError: the class is unknown, or the sample submission has no such row.
        """
        if not self.profile.rows_have_class:
            cls = None
        elif cls not in self.profile.classes:
            raise MaskfoldError(
                f"A mask of {case_id} has the class {cls}, expected a class of the profile {self.profile.name}: "
                f"{', '.join(self.profile.classes)}.",
                "Use the class names of the host.",
            )
        if self._names is None or self.sample is None:
            return case_id, cls
        image = self._names.get(case_id)
        if image is None or (image, cls) not in self._sample_keys:
            hint = nearest_hint(case_id, self._names.ids) if image is None else ""
            raise MaskfoldError(
                f"{self.sample.path} has no row for {format_key((case_id, cls))}{hint}.",
                "Change test.images, or set submission.sample to the sample submission for these test images.",
            )
        return image, cls


def resize_to_grid(mask: NDArray[Any], profile: Profile) -> NDArray[Any]:
    """Resize a mask to the size that a file format prescribes (`profile.grid`), if it prescribes one.

    A pixel becomes foreground if at least half of its area is foreground.

    Args:
        mask: bool or integers of any shape; (H, W) if the format prescribes a size.
        profile: the file format.

    Returns:
        A bool array with the prescribed shape. If the format prescribes no size, or if the mask already has this size,
        the mask itself.
    """
    if profile.grid is None or mask.shape == profile.grid:
        return mask
    import cv2

    height, width = profile.grid
    share = cv2.resize((mask != 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share) >= 0.5


def _encode_checked(key: RowKey, mask: NDArray[Any], profile: Profile, confidence: float) -> str:
    """Encode one mask, which must not be empty, and check that decoding the text gives the same mask.

    Args:
        key: key of the mask's row, for messages.
        mask: array of bool or integers, in which values other than 0 are foreground.
        profile: the file format.
        confidence: confidence of the object, for files with confidences.

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
    """Encode the objects of a label image, and check that decoding the texts gives the same label image.

    Args:
        key: key of the objects' row, for messages.
        labels: integers of any shape, 0 for background.
        profile: the file format.
        confidences: confidence of each object by its number; None gives all objects the confidence 1.

    Returns:
        One text for each object, in the order of the objects' numbers.

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
        f"The mask of {format_key(key)} was encoded, but decoding it gives another mask.",
        f"Please report this error with the shape {shape} of the mask and the profile {profile.name}.",
    )
