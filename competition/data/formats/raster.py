"""Read PNG, JPEG, JPEG 2000, BMP and GIF with Pillow, and colours of more than 8 bits with OpenCV."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.data.content.open_once import keep_contents, open_file
from competition.data.formats.png import check_png, decode_plain_png
from competition.data.image_types import (
    DEFLATE_BOUND,
    Header,
    Image,
    check_declared_size,
    check_not_bomb,
    unreadable_error,
    wrong_dimensions_error,
)
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

RASTER_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 3}
DEEP_MODES = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
# A JPEG has at least one bit for each 8×8 block of a component. With the strongest subsampling that ISO/IEC 10918-1
# allows, its components (at most four) have at least ten such blocks per 32×32 pixels. So one byte unpacks to at most 4
# × 1024 × 8 / 10 bytes.
JPEG_BOUND = 4096
JPEG_2000 = "JPEG2000"  # Pillow's name of the format
JPEG_2000_START = b"\xff\x4f\xff\x51"  # markers SOC and SIZ of a codestream (ISO/IEC 15444-1, A.4.1 and A.5.1)
JPEG_2000_HEADER = 2**16  # a codestream begins within this many bytes, after boxes such as a colour profile


def raster_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read shape, number of channels and dtype without decoding a pixel.

    Args:
        path: the file.
        dimensions: must be 2.
        labels: whether the file is a label file. If so, a palette image has one channel, the indices.
    """
    with open_raster(path) as image:
        head = _raster_header(path, image, dimensions)[0]
        return replace(head, channels=1) if labels and image.mode == "P" else head


def _raster_header(path: Path, image: PilImage, dimensions: int) -> tuple[Header, int]:
    """Return the header of a raster image, and its bits per sample."""
    shape = (image.height, image.width)
    if dimensions != 2:
        raise wrong_dimensions_error(path, shape, dimensions)
    mode, depth = _decoded_mode(image), _bits_per_sample(path, image)
    _check_packed_size(path, image, shape, depth)
    dtype = "uint16" if depth > 8 else DEEP_MODES.get(mode, "uint8")
    return Header(shape, (1.0, 1.0), None, RASTER_CHANNELS[mode], dtype), depth


