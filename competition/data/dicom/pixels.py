"""Pixels of DICOM files, decoded once the header's promise fits into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.dicom.frames import Frame
from competition.data.dicom.refused import Refused, refusing
from competition.data.readers_types import refuse_bomb, refuse_size


class Pixels:
    """Decodes files, and keeps the last one: the frames of one file are asked for one after the other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._array = np.empty((0, 0, 0))

    def stored(self, frame: Frame) -> np.ndarray:
        """Stored values of a frame, (rows, columns), in the file's own dtype.

        Raises:
            Refused: the file cannot be decoded, or does not hold what its header says.
        """
        if self._path != frame.path:
            self._path = None
            self._array = decode(frame.path, frame.name)
            self._path = frame.path
        if frame.index >= len(self._array) or self._array.shape[1:] != frame.shape:
            raise Refused(f"{frame.name} holds other frames than its header says")
        return self._array[frame.index]

    def same(self, first: Frame, again: Frame) -> bool:
        """Whether two frames hold the same values."""
        one = self.stored(first).copy()
        return (first.slope, first.intercept) == (again.slope, again.intercept) and np.array_equal(one, self.stored(again))


def decode(path: Path, name: str) -> np.ndarray:
    """All frames of a file, (frames, rows, columns).

    Raises:
        Refused: the file cannot be decoded, or is larger than the memory.
    """
    import pydicom

    with refusing(f"{name} cannot be decoded"):
        dataset = pydicom.dcmread(path, force=True)
        if not dataset.file_meta.get("TransferSyntaxUID"):  # an old file without preamble: never packed
            dataset.file_meta.TransferSyntaxUID = _plain_syntax(*dataset.original_encoding)
        frames = int(dataset.get("NumberOfFrames") or 1)
        bytes_each = max(1, int(dataset.get("BitsAllocated") or 16) // 8) * int(dataset.get("SamplesPerPixel") or 1)
        declared = math.prod((int(dataset.Rows), int(dataset.Columns), frames)) * bytes_each
        refuse_size(path, declared)
        refuse_bomb(path, declared)
        array = np.asarray(dataset.pixel_array)
        return array.reshape(frames, *array.shape[array.ndim - 2:]) if array.ndim < 3 else array


def _plain_syntax(implicit: bool | None, little: bool | None) -> Any:
    """The transfer syntax that a header without one is written in."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
