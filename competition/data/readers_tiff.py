"""TIFF files, decoded by tifffile; by OpenCV where the compression needs a codec that tifffile lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.data.readers_types import (
    Header,
    Picture,
    count,
    refuse_bomb,
    refuse_size,
    unreadable,
    wrong_dimensions,
)

if TYPE_CHECKING:
    from tifffile import TiffPageSeries

UNCOMPRESSED, WHITE_IS_ZERO, PALETTE = 1, 0, 3  # TIFF 6.0, tags 259 and 262


def header(path: Path, dimensions: int) -> Header:
    """Reads size, pages and depth without decoding a pixel."""
    from tifffile import TiffFile

    with TiffFile(path) as file:
        series = file.series[0]
        shape, channels = _layout(path, series, dimensions)
        dtype = np.dtype(series.dtype)
        if dtype.kind not in "biuf":
            raise unreadable(path, f"its values are {dtype}")
        if series.keyframe.photometric == PALETTE:
            return Header(shape, (1.0,) * dimensions, None, channels * 3, "uint8")
        name = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
        return Header(shape, (1.0,) * dimensions, None, channels, name)


def pixels(path: Path, dimensions: int, labels: bool) -> Picture:
    """Decodes all pages of the first series (the full resolution of a pyramid).

    Args:
        path: the file.
        dimensions: 2 takes pages as channels, (C, H, W); 3 takes them as slices, (C, H, W, Z). Where an ImageJ or
            OME file names slices and channels both, that is followed.
        labels: True gives a palette's indices and bits as 0 and 1; False its colours, and bits as 0 and 255.
    """
    from tifffile import TiffFile

    with TiffFile(path) as file:
        series = file.series[0]
        shape, channels = _layout(path, series, dimensions)
        _refuse_size(path, series, count(shape, series.dtype, channels))
        array = _values(path, series)
        if array.dtype == bool:
            array = array.astype(np.uint8) * (1 if labels else 255)
        array = _arranged(array, series, dimensions)
        if series.keyframe.photometric == PALETTE and not labels:
            colours = (np.asarray(series.keyframe.colormap) >> 8).astype(np.uint8)  # (3, colours), 16 bits in the file
            array = np.concatenate([colours[:, channel] for channel in array])
    return Picture(array, (1.0,) * dimensions)


def _refuse_size(path: Path, series: TiffPageSeries, unpacked: int) -> None:
    """Uncompressed pages must be in the file, several pixels to a byte where they have few bits."""
    packed = unpacked * series.keyframe.bitspersample // (8 * np.dtype(series.dtype).itemsize)
    plain = series.keyframe.compression == UNCOMPRESSED and not series.is_multifile
    refuse_size(path, packed, path.stat().st_size if plain else None)
    if not series.is_multifile:
        refuse_bomb(path, unpacked if series.keyframe.compression != UNCOMPRESSED else packed)
    refuse_size(path, unpacked)


def _stack(series: TiffPageSeries) -> tuple[int, int]:
    """How pages divide into (slices, channels); channels are 1 unless the file names them beside slices."""
    pages = math.prod(series.shape) // max(math.prod(series.keyframe.shape), 1)
    channels = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    return (pages // channels, channels) if 1 < channels < pages else (pages, 1)


def _layout(path: Path, series: TiffPageSeries, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Spatial shape and channels."""
    page = dict(zip(series.keyframe.axes, series.keyframe.shape, strict=True))
    if set(page) - set("YXS"):
        raise unreadable(path, f"a page has the axes {series.keyframe.axes}")
    slices, channels = _stack(series)
    samples, flat = page.get("S", 1), (page["Y"], page["X"])
    if dimensions == 2:
        return flat, slices * channels * samples
    if series.keyframe.shape == series.shape:
        raise wrong_dimensions(path, flat, dimensions)
    return (*flat, slices), channels * samples


def _values(path: Path, series: TiffPageSeries) -> np.ndarray:
    """The series in its own order of axes, with white as the larger number."""
    try:
        array = np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        pages = _pages(path, series)
        if sum(page.size for page in pages) != math.prod(series.shape):
            raise unreadable(path, "its compression, "
                             f"{getattr(series.keyframe.compression, 'name', 'unknown')}, cannot be undone") from error
        return np.stack(pages).reshape(series.shape)
    if series.keyframe.photometric == WHITE_IS_ZERO:
        return ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
    return array


def _pages(path: Path, series: TiffPageSeries) -> list[np.ndarray]:
    """Pages by libtiff, which knows LZW, JPEG and the fax codes: through Pillow up to 8 bits, OpenCV for more."""
    if series.keyframe.bitspersample <= 8:
        from PIL import Image, ImageSequence

        Image.MAX_IMAGE_PIXELS = None  # `refuse_size` has looked at it
        with Image.open(path, formats=("TIFF",)) as file:
            pages = [np.array(page) for page in ImageSequence.Iterator(file)]
    else:
        import cv2

        _, found = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
        pages = [page if page.ndim == 2 else page[..., [2, 1, 0, 3][: page.shape[2]]] for page in found]
    return [np.moveaxis(page, -1, 0) for page in pages] if series.keyframe.axes == "SYX" else pages


def _arranged(array: np.ndarray, series: TiffPageSeries, dimensions: int) -> np.ndarray:
    """Whatever the order in the file, (C, H, W) or (C, H, W, Z)."""
    page = series.keyframe
    slices, channels = _stack(series)
    if channels > 1:  # pages in the order slices, channels
        array = np.moveaxis(array, series.axes.index("C"), -len(page.shape) - 1)
    array = array.reshape(slices, channels, *page.shape)
    if "S" not in page.axes:
        array = array[:, :, None]
    elif page.axes != "SYX":
        array = np.moveaxis(array, -1, 2)  # (slices, channels, samples, H, W)
    if dimensions == 3:
        array = np.moveaxis(array, 0, -1)
    return array.reshape(-1, *array.shape[-dimensions:])