def raster_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Decode a 2D image as (C, H, W).

    Args:
        path: the file.
        dimensions: must be 2.
        labels: whether the file is a label file. If True, an image with a palette becomes its indices, and values of
            1, 2 or 4 bits stay as stored. If False, an image with a palette becomes its colours, and values of 1, 2 or
            4 bits are scaled to 0…255.
    """
    with keep_contents():
        if (plain := decode_plain_png(path, dimensions)) is not None:
            return Image(plain, (1.0, 1.0))
        return _decode_with_pillow(path, dimensions, labels)


def _decode_with_pillow(path: Path, dimensions: int, labels: bool) -> Image:
    """Decode an image of any kind; arguments as for `raster_pixels`."""
    with open_raster(path) as image:
        head, depth = _raster_header(path, image, dimensions)
        declared = head.shape[0] * head.shape[1] * head.channels * np.dtype(head.dtype).itemsize
        check_declared_size(path, declared)
        check_not_bomb(path, declared)
        if image.format == "PNG":
            check_png(path)  # because Pillow and OpenCV silently fill in pixels that damaged data lack
        if depth > 8 and (image.mode not in DEEP_MODES or image.format == JPEG_2000):
            return _decode_deep(path, head.channels)
        array = _raster_labels(image, depth) if labels else np.asarray(image.convert(_decoded_mode(image)))
    if array.dtype == bool:
        array = array.astype(np.uint8) * (1 if labels else 255)
    if depth == 16 and array.dtype != np.uint16:
        array = array.astype(np.uint16)
    return Image(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), (1.0, 1.0))


@contextmanager
def open_raster(path: Path) -> Iterator[PilImage]:
    """Open a PNG, JPEG, JPEG 2000, BMP or GIF with Pillow."""
    import PIL.features
    import PIL.Image

    # Pillow's limit depends neither on the file size nor on the free memory; `check_declared_size` checks both.
    PIL.Image.MAX_IMAGE_PIXELS = None
    if path.suffix.lower() in (".jp2", ".j2k") and path.exists() and not PIL.features.check("jpg_2000"):
        raise MaskfoldError(
            f"{path} is a JPEG 2000 file, but the installed Pillow cannot read this format (it was built without "
            "OpenJPEG).",
            "Install a Pillow that can read it: pip install --force-reinstall --only-binary :all: pillow.",
            status=2,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about metadata do not concern the pixels
        with open_file(path) as file, PIL.Image.open(file, formats=("PNG", "JPEG", JPEG_2000, "BMP", "GIF")) as image:
            yield image


def _decoded_mode(image: PilImage) -> str:
    """Return the Pillow mode, such as RGB, into which an image (not a label file) is decoded."""
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    if image.mode not in RASTER_CHANNELS:
        return "RGB"
    return "RGB" if image.mode == "CMYK" else image.mode


def _bits_per_sample(path: Path, image: PilImage) -> int:
    """Return the number of bits per channel of a pixel.

    Pillow does not report this number for a PNG, so it is read from byte 24 of the file (PNG specification, IHDR).
    """
    if image.format == JPEG_2000:
        return _jpeg_2000_bits(path)
    if image.format != "PNG":
        return 8
    with open_file(path) as file:
        return file.read(25)[24]


def _jpeg_2000_bits(path: Path) -> int:
    """Return the largest number of bits per component that the segment SIZ of the file declares.

    Raises:
        MaskfoldError: a component has a sign, or more than 16 bits.
    """
    with open_file(path) as file:
        start = file.read(JPEG_2000_HEADER)
    segment = start[start.find(JPEG_2000_START) + 40 :] if JPEG_2000_START in start else b""
    sizes = segment[2 : 2 + 3 * int.from_bytes(segment[:2], "big") : 3]  # three bytes per component
    if not sizes:
        raise unreadable_error(path, "it has no JPEG 2000 codestream")
    bits = max(size & 127 for size in sizes) + 1
    if bits > 16 or any(size & 128 for size in sizes):
        signs = "signed" if any(size & 128 for size in sizes) else "unsigned"
        raise unreadable_error(
            path, f"found {signs} values of {bits} bits, expected unsigned values of up to 16 bits", "Save it as TIFF"
        )
    return bits


def _check_packed_size(path: Path, image: PilImage, shape: tuple[int, int], depth: int) -> None:
    """Check that a PNG or JPEG does not declare more pixels than its bytes can unpack to."""
    bound = {"PNG": DEFLATE_BOUND, "JPEG": JPEG_BOUND}.get(image.format or "")
    if bound is not None:
        row = -(-shape[1] * RASTER_CHANNELS.get(image.mode, 1) * depth // 8)
        check_declared_size(path, shape[0] * row, path.stat().st_size * bound)


def _raster_labels(image: PilImage, depth: int) -> np.ndarray:
    """Return the stored values of a label image; undo Pillow's scaling of 2- and 4-bit grey values to 8 bits."""
    array = np.asarray(image)
    if image.mode == "L" and depth in (2, 4):
        return array // (255 // (2**depth - 1))
    return array


def _decode_deep(path: Path, channels: int) -> Image:
    """Decode a 16-bit colour PNG or a JPEG 2000 of more than 8 bits with OpenCV, because Pillow would scale its values.

    The result has the first `channels` of red, green, blue and alpha. OpenCV itself returns BGR, and may add an alpha
    channel for one transparent colour.
    """
    import cv2

    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise unreadable_error(path, "OpenCV cannot decode it")
    if array.ndim == 2:
        return Image(array[None], (1.0, 1.0))
    order = [2, 1, 0, 3][:channels]
    return Image(np.ascontiguousarray(np.moveaxis(array, -1, 0)[order]), (1.0, 1.0))
