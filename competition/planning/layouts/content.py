"""Determine the content of a file: image or mask, 2D or 3D, and the label values of a mask."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from competition.data.image_types import Header
from competition.data.readers import (
    EXTENSIONS,
    NO_INTEGERS,
    OTHER_CHANNELS,
    extension_of,
    read_header,
    read_image,
    read_labels,
)
from competition.errors import MaskfoldError

Role = Literal["mask", "image", "either", "colours", "unreadable"]
MAX_LABELS = 64  # distinct values of a mask; only masks of numbered objects have more
# Minimum share of pairs of neighbouring pixels with equal values in a mask, without pairs in the background.
FLAT_SHARE = 0.5
SMALL_FLAT_SHARE = 0.4  # the same share for numbered objects of few pixels
COMPACT_SHARE = 0.4  # share of its bounding box that a numbered object fills at least; a disc fills 0.79
MIN_PIXELS = 9  # pixels of a numbered object; grey levels of a noisy 16-bit image have fewer
EXTREME_SHARE, EXTREME_WIDTH = 0.9, 24  # a lossy mask has this share of its values near 0 and 255
LOSSY_THRESHOLD = 128  # from this value on, a pixel of a lossy mask belongs to the class
MAX_SAMPLE = 2**22  # values that are read for the role of a file
MIN_SINGLE = 3  # fewer single slices may have small objects by chance
MAX_CHANNELS = 4  # an array with three axes is a 2D image if its first or last axis is at most this long


@dataclass(frozen=True)
class LabelValues:
    """Hold the label values of one mask.

    Attributes:
        counts: pairs of a label value and its number of pixels.
        lossy: whether the values scatter around 0 and 255, as in a JPEG.
        edges: pairs of a label value and its number of pixels at the edges of the image.
    """

    counts: tuple[tuple[int, int], ...]
    lossy: bool = False
    edges: tuple[tuple[int, int], ...] = ()

    @property
    def foreground(self) -> list[int]:
        """The values other than 0."""
        return [value for value, _ in self.counts if value != 0]


def dimensions_of(path: Path) -> int:
    """Return the number of spatial dimensions of a file: 2 for an image, 3 for a volume.

    Raises:
        MaskfoldError: the file cannot be read.
    """
    kind = EXTENSIONS.get(extension_of(path.name))
    if kind in ("nifti", "itk"):
        return 3 if _volume_depth(path) > 1 else 2
    if kind == "tiff":
        return 3 if _is_volume(path) and read_header(path, 3).shape[-1] > 1 else 2
    if kind == "numpy":
        header = read_header(path, 2) if _reads(path, 2) else None
        return 2 if header is not None and header.channels <= MAX_CHANNELS else 3
    return 2


def _volume_depth(path: Path) -> int:
    try:
        return read_header(path, 3).shape[2]
    except MaskfoldError:
        return 1


def _is_volume(path: Path) -> bool:
    return _reads(path, 3)


def _reads(path: Path, dimensions: int) -> bool:
    try:
        read_header(path, dimensions)
    except MaskfoldError:
        return False
    return True


@lru_cache(maxsize=4096)
def header_of(path: Path) -> Header | None:
    """Return the header of a file; None if the file cannot be read."""
    try:
        return read_header(path, dimensions_of(path))
    except MaskfoldError:
        return None


def reading_error(path: Path) -> MaskfoldError | None:
    """Return the error that reading a file raises; None if the file can be read."""
    try:
        read_header(path, dimensions_of(path))
    except MaskfoldError as error:
        return error
    return None


@lru_cache(maxsize=4096)
def role_of_file(path: Path) -> Role:
    """Return whether a file's values suggest an image or a mask.

    - `image`: an image;
    - `mask`: few values in flat regions, or only values near 0 and 255;
    - `colours`: a mask whose classes are colours;
    - `either`: all pixels have the same value, so the file may be an image or a mask;
    - `unreadable`: the file cannot be read.
    """
    try:
        dimensions = dimensions_of(path)
        header = read_header(path, dimensions)
    except MaskfoldError:
        return "unreadable"
    if header.dtype == "float32" and extension_of(path.name) in (".jpg", ".jpeg"):
        return "image"
    try:
        labels, _ = read_labels(path, dimensions)
    except MaskfoldError as error:
        return _role_of_channels(path, dimensions, error)
    return role_of_values(labels)


def role_of_values(labels: np.ndarray) -> Role:
    """Return the role that pixel values suggest: `mask`, `image`, or `either` if all are equal; see `role_of_file`."""
    step = min(max(1, math.ceil(labels.size / MAX_SAMPLE)), max(1, len(labels) // 8))
    block = labels[::step]  # whole rows, so that neighbours stay neighbours
    values = np.unique(block)
    if len(values) == 1:
        return "either"
    if len(values) == 2 or is_lossy(block):
        return "mask"
    flat = _flat_share(labels, step)
    if len(values) > MAX_LABELS and flat >= SMALL_FLAT_SHARE and _are_compact(block):
        return "mask"  # small objects have so many edges that few of their neighbours are equal
    return "mask" if flat >= (FLAT_SHARE if len(values) <= MAX_LABELS else 0.8) else "image"


def _are_compact(labels: np.ndarray) -> bool:
    """Return whether labels look like object numbers.

    They do if 0 occurs, and the pixels of most other values fill much of their bounding boxes.
    """
    from scipy.ndimage import find_objects

    values, places = np.unique(labels, return_inverse=True)
    if values[0] != 0:
        return False
    places = places.reshape(labels.shape)
    counts = np.bincount(places.ravel())[1:]
    sizes = [math.prod(part.stop - part.start for part in box) for box in find_objects(places)]
    return float(((counts >= MIN_PIXELS) & (counts >= COMPACT_SHARE * np.array(sizes))).mean()) >= 0.5


def _role_of_channels(path: Path, dimensions: int, error: MaskfoldError) -> Role:
    has_channels = OTHER_CHANNELS in error.message
    if not has_channels or dimensions == 3:
        return "image" if has_channels or NO_INTEGERS in error.message else "unreadable"
    colours = read_image(path, 2).array[:3].reshape(3, -1).T if header_channels(path) >= 3 else np.zeros((0, 3))
    distinct = np.unique(colours, axis=0)
    if 2 <= len(distinct) <= MAX_LABELS and len(colours) > 16 * len(distinct):
        return "colours"
    return "image"


def header_channels(path: Path) -> int:
    """Return the number of channels of a file; 0 if the file cannot be read."""
    header = header_of(path)
    return 0 if header is None else header.channels


def _flat_share(labels: np.ndarray, step: int = 1) -> float:
    """Return the share of pairs of neighbouring pixels with equal values; pairs of zeros do not count.

    In a volume, only the two axes with the larger shares count, because slices without a drawn mask may lie between
    slices with one.

    Args:
        labels: the labels.
        step: only every `step`-th row of the first axis is compared.
    """
    counts = []
    for axis in range(labels.ndim):
        first = np.take(labels, range(labels.shape[axis] - 1), axis=axis)[::step]
        second = np.take(labels, range(1, labels.shape[axis]), axis=axis)[::step]
        is_counted = (first != 0) | (second != 0)
        total = int(np.count_nonzero(is_counted))
        counts.append((int(np.count_nonzero((first == second) & is_counted)), total))
    best = sorted(counts, key=lambda count: count[0] / max(1, count[1]))[-2:]
    total = sum(count for _, count in best)
    return sum(equal for equal, _ in best) / total if total else 1.0


def is_lossy(labels: np.ndarray) -> bool:
    """Return whether the values of a black-and-white mask are inexact, because of JPEG compression or soft edges."""
    if labels.dtype != np.uint8:
        return False
    values = np.unique(labels)
    low, high = labels <= EXTREME_WIDTH, labels >= 255 - EXTREME_WIDTH
    if len(values) < 6 or not low.any() or not high.any() or float((low | high).mean()) < EXTREME_SHARE:
        return False
    if values[1] < EXTREME_WIDTH and values[-2] > 255 - EXTREME_WIDTH:
        return True
    middle = np.where(low | high, 0, labels)  # soft edges are lines of changing values, classes are regions
    return len(np.unique(middle)) > 4 and _flat_share(middle) < 0.3


@dataclass(frozen=True)
class Slices:
    """Describe the slices of one mask, to detect volumes with masks in some slices only.

    Attributes:
        values: label values of the mask.
        whole: label values that fill whole slices, and occur in no other slice.
        single: whether at least `MIN_SINGLE` slices have a foreground, and no two of them are neighbours.
    """

    values: frozenset[int]
    whole: frozenset[int] = frozenset()
    single: bool = False

    @classmethod
    def of(cls, slices: Sequence[tuple[int, int, Collection[int]]]) -> Slices:
        """Return the description of a mask from its slices along one axis.

        Args:
            slices: for each slice, its lowest label value, its highest label value, and a collection of label values.
                The collection is used only if the slice has several label values. It must contain these values. It
                may also contain the values of other slices with several label values.
        """
        mixed = {value for low, high, values in slices if low != high for value in values}
        uniform = {low for low, high, _ in slices if low == high}
        drawn = [place for place, (low, high, _) in enumerate(slices) if (low, high) != (0, 0)]
        is_single = len(drawn) >= MIN_SINGLE and all(after - before > 1 for before, after in itertools.pairwise(drawn))
        return cls(frozenset(mixed | uniform), frozenset(uniform - mixed if mixed else ()), is_single)


@lru_cache(maxsize=4096)
def slices_of(path: Path) -> Slices | None:
    """Return the description of a volume's mask from its slices along all axes; None if the file cannot be read.

    In the result, `whole` contains the values that fill whole slices along at least one axis. `single` is True if the
    slices along at least one axis meet the condition of `Slices.single`.
    """
    try:
        labels, _ = read_labels(path, 3)
    except MaskfoldError:
        return None
    found = []
    for axis in range(labels.ndim):
        slices = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        low, high = slices.min(axis=1), slices.max(axis=1)
        mixed = np.unique(slices[low != high]).tolist()
        found.append(Slices.of([(int(one), int(other), mixed) for one, other in zip(low, high, strict=True)]))
    whole = frozenset().union(*(item.whole for item in found))
    return Slices(found[0].values, whole, any(item.single for item in found))


@lru_cache(maxsize=65536)
def label_values(path: Path, dimensions: int) -> LabelValues | None:
    """Return the label values of a mask, and how many pixels each has; None if the mask cannot be read."""
    try:
        labels, _ = read_labels(path, dimensions)
    except MaskfoldError:
        return None
    edges = np.concatenate([np.take(labels, (0, -1), axis).ravel() for axis in range(labels.ndim)])
    return LabelValues(_count(labels), is_lossy(labels), _count(edges))


def _count(labels: np.ndarray) -> tuple[tuple[int, int], ...]:
    values, counts = np.unique(labels, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


def read_mask(path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Return the pixels in which a mask is not 0, as bool (*spatial); None if the mask cannot be read.

    If the values scatter around 0 and 255, as in a JPEG, return the pixels of at least `LOSSY_THRESHOLD`.
    """
    try:
        labels = read_labels(path, dimensions)[0]
    except MaskfoldError:
        return None
    return labels >= LOSSY_THRESHOLD if is_lossy(labels) else labels != 0


def common_role(roles: list[Role]) -> Role:
    """Return one role for files of one kind.

    The result is the first of `image`, `colours`, `mask` and `unreadable` that any of the files has. If all files have
    the role `either`, the result is `either`.

    Args:
        roles: roles of some of the files, at least one.
    """
    counts = Counter(role for role in roles if role != "either")
    if not counts:
        return "either" if roles else "unreadable"
    for role in ("image", "colours", "mask"):
        if counts[role]:
            return role
    return "unreadable"
