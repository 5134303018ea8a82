"""Read DICOM headers: the geometry of each frame, and texts that may identify a person."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from competition.errors import MaskfoldError
from competition.io import DiskFullError


class SeriesRejected(Exception):
    """Report that a series or a file in it cannot be converted; the message is the reason."""


@contextmanager
def reject_on_error(what: str) -> Iterator[None]:
    """Convert every exception in the `with` block, e.g. of a decoder, to `SeriesRejected`.

    The message begins with `what`. Only a MaskfoldError and a SeriesRejected keep their own messages.

    Raises:
        SeriesRejected: an exception was raised in the block.
        DiskFullError: the disk is full, so all further series would fail too.
    """
    try:
        yield
    except (SeriesRejected, DiskFullError):
        raise
    except MaskfoldError as error:
        raise SeriesRejected(error.message.rstrip(".")) from error
    except Exception as error:  # decoders of arbitrary bytes raise exceptions of arbitrary types
        message = " ".join(str(error).split())[:200]
        raise SeriesRejected(f"{what} ({type(error).__name__}{': ' + message if message else ''})") from error


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings, because the user cannot fix the small violations of the standard that they report."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Geometry of frames

# Attributes that distinguish acquisitions at the same positions: for each keyword in a classic file, the sequence and
# keyword in a frame of an enhanced file.
ACQUISITION_KEYWORDS = {
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
}


@dataclass(frozen=True, eq=False)
class Frame:
    """Hold the header of one slice.

    Attributes:
        path: path of the file.
        name: name of the file, for messages.
        index: number of the frame in the file, from 0.
        shape: rows and columns.
        position: (3,) centre of the first pixel in mm, LPS; None if absent.
        orientation: (6,) direction cosines along a row (to the next column) and along a column, LPS; None if absent.
        spacing: distance between rows and between columns in mm; None if absent.
        thickness, slice_spacing: SliceThickness and SpacingBetweenSlices in mm; 0 if absent. The distance between
            positions is more reliable.
        slope, intercept: value = stored × slope + intercept.
        acquisition: values that distinguish acquisitions at the same position, by keyword of `ACQUISITION_KEYWORDS`.
    """

    path: Path
    name: str
    index: int
    shape: tuple[int, int]
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float
    slice_spacing: float
    slope: float
    intercept: float
    acquisition: dict[str, str]


def read_frames(dataset: Any, path: Path, name: str) -> tuple[Frame, ...]:
    """Read the geometry of every frame of a file (DICOM PS3.3, C.7.6.2 and C.7.6.16).

    Raises:
        SeriesRejected: the file has several frames, but not every frame has a position; or the file has a modality
            look-up table instead of slope and intercept.
        ValueError, TypeError: a numeric attribute is not a number.
    """
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return _read_enhanced(dataset, path, name)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise SeriesRejected(f"{name} has {dataset.NumberOfFrames} frames, but not every frame has a position")
    if dataset.get("ModalityLUTSequence"):
        raise SeriesRejected(
            f"{name} converts its values by a look-up table (modality LUT), expected a slope and an intercept"
        )
    acquisition = {
        key: str(dataset[key].value)
        for key in ACQUISITION_KEYWORDS
        if key in dataset and dataset[key].value not in (None, "")
    }
    return (_read_frame(dataset, path, name, 0, dataset, dataset, dataset, dataset, acquisition),)


def _read_enhanced(dataset: Any, path: Path, name: str) -> tuple[Frame, ...]:
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != int(dataset.get("NumberOfFrames") or 1):
        raise SeriesRejected(f"{name} declares {dataset.get('NumberOfFrames')} frames, but describes {len(groups)}")
    result = []
    for index, group in enumerate(groups):
        position = functional_group(dataset, group, "PlanePositionSequence")
        orientation = functional_group(dataset, group, "PlaneOrientationSequence")
        measures = functional_group(dataset, group, "PixelMeasuresSequence")
        rescale = functional_group(dataset, group, "PixelValueTransformationSequence")
        acquisition = {}
        for key, (sequence, keyword) in ACQUISITION_KEYWORDS.items():
            value = functional_group(dataset, group, sequence).get(keyword)
            if value not in (None, ""):
                acquisition[key] = str(value)
        result.append(_read_frame(dataset, path, name, index, position, orientation, measures, rescale, acquisition))
    return tuple(result)


def functional_group(dataset: Any, group: Any, sequence: str) -> Any:
    """Return the item of a functional group that applies to one frame of an enhanced file.

    If the frame has an item of its own, the result is this item. Otherwise, it is the item that all frames share. If
    the file has neither, the result is an empty dictionary.

    Args:
        dataset: header of the file.
        group: functional groups of the frame.
        sequence: keyword of the sequence that contains the item.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    for holder in (group, shared[0]):
        items = holder.get(sequence)
        if items:
            return items[0]
    return {}


