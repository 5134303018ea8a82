"""DICOM-SEG (PS3.3 A.51, C.8.20): segments painted on the grid of the image they belong to, frame by frame by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from competition.data.dicom.frames import functional, numbers
from competition.data.dicom.grid import Grid, affine_of, check_orientation, onto
from competition.data.dicom.pixels import decode
from competition.data.dicom.refused import Refused, quiet, refusing
from competition.data.dicom.scan import Instance
from competition.data.dicom.stack import check_decoders

INSIDE = 0.5  # fraction from which on a voxel of a fractional segmentation belongs to the segment


@dataclass(eq=False)
class Segmentation:
    """The header of one DICOM-SEG file.

    Attributes:
        labels: segment number → SegmentLabel.
        kind: BINARY, FRACTIONAL or LABELMAP.
        largest: the stored value that means a fraction of 1.
        places: for each frame its segment number (None in a label map) and its affine to RAS mm.
        shape: rows and columns.
    """

    instance: Instance
    labels: dict[int, str]
    kind: str
    largest: float
    places: list[tuple[int | None, np.ndarray]]
    shape: tuple[int, int]


@dataclass(eq=False)
class Canvas:
    """A mask that is painted segment by segment.

    Attributes:
        mask: (X, Y, Z) uint8.
        shared: voxels that more than one segment claims.
    """

    grid: Grid
    mask: np.ndarray = field(init=False)
    shared: int = 0

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.grid.shape, np.uint8)
        self._fraction = np.zeros(self.grid.shape, np.float32)

    def paint(self, voxels: np.ndarray, value: int, fraction: np.ndarray | float = 1.0) -> None:
        """Gives (N, 3) voxels a value; the larger fraction wins, then the higher value, in whatever order they come."""
        at = tuple(voxels.T)
        before, best = self.mask[at], self._fraction[at]
        self.shared += int(((before != 0) & (before != value)).sum())
        wins = (fraction > best) | ((fraction == best) & (value > before))
        self.mask[at] = np.where(wins, value, before)
        self._fraction[at] = np.where(wins, fraction, best)


def read_segmentation(instance: Instance) -> Segmentation:
    """Reads what a DICOM-SEG holds and where, without its pixels.

    Raises:
        Refused: the file is broken, or a frame has no position, orientation, spacing or segment.
    """
    import pydicom

    if instance.fault:
        raise Refused(instance.fault)
    with quiet(), refusing(f"{instance.name} cannot be read"):
        dataset = pydicom.dcmread(instance.path, stop_before_pixels=True, force=True)
        kind = str(dataset.get("SegmentationType") or "BINARY").upper()
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise Refused(f"{instance.name} is a segmentation of the unknown type {kind}")
        labels = {int(one.SegmentNumber): label_of(one) for one in dataset.get("SegmentSequence") or ()}
        labels.pop(0, None)  # a label map may describe its background
        places = list(_places(dataset, instance, kind))
        for number, _ in places:
            if number is not None and number not in labels:
                raise Refused(f"{instance.name} has a frame of the segment {number}, which it does not describe")
        return Segmentation(instance, labels, kind, float(dataset.get("MaximumFractionalValue") or 255),
                            places, (int(dataset.Rows), int(dataset.Columns)))


def label_of(segment: Any) -> str:
    """The name of a segment: SegmentLabel, else the meaning of its type, else its number."""
    types = segment.get("SegmentedPropertyTypeCodeSequence") or [{}]
    for words in (segment.get("SegmentLabel"), types[0].get("CodeMeaning")):
        if words and str(words).strip():
            return " ".join(str(words).split()).lstrip("=+-@") or f"segment {segment.SegmentNumber}"  # no formula
    return f"segment {segment.SegmentNumber}"


def _places(dataset: Any, instance: Instance, kind: str) -> Iterator[tuple[int | None, np.ndarray]]:
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if len(groups) != instance.size[2]:
        raise Refused(f"{instance.name} declares {instance.size[2]} frames and describes {len(groups)}")
    for index, group in enumerate(groups):
        place, plane, measures, segment = (functional(dataset, group, sequence) for sequence in (
            "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "SegmentIdentificationSequence"))
        position, spacing = numbers(place.get("ImagePositionPatient"), 3), numbers(measures.get("PixelSpacing"), 2)
        orientation = numbers(plane.get("ImageOrientationPatient"), 6)
        number = segment.get("ReferencedSegmentNumber")
        if position is None or orientation is None or spacing is None:
            raise Refused(f"frame {index + 1} of {instance.name} has no position, orientation or pixel spacing")
        check_orientation(orientation, instance.name)
        if number is None and kind != "LABELMAP":
            raise Refused(f"frame {index + 1} of {instance.name} names no segment")
        affine = affine_of(position, orientation, (float(spacing[0]), float(spacing[1])), 1.0)
        yield (None if kind == "LABELMAP" else int(number)), affine


def misfit(segmentation: Segmentation, grid: Grid) -> str:
    """Why the frames do not lie on a grid; empty where they do. What lies outside of it is not looked at."""
    rows, columns = segmentation.shape
    try:
        for _, affine in segmentation.places:
            onto(grid, affine, np.empty((0, 3), np.int64), (columns, rows, 1))
    except Refused as error:
        return str(error)
    return ""


def paint(segmentation: Segmentation, canvas: Canvas, values: dict[int, int]) -> None:
    """Paints all segments of a file.

    Args:
        segmentation: by `read_segmentation`.
        canvas: on the image's grid.
        values: segment number → value in the mask.

    Raises:
        Refused: its pixels cannot be decoded, its grid is not the image's, or a labelled voxel lies outside.
    """
    name = segmentation.instance.name
    check_decoders([segmentation.instance])
    with quiet():
        stored = decode(segmentation.instance.path, name)
    if stored.shape != (len(segmentation.places), *segmentation.shape):
        raise Refused(f"{name} holds other frames than its header says")
    rows, columns = segmentation.shape
    for pixels, (number, affine) in zip(stored, segmentation.places, strict=True):
        if number is None:
            parts = {int(one): pixels == one for one in np.unique(pixels) if one}
        else:
            parts = {number: pixels >= INSIDE * segmentation.largest if segmentation.kind == "FRACTIONAL" else pixels > 0}
        for segment, inside in parts.items():
            if segment not in values:
                raise Refused(f"{name} holds the segment {segment}, which it does not describe")
            row, column = np.nonzero(inside)
            points = np.stack([column, row, np.zeros_like(row)], axis=1)
            voxels = onto(canvas.grid, affine, points, (columns, rows, 1))
            fractional = segmentation.kind == "FRACTIONAL"
            canvas.paint(voxels, values[segment], (pixels[inside] / segmentation.largest).astype(np.float32)
                         if fractional else 1.0)
