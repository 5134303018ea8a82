"""Reduce large images and masks to the resolution of a figure.

A panel of a figure has a few hundred pixels, but matplotlib needs about a hundred bytes for each pixel of its input.
Therefore slices larger than `MAX_SIDE` are averaged over squares of pixels before they are drawn. All functions work in
blocks of rows, so that they need little memory in addition to their input.
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
MAX_SIDE = 2048  # slices up to this size are drawn without reduction
REDUCED_SIDE = 1024  # length of the longer side of a reduced slice in pixels
BLOCK_PIXELS = 2**22


def reduction_step(shape: Sequence[int]) -> int:
    """Return the side of the pixel squares to average when a slice (rows, columns) is drawn; 1 means no reduction."""
    longest = max(shape)
    return 1 if longest <= MAX_SIDE else math.ceil(longest / REDUCED_SIDE)


def reduce_image(channels: Array, step: int) -> Array:
    """Average channels (C, rows, columns) over squares of `step` pixels, as float32; a step of 1 changes nothing."""
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
    """Return a mask whose rows and columns are reduced by the factor `step`.

    A square of `step` pixels is set if it contains any pixel of the mask, so that small objects stay visible.

    Args:
        mask: (…, rows, columns).
        step: side of the squares; 1 returns the mask unchanged.
        value: value in `mask` of the pixels to keep; None: `mask` is bool.
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
    """Return a stored mask (M, rows, columns) uint8 whose rows and columns are reduced by the factor `step`.

    If a square of `step` pixels contains several exclusive classes, the last class wins.
    """
    if step == 1:
        return truth
    result = reduce_mask(truth, step, IGNORED).astype(np.uint8) * np.uint8(IGNORED)
    for value in (1,) if comp.labels == "overlapping" else range(1, len(comp.classes) + 1):
        result[reduce_mask(truth, step, value)] = value
    return result


def _blocks(shape: Sequence[int], step: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of rows: the range of rows in the result, and the range of rows in the input (…, rows, columns)."""
    rows, width = shape[-2], math.prod(shape[:-2]) * shape[-1]
    count = max(1, BLOCK_PIXELS // (step * width))  # number of rows of the result per block
    for first in range(0, math.ceil(rows / step), count):
        yield slice(first, first + count), slice(first * step, min((first + count) * step, rows))
