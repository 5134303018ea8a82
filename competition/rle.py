"""Encode masks as the run-length text (RLE) of Kaggle and other hosts, and decode such text to masks.

The mask is first flattened, in the pixel order of the RLE format. Each run of foreground pixels then becomes two
numbers, the run's start and length:

    >>> import numpy as np
    >>> encode(np.array([[0, 1], [1, 1]]), RleFormat(order="column", base=1))
    '2 3'
    >>> decode("2 3", (2, 2), RleFormat()).astype(int)
    array([[0, 1],
           [1, 1]])

For speed, the mask is never transposed. Each pixel is compared with its neighbour along the slow axis of memory, so
that NumPy compares long rows at once. Only the positions at which the value changes are converted to the pixel order of
the format. The conversion of runs to text is in `competition.rle_text`.
"""

# This module does not use pycocotools. That package needs a Fortran-ordered copy, writes only its own compressed text,
# and takes 24 times as long for a mask of 8192 × 8192 pixels (python benchmarks/rle.py).

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.rle_text import IntArray, RleError, RleFormat, runs_to_text, text_to_runs

Mask = NDArray[np.bool_]
_CHUNK = 1 << 20  # values compared at a time, few enough for a core's cache


# Masks and label images


def encode(mask: NDArray[Any], fmt: RleFormat = RleFormat()) -> str:
    """Encode a mask as run-length text.

    Args:
        mask: bool or integers of any shape and memory order; all values except 0 are foreground.
        fmt: the RLE format.

    Returns:
        The text; `fmt.empty` for a mask without foreground.

    Raises:
        RleError: the array is not bool or integer.
    """
    mask = _as_mask(mask)
    edges = _change_positions(mask if fmt.order == "column" else mask.T)
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, mask.size)
    return runs_to_text(edges[::2], edges[1::2], mask.size, fmt)


def decode(text: str, shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True) -> Mask:
    """Decode run-length text to a mask.

    Args:
        text: run lengths from `encode` or a host. `fmt.empty` and blank text mean a mask without foreground.
        shape: the shape of the mask.
        fmt: the RLE format.
        strict: if False, accept texts that break the rules: merge unsorted or overlapping runs, skip runs of length 0,
            and clip runs at the end of the mask.

    Returns:
        bool array of `shape`, in Fortran memory order if `fmt.order` is `column`.

    Raises:
        RleError: the text breaks a rule. The message names the position of the wrong value in the text, counted from 1.
    """
    size = math.prod(shape)
    flat = _repeat_runs(*text_to_runs(text, size, fmt, strict), np.True_, size)
    return flat.reshape(shape, order="F" if fmt.order == "column" else "C")


def decode_runs(
    text: str, shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True
) -> tuple[IntArray, IntArray]:
    """Decode run-length text to the starts and ends of its runs, without building the mask.

    Args:
        text: as for `decode`.
        shape: the shape of the mask.
        fmt: the RLE format.
        strict: as for `decode`.

    Returns:
        The starts of the n runs and their ends, each (n,) int64. Both are pixel numbers in the pixel order of `fmt`,
        counted from 0. The end is the number of the first pixel after the run. Runs are sorted, have at least one pixel
        and do not overlap.

    Raises:
        RleError: as for `decode`.
    """
    return text_to_runs(text, math.prod(shape), fmt, strict)


def encode_labels(labels: NDArray[Any], fmt: RleFormat = RleFormat()) -> dict[int, str]:
    """Encode each object of a label image as run-length text, all in one pass.

    Args:
        labels: integers of any shape: 0 in the background, and the object's label in each object.
        fmt: the RLE format.

    Returns:
        A mapping from the label of each object, in ascending order, to the object's text.

    Raises:
        RleError: the array is not integer.
    """
    if labels.dtype.kind not in "bui":
        raise RleError(
            f"RLE of labels: found {labels.dtype}, expected integers.",
            "Convert the array to integers, for example with `labels.astype(int)`.",
        )
    ordered = labels if fmt.order == "column" else labels.T
    starts = _change_positions(ordered)
    ends = np.append(starts[1:], labels.size)
    run_labels = ordered[np.unravel_index(starts, ordered.shape, order="F")]
    order = np.argsort(run_labels, kind="stable")
    starts, ends = starts[order], ends[order]
    unique_labels, first = np.unique(run_labels[order], return_index=True)
    bounds = [*first.tolist(), len(order)]
    return {
        int(label): runs_to_text(starts[low:high], ends[low:high], labels.size, fmt)
        for label, low, high in zip(unique_labels.tolist(), bounds, bounds[1:], strict=False)
        if label != 0
    }


def decode_labels(
    texts: Sequence[str], shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True
) -> NDArray[np.int32]:
    """Decode the run-length texts of an image's objects to a label image.

    Args:
        texts: one run-length text per object.
        shape: the shape of the image.
        fmt: the RLE format.
        strict: as in `decode`.

    Returns:
        int32 array of `shape`: 0 in the background, and n in the object of text number n, counted from 1. Where objects
        share pixels, the later object overwrites the earlier object.

    Raises:
        RleError: as for `decode`.
    """
    return decode_overlapping_labels(texts, shape, fmt, strict)[0]


