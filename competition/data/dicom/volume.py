"""The values of a stack: rescaled slice by slice, on axes (X, Y, Z)."""

from __future__ import annotations

import math

import numpy as np

from competition.data.dicom.pixels import Pixels
from competition.data.dicom.refused import Refused
from competition.data.dicom.stack import Stack
from competition.data.readers_types import refuse_size

INT16 = np.iinfo(np.int16)


def load(stack: Stack, pixels: Pixels) -> np.ndarray:
    """Reads a volume.

    Args:
        stack: the slices in order.
        pixels: decodes them.

    Returns:
        (X, Y, Z): columns, rows, slices. int16 where every slope and intercept is a whole number and all values fit,
        else float32.

    Raises:
        Refused: a slice cannot be decoded, or the volume is larger than the memory.
        MaskfoldError: by `refuse_size`.
    """
    refuse_size(stack.frames[0].path, math.prod(stack.grid.shape) * 8)
    whole = all(frame.slope.is_integer() and frame.intercept.is_integer() for frame in stack.frames)
    # int64 would hold all of whole stored values; float64 holds those below 2^53, and others alike.
    volume = np.empty(stack.grid.shape, np.float32)
    narrow = np.empty(stack.grid.shape, np.int16) if whole else None
    # File after file, not slice after slice: the frames of an enhanced file are decoded together.
    order = sorted(range(len(stack.frames)), key=lambda z: (stack.frames[z].name, stack.frames[z].index))
    for z in order:
        frame = stack.frames[z]
        values = pixels.stored(frame).T.astype(np.float64) * frame.slope + frame.intercept
        if not np.isfinite(values).all():
            raise Refused(f"{frame.name} holds values that are not numbers")
        volume[:, :, z] = values
        if narrow is not None:
            if values.min() < INT16.min or values.max() > INT16.max or (values != np.rint(values)).any():
                narrow = None
            else:
                narrow[:, :, z] = values
    return volume if narrow is None else narrow
