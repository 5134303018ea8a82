"""Verify PNG files, and decode the most common kinds without unpacking them twice.

Decoders silently fill in pixels that are missing in a damaged file, so this module counts the pixels first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from competition.data.content.open_once import open_file
from competition.data.image_types import (
    DEFLATE_BOUND,
    check_declared_size,
    check_not_bomb,
    unreadable_error,
    wrong_dimensions_error,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples per pixel by colour type (PNG specification, 11.2.2)
# First column, first row, column step and row step of the seven passes of an interlaced file (8.2).
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_BLOCK = 2**18  # bytes unpacked at a time, so that a decompression bomb cannot fill the memory
PLAIN_MODES = {0: "L", 2: "RGB", 6: "RGBA"}  # Pillow's modes for the colour types that `decode_plain_png` decodes
# Chunks that do not affect pixels and that every decoder accepts, with their lengths; None: any length.
HARMLESS_CHUNKS = {b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"tEXt": None, b"tIME": 7}
MAX_PLAIN = 2**26  # bytes of pixels; a larger image is decoded by Pillow, which needs no copy of the unpacked pixels


def decode_plain_png(path: Path, dimensions: int) -> np.ndarray | None:
    """Verify and decode a grey, RGB or RGBA PNG of 8 bits per sample; the pixels are unpacked only once.

    The unpacked rows are passed to Pillow's PNG decoder without compression. Pillow's other steps are skipped, because
    they take longer than the decoder for a small image.

    Args:
        path: the file.
        dimensions: number of spatial axes that the competition expects.

    Returns:
        (C, H, W) uint8, as `raster_pixels` returns it; None if the file is another kind of PNG or image, is large, has
        unusual metadata, or may be damaged. Then Pillow must read it.

    Raises:
        MaskfoldError: the file is not 2D as expected, declares too large a size, or has fewer pixels than declared.
    """
    with open_file(path) as file:
        start = file.read(29)
        if start[:8] != SIGNATURE or start[12:16] != b"IHDR" or len(start) < 29:
            return None
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", start[16:29])
        channels = PNG_SAMPLES.get(colour, 1)
        if depth != 8 or colour not in PLAIN_MODES or not 0 < width * height * channels <= MAX_PLAIN:
            return None
        packed = _read_plain_chunks(file)
    if packed is None or interlaced > 1 or start[26:28] != b"\0\0":
        return None
    if dimensions != 2:
        raise wrong_dimensions_error(path, (height, width), dimensions)
    declared, size = width * height * channels, path.stat().st_size
    check_declared_size(path, declared, size * DEFLATE_BOUND)
    check_not_bomb(path, declared)
    expected = _unpacked_length(start[16:29])
    rows = zlib.decompressobj().decompress(packed, expected)
    if len(rows) < expected:
        raise unreadable_error(path, f"found {len(rows):,} bytes of pixels, expected {expected:,}")
    import PIL.Image

    mode = PLAIN_MODES[colour]
    try:
        image = PIL.Image.frombytes(mode, (width, height), zlib.compress(rows, 0), "zip", mode, interlaced)
    except ValueError:
        return None
    array = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
    return array.transpose(2, 0, 1)


def _read_plain_chunks(file: IO[bytes]) -> bytes | None:
    """Return the compressed pixels of a PNG; None if a chunk is unknown, incomplete or damaged."""
    file.seek(8)
    parts: list[bytes] = []
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body, check = file.read(length), file.read(4)
        if len(body) < length or check != struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))):
            return None
        if kind == b"IEND":
            return b"".join(parts)
        if kind == b"IDAT":
            parts.append(body)
        elif kind != b"IHDR" and HARMLESS_CHUNKS.get(kind, -1) not in (None, length):
            return None
    return None


def check_png(path: Path) -> None:
    """Read a whole PNG once and verify it.

    Args:
        path: the file, whose header a decoder has read already.

    Raises:
        MaskfoldError: the checksum of a pixel chunk is wrong, or the file has fewer pixels than its header declares.
    """
    with open_file(path) as file:
        file.seek(8)
        decompressor, count, expected = zlib.decompressobj(), 0, None
        for kind, body in _pixel_chunks(path, file):
            if kind == b"IHDR" and expected is None:
                expected = _unpacked_length(body)
            elif kind == b"IDAT" and expected is not None and count < expected:
                count += _count_unpacked(decompressor, body, expected - count)
    if expected is None or count < expected:
        raise unreadable_error(path, f"found {count:,} bytes of pixels, expected {expected or 0:,}")


def _pixel_chunks(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and content of each PNG chunk that affects pixels, after verifying the chunk's checksum."""
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head.ljust(8, b"\0"))
        if kind[:1].islower() and kind != b"tRNS":  # metadata
            file.seek(length + 4, 1)
            continue
        body, check = file.read(length), file.read(4)
        if len(body) < length or check != struct.pack(">I", zlib.crc32(kind + body)):
            raise unreadable_error(path, f"the checksum of its {kind.decode('latin1')} chunk is wrong")
        yield kind, body
        if kind == b"IEND":
            return
    raise unreadable_error(path, "it is truncated")


def _unpacked_length(header: bytes) -> int:
    """Return the number of bytes of a PNG's unpacked rows of pixels, each with its filter byte."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, column_step, row_step in passes:
        columns, rows = -(-(width - column) // column_step), -(-(height - row) // row_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * PNG_SAMPLES[colour] * depth // 8))
    return total


def _count_unpacked(decompressor: zlib._Decompress, body: bytes, limit: int) -> int:
    """Count the bytes that a chunk unpacks to; stop at most one block after `limit` bytes."""
    count = len(decompressor.decompress(body, PNG_BLOCK))
    while decompressor.unconsumed_tail and count < limit:
        count += len(decompressor.decompress(decompressor.unconsumed_tail, PNG_BLOCK))
    return count
