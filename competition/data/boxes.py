"""The part of an image that holds something: the boxes of `prepare.crop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from competition.config.experiment import Prepare

Hits = Callable[[np.ndarray], np.ndarray]
Box = tuple[tuple[int, int], ...]  # (start, stop) per spatial axis

LOW, HIGH, SHARE = 2.0, 98.0, 0.1  # percentiles of an image, and how far from the lower to the upper one its content begins
MARGIN = 2  # voxels around what was found
SAMPLE = 2**20  # voxels that percentiles are computed from


def crop_box(array: np.ndarray, prepare: Prepare) -> Box:
    """The box that `prepare.crop` keeps of an image (C, *spatial), which is only looked at."""
    if prepare.crop == "nonzero":
        return nonzero_box(array)
    if prepare.crop == "foreground":
        return foreground_box(array, prepare)
    return tuple((0, n) for n in array.shape[1:])


def nonzero_box(array: np.ndarray) -> Box:
    """(start, stop) per spatial axis of what is not 0 in every channel of (C, *spatial); all of an empty image."""
    return _box(array, [lambda plane: plane != 0] * len(array))


def foreground_box(array: np.ndarray, prepare: Prepare) -> Box:
    """(start, stop) per spatial axis of what is brighter than the dark surroundings in some channel of (C, *spatial).

    The content of a channel begins a tenth of the way from its 2nd to its 98th percentile: the rough threshold of BET
    (Smith 2002, Fast robust automated brain extraction, Human Brain Mapping 17:143-155, doi:10.1002/hbm.10062). It is low, so
    that dim tissue stays: of a CT the air of -1024 goes and the body stays with its skin, where the 0 that
    `nonzero_box` looks for is water. It is compared with means over 3×3 pixels, so that specks of noise do not count.
    With `prepare.intensity: window`, values are clipped to the window first: what it shows black is surroundings, be it
    air, a table of foam, or a scanner's padding of -3024. Two voxels are added on each side. Images whose surroundings
    are bright, or as noisy as a twentieth of the contrast, stay whole.
    """
    import cv2

    def looks(channel: np.ndarray) -> Hits:
        level = content_begins(channel, prepare)
        return lambda plane: cv2.blur(_shown(plane, prepare), (3, 3), borderType=cv2.BORDER_REPLICATE) > level

    box = array if array.ndim == 4 else array[:, None]  # a picture is a volume of one plane
    return _box(box, [looks(channel) for channel in box], MARGIN)[4 - array.ndim:]


def content_begins(channel: np.ndarray, prepare: Prepare) -> float:
    """The value above which one channel (*spatial) has content; see `foreground_box`."""
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / channel.ndim))))
    sample = channel[(slice(None, None, step),) * channel.ndim]  # every so many-th voxel along each axis
    low, high = np.percentile(_shown(sample, prepare), (LOW, HIGH))
    return float(low + SHARE * (high - low))


def _shown(values: np.ndarray, prepare: Prepare) -> np.ndarray:
    """A float32 copy in C order, clipped to the window where there is one."""
    shown = np.array(values, np.float32, order="C")
    if prepare.intensity == "window" and prepare.window is not None:
        level, width = prepare.window
        np.clip(shown, level - width / 2, level + width / 2, out=shown)
    return shown


def _box(array: np.ndarray, hits: Sequence[Hits], margin: int = 0) -> Box:
    """The box of what its channel's `hits` finds in any channel; all of an image in which nothing is found."""
    found: list[np.ndarray] = [np.zeros(n, bool) for n in array.shape[1:]]
    for channel, find in zip(array, hits, strict=True):
        for index, plane in enumerate(channel):  # plane by plane: no copy of a whole volume
            there = find(plane)
            found[0][index] |= there.any()
            for axis in range(there.ndim):
                found[axis + 1] |= there.any(axis=tuple(other for other in range(there.ndim) if other != axis))
    if not found[0].any():
        return tuple((0, n) for n in array.shape[1:])
    return tuple((max(0, int(np.argmax(axis)) - margin), min(len(axis), int(len(axis) - np.argmax(axis[::-1])) + margin))
                 for axis in found)
