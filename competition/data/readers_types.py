"""What every reader gives, and the checks that all of them share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from competition.config.errors import MaskfoldError

# Deflate (PNG, .gz, .npz) never packs more than 1,032 bytes into one (zlib's technical notes, "maximum compression
# factor"); the rest is room for headers.
DEFLATE_BOUND = 1100
# What unpacks to more than a GiB, and to more than a hundred times its own size, is no image but a bomb. The sparse masks
# that pack better than that stay below: 512×512×512 voxels, even as float64.
MOST_UNPACKED, MOST_TIMES = 2**30, 100


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in memory.

    Attributes:
        array: (C, *spatial), in the file's own order of axes and, but for scaled and double-precision files that
            become float32, in its own dtype.
        spacing: mm along each spatial axis; ones where the file does not say.
        affine: 4×4 float64, voxel to world in mm; None where the format has none.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says about itself before its pixels are read.

    Attributes:
        shape: the spatial axes.
        spacing: mm along each of them; ones where the file does not say.
        affine: 4×4 float64, voxel to world in mm; None where the format has none.
        channels: channels of the image.
        dtype: numpy's name of the dtype that `read_image` gives.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None
    channels: int
    dtype: str


def unreadable(path: Path, why: object) -> MaskfoldError:
    """The error for a file whose bytes are not a sound image."""
    return MaskfoldError(f"{path} cannot be read ({why}).",
                         "Replace it by a whole copy, or leave the case out with competition.on_bad_case=skip.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises on broken bytes into one `MaskfoldError` that names the file.

    Raises:
        MaskfoldError: for anything that goes wrong inside; status 2 where a package is missing.
    """
    try:
        yield
    except MaskfoldError:
        raise
    except FileNotFoundError as error:
        raise MaskfoldError(f"{path} does not exist.",
                            "Check competition.root and the patterns of the competition's YAML.") from error
    except ImportError as error:  # of status 2: `on_bad_case: skip` would leave out every case for it
        package = error.name or str(error)
        raise MaskfoldError(f"{path} needs the package {package}, which cannot be imported here.",
                            f"Install it: pip install {package}.", status=2) from error
    except Exception as error:  # decoders meet arbitrary bytes and raise arbitrary types
        words = " ".join(str(error).split())
        raise unreadable(path, f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__) from error


def refuse_size(path: Path, declared: int, room: int | None = None) -> None:
    """Refuses a file before its pixels are allocated, where its header promises too much.

    Args:
        path: the file.
        declared: bytes of its pixels, by its header.
        room: bytes that the file can hold at most; None where its compression has no useful bound.

    Raises:
        MaskfoldError: the file is too short for what it declares, or the machine's free memory is.
    """
    if room is not None and declared > room:
        raise unreadable(path, f"its header declares {declared:,} bytes of pixels and the file holds {room:,} at most")
    import psutil

    free = psutil.virtual_memory().available
    if declared > free:
        raise MaskfoldError(
            f"{path} cannot be read (its header declares {declared / 2**30:,.1f} GiB of pixels "
            f"and {free / 2**30:,.1f} GiB of memory are free).",
            "Cut it into smaller images, or leave the case out with competition.on_bad_case=skip.")


def refuse_bomb(path: Path, declared: int) -> None:
    """Refuses a small file that would fill the memory.

    Args:
        path: the file.
        declared: bytes of its pixels, by its header.

    Raises:
        MaskfoldError: it would unpack to more than `MOST_UNPACKED` bytes and `MOST_TIMES` its size.
    """
    size = path.stat().st_size
    if declared > MOST_UNPACKED and declared > MOST_TIMES * size:
        raise unreadable(path, f"its {size:,} bytes would unpack to {declared:,}, as no image's do")


def channels_first(array: np.ndarray, dimensions: int, path: Path) -> np.ndarray:
    """Finds the channel axis of a bare array.

    An array with one axis more than `dimensions` holds channels along its first or its last axis: the shorter of the
    two, the last if both are equal.

    Args:
        array: `dimensions` or `dimensions + 1` axes.
        dimensions: 2 or 3.
        path: where it came from.

    Returns:
        (C, *spatial), a view.
    """
    if array.ndim == dimensions:
        return array[None]
    if array.ndim == dimensions + 1:
        return array if array.shape[0] < array.shape[-1] else np.moveaxis(array, -1, 0)
    raise wrong_dimensions(path, array.shape, dimensions)


def wrong_dimensions(path: Path, shape: tuple[int, ...], dimensions: int) -> MaskfoldError:
    """The error for a picture where a volume is wanted, or the reverse."""
    size = "×".join(map(str, shape))
    if dimensions == 3:
        return MaskfoldError(f"{path} is a flat picture ({size}), but competition.dimensions is 3.",
                             "Set `dimensions: 2`, or name the slices of a stack with {z} in the pattern.")
    return MaskfoldError(f"{path} is {size}, which is no picture, but competition.dimensions is 2.",
                         "Set `dimensions: 3`, or give the slices as pictures.")


def count(shape: tuple[int, ...], dtype: np.dtype | str, channels: int = 1) -> int:
    """Bytes of `channels` × `shape` values, without overflow."""
    return math.prod(shape) * channels * np.dtype(dtype).itemsize
