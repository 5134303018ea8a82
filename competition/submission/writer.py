"""Writes the file: one mask at a time in, the host's rows in the host's order out, or nothing at all."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.files import room, sync_folder, temporary, whole_file, writable
from competition.rle import encode
from competition.submission.profiles import Profile, known_profile
from competition.submission.read import Key, Names, Sample, fill, objects_of, read_sample, said
from competition.submission.validate import Verdict, validate_submission

Masked = tuple[str, str | None, NDArray[Any]] | tuple[str, str | None, NDArray[Any], float]


def write_submission(
    masks: Iterable[Masked], profile: Profile | str, path: str | Path, sample: str | Path | Sample | None = None
) -> Verdict:
    """Writes and validates a submission.

    Masks are taken one at a time and none is kept; their texts wait in a temporary file. Each text is decoded again
    and compared with its mask, and the finished file is validated, before it gets its name.

    Args:
        masks: (case id, class name or None, mask) in any order; the mask is bool or integers, anything but 0 is
            foreground. Every case comes, with an empty mask where nothing was found. Profiles with several objects
            take several masks of one case. For `hubmap-vasculature` a fourth item is the object's confidence
            (1 without). The case is the slice where rows are per slice. The class plays no part where rows have none.
        profile: what the file looks like, or a known competition's name. Where it has a grid of its own, masks of another size are brought to it: a
            pixel is foreground where at least half of its area is.
        path: the CSV; replaced when it exists.
        sample: the host's sample, or what `read_sample` gave; None: rows stand in the order of the masks.

    Returns:
        The verdict on the file, which is good.

    Raises:
        MaskfoldError: a mask has no row in the sample, a row has no mask, one comes twice, or the file is not valid;
            nothing is left behind, and a former file stays.
    """
    path = Path(path)
    if isinstance(profile, str):
        profile = known_profile(profile)
    if sample is not None and not isinstance(sample, Sample):
        sample = read_sample(sample, profile)
    profile = profile if sample is None else sample.profile
    writable(path.parent)
    beside = temporary(path)
    try:
        with _Texts(profile, sample) as texts:
            for one in masks:
                texts.add(*one)
            with whole_file(beside, texts.size()) as stream:
                lines = io.TextIOWrapper(stream, "utf-8", newline="")
                _write(lines, texts)
                lines.detach()  # flushes, and leaves the file open to be put on the disk
            shapes = {key[0]: shape for key, shape in texts.shapes.items()}
            verdict = validate_submission(beside, profile, sample, shapes)
        verdict = Verdict(path, verdict.rows, verdict.empty, verdict.problems)
        verdict.check()
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
    return verdict


def _write(lines: Any, texts: _Texts) -> None:
    out = csv.writer(lines, lineterminator="\n")
    out.writerow(texts.profile.columns)
    for key in texts.order():
        for text in texts.of(key):
            out.writerow(fill(texts.profile, key, text, texts.shapes[key]))


class _Texts:
    """The texts of masks on the disk, found again by (image, class)."""

    def __init__(self, profile: Profile, sample: Sample | None) -> None:
        self.profile, self.sample = profile, sample
        self.shapes: dict[Key, tuple[int, ...]] = {}
        self._places: dict[Key, list[tuple[int, int]]] = {}  # start and length of each text; none for an empty mask
        self._wanted = set(sample.keys) if sample is not None else set()
        self._names = Names(dict.fromkeys(key[0] for key in sample.keys)) if sample is not None else None
        with room(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the block of this object ends)

    def __enter__(self) -> _Texts:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk did not take is told already
            self._file.close()

    def add(self, case_id: str, cls: str | None, mask: NDArray[Any], confidence: float = 1.0) -> None:
        """Takes one mask."""
        key = self._key(str(case_id), cls)
        mask = on_grid(np.asarray(mask), self.profile)
        first = self.shapes.setdefault(key, mask.shape)
        if mask.shape != first:
            raise MaskfoldError(
                f"The masks of {said(key)} have the shapes {first} and {mask.shape}.",
                "Bring them to the size of the image.",
            )
        if key in self._places and not self.profile.many:
            raise MaskfoldError(
                f"A second mask comes for {said(key)}, which has one row.",
                "Unite the masks of one case before they are written.",
            )
        places = self._places.setdefault(key, [])
        if mask.any():
            raw = _text(key, mask, self.profile, confidence).encode("ascii")
            with room(Path(tempfile.gettempdir()), len(raw)):
                places.append((self._file.seek(0, os.SEEK_END), len(raw)))
                self._file.write(raw)

    def size(self) -> int:
        """Bytes of all texts: somewhat less than the file's."""
        return sum(length for places in self._places.values() for _, length in places)

    def order(self) -> Iterator[Key]:
        """The rows' keys: the sample's, else as they came.

        Raises:
            MaskfoldError: a row of the sample has no mask.
        """
        if self.sample is None:
            if not self._places:
                raise MaskfoldError("No mask was given, so there is nothing to write.", "Predict at least one case.")
            yield from self._places
            return
        for key in self.sample.keys:
            if key not in self._places:
                raise MaskfoldError(
                    f"{self.sample.path} asks for {said(key)}, of which there is no mask.",
                    "Predict every test case; write an empty mask where nothing is found.",
                )
            yield key

    def of(self, key: Key) -> list[str]:
        """The cells of a key's rows: several only for rows of one object each."""
        found = []
        for start, length in self._places[key]:
            self._file.seek(start)
            found.append(self._file.read(length).decode("ascii"))
        if not found:
            return [self.profile.rle.empty]
        if self.profile.rows == "object":
            return found
        return [(";" if self.profile.rle.container == "json" else " ").join(found)]

    def _key(self, case_id: str, cls: str | None) -> Key:
        """The row of a mask, by the name that the sample uses."""
        if not self.profile.classed:
            cls = None
        elif cls not in self.profile.classes:
            raise MaskfoldError(
                f"The mask of {case_id} is of the class {cls}, but {self.profile.name} has "
                f"{', '.join(self.profile.classes)}.",
                "Name the classes as the host does.",
            )
        if self._names is None or self.sample is None:
            return case_id, cls
        image = self._names.get(case_id)
        if image is None or (image, cls) not in self._wanted:
            near = nearest(case_id, self._names.all)
            raise MaskfoldError(
                f"{self.sample.path} has no row for {said((case_id, cls))}"
                f"{f'; nearest is {near[0]}' if near and image is None else ''}.",
                "Correct test.images, or take the sample that belongs to these images.",
            )
        return image, cls


def on_grid(mask: NDArray[Any], profile: Profile) -> NDArray[Any]:
    """The mask on the profile's own grid: a pixel is foreground where at least half of its area is.

    Args:
        mask: bool or integers of any shape; (H, W) where the profile has a grid.
        profile: what the file looks like.

    Returns:
        The mask itself where the profile has no grid, else bool of the grid's shape.
    """
    if profile.grid is None or mask.shape == profile.grid:
        return mask
    import cv2

    height, width = profile.grid
    share = cv2.resize((mask != 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share) >= 0.5


def _text(key: Key, mask: NDArray[Any], profile: Profile, confidence: float) -> str:
    """The text of one mask with pixels, read back and compared.

    Raises:
        MaskfoldError: what is read back is not the mask.
    """
    text = encode(mask, profile.rle)
    if profile.confidence:
        text = f"0 {confidence:.6g} {text}"
    back = objects_of(text, mask.shape, profile)
    if len(back) != 1 or not np.array_equal(back[0], mask != 0):
        raise MaskfoldError(
            f"The mask of {said(key)} is not the same after it was written and read back.",
            f"Report this with the mask's shape {mask.shape} and the profile {profile.name}.",
        )
    return text
