"""Where each frame of a DICOM file lies in space, by its header: single-frame files and enhanced multi-frame ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.dicom.refused import Refused

# What tells two acquisitions apart that share their positions: keyword of a classic file; sequence and keyword of a frame.
TELLING = {"AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
           "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
           "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
           "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue")}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, before its pixels are read.

    Attributes:
        path: its file.
        name: the file, for messages.
        index: the frame in the file, from 0.
        shape: rows and columns.
        position: (3,) mm, LPS: the centre of the first pixel; None where the file does not say.
        orientation: (6,) direction cosines along a row (to the next column) and along a column, LPS; or None.
        spacing: mm between rows and between columns; or None.
        thickness, between: mm, SliceThickness and SpacingBetweenSlices; 0 where absent. Positions say more.
        slope, intercept: value = stored × slope + intercept.
        told: what may tell it from another frame at the same position.
    """

    path: Path
    name: str
    index: int
    shape: tuple[int, int]
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float
    between: float
    slope: float
    intercept: float
    told: dict[str, str]


def frames(dataset: Any, path: Path, name: str) -> tuple[Frame, ...]:
    """Reads the geometry of every frame (PS3.3 C.7.6.2, C.7.6.16).

    Raises:
        Refused: several frames without a position each, or a modality table in place of slope and intercept.
        ValueError, TypeError: numbers that are none.
    """
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return _enhanced(dataset, path, name)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Refused(f"{name} holds {dataset.NumberOfFrames} frames without a position each")
    if dataset.get("ModalityLUTSequence"):
        raise Refused(f"{name} has a modality look-up table in place of slope and intercept")
    told = {key: str(dataset[key].value) for key in TELLING if key in dataset and dataset[key].value not in (None, "")}
    return (_frame(dataset, path, name, 0, dataset, dataset, dataset, dataset, told),)


def _enhanced(dataset: Any, path: Path, name: str) -> tuple[Frame, ...]:
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != int(dataset.get("NumberOfFrames") or 1):
        raise Refused(f"{name} declares {dataset.get('NumberOfFrames')} frames and describes {len(groups)}")
    found = []
    for index, group in enumerate(groups):
        place, plane, measures, values = (functional(dataset, group, sequence) for sequence in (
            "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
            "PixelValueTransformationSequence"))
        told = {key: str(item.get(keyword)) for key, (sequence, keyword) in TELLING.items()
                if (item := functional(dataset, group, sequence)).get(keyword) not in (None, "")}
        found.append(_frame(dataset, path, name, index, place, plane, measures, values, told))
    return tuple(found)


def functional(dataset: Any, group: Any, sequence: str) -> Any:
    """The item of a functional group: the frame's own, else the shared one; {} where neither is there."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    for holder in (group, shared[0]):
        items = holder.get(sequence)
        if items:
            return items[0]
    return {}


def _frame(dataset: Any, path: Path, name: str, index: int, place: Any, plane: Any, measures: Any, values: Any,
           told: dict[str, str]) -> Frame:
    spacing = numbers(measures.get("PixelSpacing"), 2)
    return Frame(path, name, index, (int(dataset.Rows), int(dataset.Columns)),
                 numbers(place.get("ImagePositionPatient"), 3), numbers(plane.get("ImageOrientationPatient"), 6),
                 None if spacing is None else (float(spacing[0]), float(spacing[1])),
                 abs(_number(measures, "SliceThickness", 0.0)), abs(_number(measures, "SpacingBetweenSlices", 0.0)),
                 _number(values, "RescaleSlope", 1.0), _number(values, "RescaleIntercept", 0.0), told)


def _number(holder: Any, keyword: str, absent: float) -> float:
    value = holder.get(keyword)
    return absent if value in (None, "") else float(value)


def numbers(value: Any, count: int) -> np.ndarray | None:
    """A multi-valued attribute as `count` float64; None where it is absent, incomplete or not finite."""
    if value is None or isinstance(value, str | float) or len(value) != count:
        return None
    array = np.array([float(one) for one in value])
    return array if np.isfinite(array).all() else None
