"""Reduce large images and masks to the resolution of a figure.

A panel of a figure has a few hundred pixels, but matplotlib needs about a hundred bytes for each pixel of its input.
Therefore, slices larger than `MAX_SIDE` are averaged over squares of pixels before they are drawn. All functions work
in blocks of rows, so that they need little memory in addition to their input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.masks import IGNORED

Array = NDArray[Any]
MAX_SIDE = 2048  # maximum side of a slice that is drawn without reduction, pixels
REDUCED_SIDE = 1024  # maximum side of a reduced slice, pixels
BLOCK_PIXELS = 2**22  # maximum number of pixels that are processed at a time


def reduction_step(shape: Sequence[int]) -> int:
    """Return the edge length of the squares of pixels that are averaged when a slice (rows, columns) is drawn.

    An edge length of 1 means that the slice is not reduced.
    """
    longest = max(shape)
    return 1 if longest <= MAX_SIDE else math.ceil(longest / REDUCED_SIDE)


def reduce_image(channels: Array, step: int) -> Array:
    """Average the channels of an image over squares of pixels.

    Args:
        channels: (C, rows, columns).
        step: edge length of the squares. With 1, the result is `channels` unchanged.

    Returns:
        The averages as float32.
    """
    if step == 1:
        return channels
    rows, columns = (np.arange(0, size, step) for size in channels.shape[-2:])
    sizes = np.outer(
        *(np.diff([*starts, size]) for starts, size in zip((rows, columns), channels.shape[-2:], strict=True))
    )
    result = np.empty((len(channels), len(rows), len(columns)), np.float32)
    for target, block in _blocks(channels.shape, step):
        sums = np.add.reduceat(channels[:, block], columns, axis=-1, dtype=np.float32)
        result[:, target] = np.add.reduceat(sums, np.arange(0, sums.shape[1], step), axis=1)
    return np.asarray(result / sizes.astype(np.float32))


def reduce_mask(mask: Array, step: int, value: int | None = None) -> NDArray[np.bool_]:
    """Reduce the rows and columns of a mask by the factor `step`.

    A pixel of the result is set if any pixel of its square of `step` × `step` pixels is set. So small objects stay
    visible.

    Args:
        mask: (…, rows, columns).
        step: edge length of the squares. With 1, the mask is not reduced.
        value: the value in `mask` that counts as set. None means that `mask` is bool.
    """
    if step == 1:
        return np.asarray(mask if value is None else mask == value)
    rows, columns = (np.arange(0, size, step) for size in mask.shape[-2:])
    result = np.empty((*mask.shape[:-2], len(rows), len(columns)), np.bool_)
    for target, block in _blocks(mask.shape, step):
        part = mask[..., block, :] if value is None else mask[..., block, :] == value
        part = np.logical_or.reduceat(part, columns, axis=-1)
        result[..., target, :] = np.logical_or.reduceat(part, np.arange(0, part.shape[-2], step), axis=-2)
    return result


def reduce_truth(truth: Array, comp: Competition, step: int) -> NDArray[np.uint8]:
    """Reduce the rows and columns of a stored mask (M, rows, columns) uint8 by the factor `step`.

    If a square of `step` × `step` pixels contains several exclusive classes, the last of them is the result's value.
    """
    if step == 1:
        return truth
    result = reduce_mask(truth, step, IGNORED).astype(np.uint8) * np.uint8(IGNORED)
    for value in (1,) if comp.labels == "overlapping" else range(1, len(comp.classes) + 1):
        result[reduce_mask(truth, step, value)] = value
    return result


def _blocks(shape: Sequence[int], step: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of rows of an array (…, rows, columns) that is reduced by the factor `step`.

    Yields:
        The range of rows in the result, and the range of rows in the input.
    """
    rows, width = shape[-2], math.prod(shape[:-2]) * shape[-1]
    count = max(1, BLOCK_PIXELS // (step * width))  # number of rows of the result per block
    for first in range(0, math.ceil(rows / step), count):
        yield slice(first, first + count), slice(first * step, min((first + count) * step, rows))
