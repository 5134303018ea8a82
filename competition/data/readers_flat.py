"""PNG, JPEG, BMP and GIF files, decoded by Pillow; by OpenCV where Pillow would cut 16-bit colours to 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.data.readers_png import check_png
from competition.data.readers_types import (
    DEFLATE_BOUND,
    Header,
    Picture,
    refuse_bomb,
    refuse_size,
    unreadable,
    wrong_dimensions,
)

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 3}
DEEP = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}


def header(path: Path, dimensions: int) -> Header:
    """Reads size, channels and depth without decoding a pixel."""
    if dimensions != 2:
        with _opened(path) as picture:
            raise wrong_dimensions(path, (picture.height, picture.width), dimensions)
    with _opened(path) as picture:
        mode = _decoded_mode(picture)
        dtype = "uint16" if _depth(path, picture) == 16 else DEEP.get(mode, "uint8")
        shape = (picture.height, picture.width)
        _refuse_empty_promise(path, picture, shape)
        return Header(shape, (1.0, 1.0), None, CHANNELS[mode], dtype)


def pixels(path: Path, dimensions: int, labels: bool) -> Picture:
    """Decodes a picture as (C, H, W).

    An orientation in a JPEG's EXIF block is not applied: masks and run lengths are drawn on the pixels as they are
    stored, and turning the image alone would tear the two apart.

    Args:
        path: the file.
        dimensions: 2.
        labels: True gives a palette's indices and the raw values of 1-, 2- and 4-bit files; False gives the palette's
            colours, and stretches few bits to 0…255.
    """
    head = header(path, dimensions)
    declared = head.shape[0] * head.shape[1] * head.channels * np.dtype(head.dtype).itemsize
    refuse_size(path, declared)
    refuse_bomb(path, declared)
    with _opened(path) as picture:
        if picture.format == "PNG":
            check_png(path)  # Pillow and OpenCV both fill what damaged data lack, without a word
        depth = _depth(path, picture)
        if depth == 16 and picture.mode not in DEEP:
            return _deep_colours(path, head.channels)
        array = _labels(picture, depth) if labels else np.asarray(picture.convert(_decoded_mode(picture)))
    if array.dtype == bool:
        array = array.astype(np.uint8) * (1 if labels else 255)
    if depth == 16 and array.dtype != np.uint16:
        array = array.astype(np.uint16)
    return Picture(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), (1.0, 1.0))


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image

    # Pillow's own limit knows neither the size of the file nor the free memory; `refuse_size` does.
    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata say nothing about the pixels
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "GIF")) as picture:
            yield picture


def _decoded_mode(picture: Image) -> str:
    """The mode in which an image (not a label file) is given."""
    if picture.mode in ("P", "PA"):
        return "RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB"
    if picture.mode not in CHANNELS:
        return "RGB"
    return "RGB" if picture.mode == "CMYK" else picture.mode


def _depth(path: Path, picture: Image) -> int:
    """Bits per sample; Pillow hides a PNG's, which stand in byte 24 of the file (PNG specification, IHDR)."""
    if picture.format != "PNG":
        return 8
    with path.open("rb") as file:
        return file.read(25)[24]


def _refuse_empty_promise(path: Path, picture: Image, shape: tuple[int, int]) -> None:
    """A PNG cannot unpack to more than deflate's bound."""
    if picture.format == "PNG":
        row = -(-shape[1] * CHANNELS.get(picture.mode, 1) * _depth(path, picture) // 8)
        refuse_size(path, shape[0] * row, path.stat().st_size * DEFLATE_BOUND)


def _labels(picture: Image, depth: int) -> np.ndarray:
    """The values as they are stored: Pillow keeps a palette's indices, but stretches 2 and 4 bits of grey."""
    array = np.asarray(picture)
    if picture.mode == "L" and depth in (2, 4):
        return array // (255 // (2**depth - 1))
    return array


def _deep_colours(path: Path, channels: int) -> Picture:
    """A PNG of 16-bit colours; OpenCV gives blue first, and may add an alpha channel for one transparent colour."""
    import cv2

    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise unreadable(path, "OpenCV cannot decode it")
    if array.ndim == 2:
        return Picture(array[None], (1.0, 1.0))
    order = [2, 1, 0, 3][:channels]
    return Picture(np.ascontiguousarray(np.moveaxis(array, -1, 0)[order]), (1.0, 1.0))