def _read_frame(
    dataset: Any,
    path: Path,
    name: str,
    index: int,
    position: Any,
    orientation: Any,
    measures: Any,
    rescale: Any,
    acquisition: dict[str, str],
) -> Frame:
    spacing = parse_numbers(measures.get("PixelSpacing"), 2)
    return Frame(
        path,
        name,
        index,
        (int(dataset.Rows), int(dataset.Columns)),
        parse_numbers(position.get("ImagePositionPatient"), 3),
        parse_numbers(orientation.get("ImageOrientationPatient"), 6),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        abs(_get_float(measures, "SliceThickness", 0.0)),
        abs(_get_float(measures, "SpacingBetweenSlices", 0.0)),
        _get_float(rescale, "RescaleSlope", 1.0),
        _get_float(rescale, "RescaleIntercept", 0.0),
        acquisition,
    )


def _get_float(holder: Any, keyword: str, default: float) -> float:
    value = holder.get(keyword)
    return default if value in (None, "") else float(value)


def parse_numbers(value: Any, count: int) -> np.ndarray | None:
    """Return a multi-valued attribute as an array of `count` float64.

    Return None if the attribute is absent, has another number of values, or has a value that is not finite.
    """
    if value is None or isinstance(value, str | float) or len(value) != count:
        return None
    array = np.array([float(item) for item in value])
    return array if np.isfinite(array).all() else None


# Private texts

DATE_KEYWORDS = (
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "InstanceCreationDate",
    "PatientBirthDate",
)
# Words that anonymisers and test data write into PatientName; a name that contains one of them is not private.
PLACEHOLDER_NAMES = {
    "anon",
    "anonym",
    "anonymous",
    "anonymized",
    "anonymised",
    "case",
    "deidentified",
    "demo",
    "dummy",
    "id",
    "name",
    "nobody",
    "none",
    "patient",
    "phantom",
    "removed",
    "sample",
    "subject",
    "test",
    "unknown",
    "volunteer",
}
MASKED = "***"


def find_private_patterns(dataset: Any) -> frozenset[str]:
    """Return regular expressions that match the patient's name and the dates in a header.

    Args:
        dataset: a header with PatientName and dates.

    Returns:
        Regular expressions (for `hide_private`) for the parts of the name, for pairs of parts without a space between
        them, and for the dates. A part of the name that contains a digit is treated as a code and gets no pattern. If
        the name contains a placeholder such as `anonymous`, no part of it gets a pattern.
    """
    parts = re.split(r"[\s^=,]+", str(dataset.get("PatientName") or "").casefold())
    codes = [part for part in parts if any(character.isdigit() for character in part)]
    words = [word for part in parts if part not in codes for word in re.split(r"[._'’-]+", part) if word]
    patterns = set()
    if not any(word in PLACEHOLDER_NAMES for word in words):
        names = [word for word in words if word.isalpha()]
        # Match only whole words, so that the name Long does not match `prolonged`; digits and underscores end a word,
        # as in LONG_1.
        patterns |= {_whole_word(re.escape(name)) for name in names if _is_long(name, 2)}
        patterns |= {
            re.escape(a + b) if _is_long(a + b, 4) else _whole_word(re.escape(a) + r"[\W_]*" + re.escape(b))
            for a, b in permutations(names, 2)
        }
    for keyword in DATE_KEYWORDS:
        date = str(dataset.get(keyword) or "")
        if re.fullmatch(r"\d{8}", date):
            year, month, day = date[:4], date[4:6], date[6:]
            for order in ((year, month, day), (day, month, year), (month, day, year)):
                patterns.add(r"(?<!\d)" + r"[-._/ ]?".join(order) + r"(?!\d)")
    return frozenset(patterns)


def _whole_word(expression: str) -> str:
    """Return an expression that matches only if no letter stands before or after the match."""
    return rf"(?<![^\W\d_]){expression}(?![^\W\d_])"


def _is_long(word: str, min_letters: int) -> bool:
    """Return whether a word of a name is long enough to be hidden.

    Two Latin letters often occur by chance, whereas two Chinese or Japanese characters can be a whole name.
    """
    return len(word) > (min_letters if word.isascii() else 1)


def hide_private(text: str, patterns: Iterable[str]) -> str:
    """Write `***` instead of each part of a text that matches one of the `patterns`."""
    longest_first = sorted(patterns, key=lambda pattern: (-len(pattern), pattern))
    return re.sub("|".join(longest_first), MASKED, text, flags=re.IGNORECASE) if longest_first else text


def contains_private(text: str, patterns: Iterable[str]) -> bool:
    """Return whether a part of a text matches one of the `patterns`."""
    return hide_private(text, patterns) != text
