"""Make arrays that may exceed the memory, by storing them in temporary files.

An array of at least `MASKFOLD_LARGE_MIB` MiB is stored in a file and mapped into memory. A picture of 30,000 × 30,000
pixels takes 0.8 GiB at one byte per pixel, and prediction needs several such arrays. If memory is short, the kernel can
write the contents of a mapped file back to the disk. Without swap space, it cannot do so with other memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LARGE_MIB = 512  # default of MASKFOLD_LARGE_MIB
BLOCK_VALUES = 2**22  # values that `row_blocks` puts into one block


def is_large(shape: Sequence[int], dtype: Any) -> bool:
    """Return whether `empty` stores an array of this shape and dtype in a file."""
    try:
        limit = float(os.environ.get("MASKFOLD_LARGE_MIB", LARGE_MIB))
    except ValueError:
        limit = LARGE_MIB
    return math.prod(shape) * np.dtype(dtype).itemsize >= limit * 2**20


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return a new C-ordered array with arbitrary values; a large array is a memory map of a temporary file.

    The file has no name, so that nothing is left behind if the process is killed. Its disk space is reserved before the
    file is mapped, because a memory map on a full disk kills the process. If the disk has too little space, the array
    is in memory.

    Args:
        shape: the array's shape.
        dtype: the array's dtype.

    Raises:
        MemoryError: the array fits neither on the disk nor in the free memory.
    """
    if not is_large(shape, dtype):
        return np.empty(tuple(shape), dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=_folder()) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=tuple(shape)))
    except OSError as error:
        import psutil

        if size > psutil.virtual_memory().available:
            raise MemoryError(
                f"An array of {size / 2**30:.1f} GiB does not fit into the free memory or into {_folder()} ({error})"
            ) from error
        return np.empty(tuple(shape), dtype)


def zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return a new array of zeros; like in `empty`, a large array is a memory map of a temporary file."""
    if not is_large(shape, dtype):
        return np.zeros(tuple(shape), dtype)
    array = empty(shape, dtype)
    if not isinstance(array.base, np.memmap):  # a new file contains zeros
        array[...] = 0
    return array


def copy(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Return a C-ordered copy of an array; a large copy is a memory map of a temporary file.

    Args:
        array: the array.
        dtype: dtype of the copy; None for the dtype of the array.
    """
    result = empty(array.shape, array.dtype if dtype is None else dtype)
    np.copyto(result, array, casting="unsafe")
    return result


def are_equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two arrays have equal shapes and values, without a temporary array of the same size.

    2D arrays are compared in square blocks, because decoded run lengths are arrays in Fortran order, and a block of
    whole rows would read every memory page of such an array.
    """
    if first.shape != second.shape:
        return False
    if first.size <= BLOCK_VALUES:
        return np.array_equal(first, second)
    if first.ndim != 2:
        return all(np.array_equal(first[rows], second[rows]) for rows in row_blocks(first.shape))
    side = math.isqrt(BLOCK_VALUES)
    return all(
        np.array_equal(first[top : top + side, left : left + side], second[top : top + side, left : left + side])
        for top in range(0, first.shape[0], side)
        for left in range(0, first.shape[1], side)
    )


def row_blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Yield slices of the first axis that together cover an array of this shape.

    Each slice has at most `BLOCK_VALUES` values, but at least one row, even if a row has more values. A caller that
    works block by block needs no temporary array of the full size. An array of up to `BLOCK_VALUES` values is one
    block.
    """
    rows = max(1, BLOCK_VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _folder() -> Path:
    """Return the folder for the temporary files: $TMPDIR, /var/tmp or the usual temporary folder, in this order.

    /var/tmp is preferred to /tmp because many systems keep /tmp in memory.
    """
    persistent = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(persistent, os.W_OK):
        return persistent
    return Path(tempfile.gettempdir())