def decode_overlapping_labels(
    texts: Sequence[str], shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True
) -> tuple[NDArray[np.int32], dict[int, IntArray]]:
    """Decode the run-length texts of an image's objects to a label image, and list the pixels that objects share.

    Args:
        texts: one run-length text per object.
        shape: the shape of the image.
        fmt: the RLE format.
        strict: as in `decode`.

    Returns:
        The label image that `decode_labels` returns, and a dictionary of the objects that later objects overwrote,
        partly or completely. The key is the label of such an object. The value contains the numbers of its overwritten
        pixels, (n,) int64, in the pixel order of `fmt`, counted from 0.

    Raises:
        RleError: as for `decode`.
    """
    size = math.prod(shape)
    runs = [text_to_runs(text, size, fmt, strict) for text in texts]
    flat = draw_objects(runs, size)
    hidden: dict[int, IntArray] = {}
    if sum(int((ends - starts).sum()) for starts, ends in runs) != np.count_nonzero(flat):
        for label, (starts, ends) in enumerate(runs, start=1):
            parts = [np.flatnonzero(flat[start:end] != label) + start for start, end in zip(starts, ends, strict=True)]
            if len(positions := np.concatenate([*parts, np.empty(0, np.int64)])):
                hidden[label] = positions
    return flat.reshape(shape, order="F" if fmt.order == "column" else "C"), hidden


# Runs and arrays


def draw_objects(runs: Sequence[tuple[IntArray, IntArray]], size: int) -> NDArray[np.int32]:
    """Draw objects, which are given as runs, into a flattened label image.

    Args:
        runs: starts and ends of each object's runs, as `decode_runs` returns them.
        size: number of pixels of the image.

    Returns:
        (size,) int32: 0 for background, n for object number n, counted from 1. Later objects overwrite earlier
        objects. Element i is the pixel that has the number i in `runs`.
    """
    if not runs or not size:
        return large_arrays.zeros((size,), np.int32)
    starts, ends = (np.concatenate(edges) for edges in zip(*runs, strict=True))
    numbers = np.repeat(np.arange(1, len(runs) + 1, dtype=np.int32), [len(one) for one, _ in runs])
    order = np.argsort(starts, kind="stable")
    # objects overlap, so they are drawn one by one, and later ones overwrite earlier ones
    if (starts[order][1:] < ends[order][:-1]).any():
        flat = large_arrays.zeros((size,), np.int32)
        for start, end, number in zip(starts.tolist(), ends.tolist(), numbers.tolist(), strict=True):
            flat[start:end] = number
        return flat
    return _repeat_runs(starts[order], ends[order], numbers[order], size)


def runs_overlap(runs: Sequence[tuple[IntArray, IntArray]]) -> bool:
    """Return whether any two objects, each given as starts and ends of its runs, share a pixel."""
    if len(runs) < 2:
        return False
    starts, ends = (np.concatenate(edges) for edges in zip(*runs, strict=True))
    order = np.argsort(starts)  # if any two runs overlap, then two neighbouring runs in this order overlap
    return bool((starts[order][1:] < ends[order][:-1]).any())


def _repeat_runs(starts: IntArray, ends: IntArray, values: Any, size: int) -> NDArray[Any]:
    """Return an array (size,) that has the given values inside the runs, and 0 elsewhere.

    Args:
        starts: first position of each run, in ascending order.
        ends: position after the last pixel of each run.
        values: value inside the runs: a scalar for all runs, or an array with one value per run.
        size: length of the array.
    """
    counts = np.empty(2 * len(starts) + 1, np.int64)  # lengths of background and run, alternating
    counts[0:-1:2], counts[1:-1:2], counts[-1] = starts, ends, size
    counts[1:] -= counts[:-1].copy()  # several times as fast as `np.diff` for few runs
    colours = np.zeros(len(counts), values.dtype)
    colours[1::2] = values
    if not large_arrays.is_large((size,), values.dtype):
        return np.repeat(colours, counts)
    flat = large_arrays.zeros((size,), values.dtype)
    for start, end, value in zip(starts.tolist(), ends.tolist(), colours[1::2].tolist(), strict=True):
        flat[start:end] = value
    return flat


def _as_mask(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a mask as uint8, 0 for background and 1 for foreground; a bool mask is not copied."""
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui":
        raise RleError(
            f"RLE of a mask: found {mask.dtype}, expected bool or integers.",
            "First convert the array to a mask, for example with `probabilities > 0.5`.",
        )
    return (mask if mask.dtype == np.bool_ else mask != 0).view(np.uint8)


def _change_positions(values: NDArray[Any]) -> IntArray:
    """Return the positions, in ascending order, at which a value differs from the previous value in Fortran order.

    Positions are counted in Fortran order. The first value is compared with 0.
    """
    if values.size == 0:
        return np.empty(0, np.int64)
    if values.flags.f_contiguous:
        values = values.ravel(order="F")[:, None]  # a view
    values = np.ascontiguousarray(values)
    length, other_axes = values.shape[0], values.shape[1:]  # axis 0 is slow in memory and fast in Fortran order
    rows = values.reshape(length, -1)
    width = rows.shape[1]
    step = max(1, _CHUNK // width)
    differs = np.empty((min(step, length), width), np.bool_)
    chunks = []
    for low in range(0, length - 1, step):
        high = min(low + step, length - 1)
        part = np.not_equal(rows[low + 1 : high + 1], rows[low:high], out=differs[: high - low])
        chunks.append(np.flatnonzero(part) + (low + 1) * width)
    # changes between the end of a line along axis 0 and the beginning of the next line
    line_begins, line_ends = values[0].ravel(order="F"), values[-1].ravel(order="F")
    borders = np.flatnonzero(line_begins[1:] != line_ends[:-1]) + 1
    first = np.zeros(int(line_begins[0] != 0), np.int64)
    if width == 1:
        return np.concatenate([first, *chunks])
    memory_positions = np.concatenate(chunks) if chunks else np.empty(0, np.int64)
    index = memory_positions // width
    line = memory_positions - index * width
    if len(other_axes) > 1:
        line = np.ravel_multi_index(np.unravel_index(line, other_axes), other_axes, order="F")
    positions = np.concatenate([first, borders * length, index + line * length])
    positions.sort()
    return positions
