"""Whether the pixels of a PNG are all there and as they were written: by its checksums and the length of its data.

Decoders leave this out: Pillow looks at the checksums of the header only and takes a short stream for a black rest, and
OpenCV fills up whatever is missing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from competition.data.readers_types import unreadable

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type (PNG specification, 11.2.2)
# First column and row, and steps, of the seven passes of an interlaced file (8.2).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
BLOCK = 2**18  # bytes that are unpacked at once, so that a bomb stays small


def check_png(path: Path) -> None:
    """Reads a whole PNG once.

    Args:
        path: the file, of which a decoder has read the header already.

    Raises:
        MaskfoldError: a checksum of a chunk that makes pixels is wrong, or there are fewer pixels than the header says.
    """
    with path.open("rb") as file:
        file.seek(8)
        unpack, count, wanted = zlib.decompressobj(), 0, None
        for kind, body in _chunks(path, file):
            if kind == b"IHDR" and wanted is None:
                wanted = _length(body)
            elif kind == b"IDAT" and wanted is not None and count < wanted:
                count += _unpacked(unpack, body, wanted - count)
    if wanted is None or count < wanted:
        raise unreadable(path, f"it holds {count:,} of {wanted or 0:,} bytes of pixels")


def _chunks(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the chunks that make pixels, each checked."""
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head.ljust(8, b"\0"))
        if kind[:1].islower() and kind != b"tRNS":  # remarks
            file.seek(length + 4, 1)
            continue
        body, check = file.read(length), file.read(4)
        if len(body) < length or check != struct.pack(">I", zlib.crc32(kind + body)):
            raise unreadable(path, f"the checksum of its {kind.decode('latin1')} chunk is wrong")
        yield kind, body
        if kind == b"IEND":
            return
    raise unreadable(path, "it is cut short")


def _length(header: bytes) -> int:
    """Bytes of the unpacked lines, each with its filter in front."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    parts = PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, across, down in parts:
        wide, high = -(-(width - column) // across), -(-(height - row) // down)
        if wide > 0 and high > 0:
            total += high * (1 + -(-wide * SAMPLES[colour] * depth // 8))
    return total


def _unpacked(unpack: zlib._Decompress, body: bytes, most: int) -> int:
    """How many bytes come out of a chunk, at most `most`, or a block more."""
    count = len(unpack.decompress(body, BLOCK))
    while unpack.unconsumed_tail and count < most:
        count += len(unpack.decompress(unpack.unconsumed_tail, BLOCK))
    return count
