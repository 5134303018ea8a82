"""Add channels to a preprocessed case, such as the probabilities of another network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.cache import PreprocessedCase
from competition.errors import MaskfoldError
from competition.io import write_array

UNCHANGED = {"lo": None, "hi": None, "shift": 0.0, "scale": 1.0}  # the normalisation of an added channel


def write_with_channels(folder: Path, case: PreprocessedCase, channels: np.ndarray) -> dict[str, Any]:
    """Write a preprocessed volume with further channels behind its own; the `build` of `get_or_build`.

    The channels are mapped to the grid of the case like an image: linearly, without normalisation, and with 0 in the
    padding. If both grids are equal, the values are copied.

    Args:
        folder: empty folder for the files of a preprocessed case.
        case: a preprocessed volume, with or without a mask.
        channels: (A, *file shape) float16 or float32.

    Returns:
        The content of `case.json`.

    Raises:
        MaskfoldError: the channels are on another grid than the case's file.
    """
    if channels.shape[1:] != case.geometry.file_shape:
        raise MaskfoldError(
            f"The further channels of case {case.id} have the wrong shape: found {channels.shape[1:]}, expected "
            f"{case.geometry.file_shape}, the shape of its image.",
            "Predict the case again from its present image.",
        )

    def all_channels() -> Iterator[np.ndarray]:
        yield from case.image
        for channel in channels:
            yield case.geometry.pad_channel(case.geometry.resample_channel(channel, order=1))

    shape = (len(case.image) + len(channels), *case.geometry.shape)
    write_array(folder / "image.npy", shape, np.float32, all_channels())
    for name in ("mask.npy", "foreground.npy"):
        if (case.folder / name).exists():
            link_or_copy(case.folder / name, folder / name)
    intensity = case.intensity.to_dict()
    return {
        "id": case.id,
        "geometry": case.geometry.to_dict(),
        "intensity": {key: [*values, *[UNCHANGED[key]] * len(channels)] for key, values in intensity.items()},
        "normalised": case.normalised,
    }


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
