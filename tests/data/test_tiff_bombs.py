"""A small TIFF whose strips or tiles unpack to more than its header declares is an error, not gigabytes of memory."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from competition.data.formats import tiff_decoders
from competition.data.readers import read_header, read_image, read_labels
from competition.errors import MaskfoldError
from competition.viz import preview

DEFLATE, LZMA = 8, 34925  # tag 259
MIB = 2**20
EXCESS = 64 * MIB  # bytes that a strip of the files below unpacks to; the header declares 64 × 64 pixels


def compress(compression: int, data: bytes) -> bytes:
    return zlib.compress(data) if compression == DEFLATE else lzma.compress(data, preset=0)


def write(
    path: Path,
    compression: int,
    segments: list[bytes],
    *,
    size: tuple[int, int] = (64, 64),
    tile: int = 0,
    rows: int = 0,
    bits: int = 8,
) -> Path:
    """Write a TIFF of `size` and `bits` per pixel with these compressed strips (of `rows` rows) or square tiles."""
    height, width = size
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile} if tile else {278: rows or height}
    offset_tag, count_tag = (324, 325) if tile else (273, 279)
    entries = len(tags) + 2
    start = 8 + 2 + 12 * entries + 4
    lists = 4 * len(segments) if len(segments) > 1 else 0  # one value is in the entry itself
    data = start + 2 * lists
    offsets = [data + sum(map(len, segments[:index])) for index in range(len(segments))]
    counts = [len(segment) for segment in segments]
    fields = [(tag, 1, struct.pack("<I", value)) for tag, value in tags.items()]
    for tag, values, position in ((offset_tag, offsets, start), (count_tag, counts, start + lists)):
        fields.append((tag, len(values), struct.pack("<I", position if lists else values[0])))
    body = b"".join(struct.pack("<HHI", tag, 4, count) + value for tag, count, value in sorted(fields))
    listed = struct.pack(f"<{len(offsets)}I", *offsets) + struct.pack(f"<{len(counts)}I", *counts) if lists else b""
    head = struct.pack("<2sHIH", b"II", 42, 8, entries) + body + bytes(4) + listed
    path.write_bytes(head + b"".join(segments))
    return path


@pytest.fixture(params=[DEFLATE, LZMA], ids=["deflate", "lzma"])
def compression(request: pytest.FixtureRequest) -> int:
    if type(tifffile.TIFF.DECOMPRESSORS[request.param]).__name__ != "function":
        pytest.skip("imagecodecs decodes the file")
    return int(request.param)


def peak_of_error(read: Callable[..., object], *arguments: object) -> int:
    """Return the peak of Python's memory, in bytes, while a read fails with the error for an unreadable file."""
    tracemalloc.start()
    try:
        with pytest.raises(MaskfoldError, match="declares"):
            read(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [read_image, read_labels], ids=["image", "mask"])
@pytest.mark.parametrize("tile", [0, 64])
def test_a_segment_that_unpacks_to_more_than_declared_is_an_error(
    tmp_path: Path, compression: int, tile: int, read: Callable[..., object]
) -> None:
    path = write(tmp_path / "a.tif", compression, [compress(compression, bytes(EXCESS))], tile=tile)
    assert path.stat().st_size < MIB
    assert read_header(path).shape == (64, 64)
    assert peak_of_error(read, path) < 16 * MIB


def test_a_large_page_is_bounded(tmp_path: Path, compression: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read strip by strip."""
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "0")
    segments = [compress(compression, bytes(size)) for size in (32 * 64, EXCESS)]
    path = write(tmp_path / "a.tif", compression, segments, rows=32)
    assert peak_of_error(read_image, path) < 16 * MIB


def test_a_preview_is_bounded(tmp_path: Path, compression: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures for people read the file without `read_image`."""
    monkeypatch.setattr(preview, "LARGE_FILE", 0)
    monkeypatch.setattr(preview, "reduction_step", lambda shape: 2)
    path = write(tmp_path / "a.tif", compression, [compress(compression, bytes(EXCESS))])

    def read() -> None:
        with preview.convert_decoder_errors(path):
            preview._read_reduced(path, exif=False)

    assert peak_of_error(read) < 16 * MIB


@pytest.mark.parametrize("reader", ["image", "preview"])
def test_a_tile_much_larger_than_its_page_is_a_bomb(
    tmp_path: Path, compression: int, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """A page of 64 × 64 pixels with one tile of 65,536 × 65,536 declares 4 KiB of pixels, but unpacks to 4 GiB."""
    import psutil

    class Memory:
        available = 8 * 2**30

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(preview, "LARGE_FILE", 0)
    monkeypatch.setattr(preview, "reduction_step", lambda shape: 2)
    path = write(tmp_path / "a.tif", compression, [compress(compression, bytes(64))], tile=2**16)
    with pytest.raises(MaskfoldError, match=r"unpack to 4\.0 GiB"):
        read_image(path) if reader == "image" else preview._read_reduced(path, exif=False)


def test_a_last_strip_filled_up_to_its_full_height_is_read(tmp_path: Path, compression: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    strips = [values[:48].tobytes(), values[48:].tobytes() + bytes(32 * 64)]
    path = write(tmp_path / "a.tif", compression, [compress(compression, strip) for strip in strips], rows=48)
    np.testing.assert_array_equal(read_image(path).array[0], values)


@pytest.mark.parametrize("padding", [0, 48 * 64], ids=["full", "filled up"])
def test_the_checksum_of_a_strip_is_verified(tmp_path: Path, compression: int, padding: int) -> None:
    """Also if all of its pixels are decoded before its end is read."""
    values = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    strip = bytearray(compress(compression, values.tobytes() + bytes(padding)))
    strip[len(strip) - 1 if compression == DEFLATE else 100] ^= 1
    path = write(tmp_path / "a.tif", compression, [bytes(strip)])
    with pytest.raises(MaskfoldError, match=r"a\.tif cannot be read"):
        read_image(path)


def test_a_truncated_strip_is_an_error(tmp_path: Path, compression: int) -> None:
    strip = compress(compression, np.random.default_rng(0).bytes(64 * 64))
    for length in (len(strip) // 2, len(strip) - 1):
        path = write(tmp_path / "a.tif", compression, [strip[:length]])
        with pytest.raises(MaskfoldError, match=r"a\.tif cannot be read"):
            read_image(path)


def test_strips_that_share_their_bytes_do_little_work(tmp_path: Path) -> None:
    """Otherwise a file of 1 MB could name the same strip 100,000 times."""
    limit, calls = 64, []

    class Stream:
        eof, unconsumed_tail = False, b"x"

        def decompress(self, data: bytes, limit: int) -> bytes:
            calls.append(limit)
            return bytes(limit)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="64 bytes that the header declares"):
        patch.setattr(zlib, "decompressobj", Stream)
        tiff_decoders.decompress("zlib", b"x", limit)
    assert sum(calls) < 2**18


@pytest.mark.parametrize(
    ("name", "options"), [("a.tif", {}), ("a.ome.tif", {"ome": True}), ("b.tif", {"imagej": True})]
)
def test_every_page_of_a_stack_is_bounded(
    tmp_path: Path, compression: int, name: str, options: dict[str, bool]
) -> None:
    """tifffile decodes the pages of stacks in threads of its own."""
    pages = [compress(compression, bytes(size)) for size in (64 * 64, 64 * 64, EXCESS, 64 * 64)]
    tifffile.imwrite(
        tmp_path / name,
        iter(pages),
        shape=(4, 64, 64),
        dtype=np.uint8,
        compression=compression,
        photometric="minisblack",
        rowsperstrip=64,
        **options,
    )
    assert read_header(tmp_path / name, 3).shape == (64, 64, 4)
    assert peak_of_error(read_image, tmp_path / name, 3) < 16 * MIB


def test_an_lzma_strip_cannot_ask_for_a_large_dictionary(tmp_path: Path, compression: int) -> None:
    """The decoder allocates the dictionary that the stream declares, up to 4 GiB."""
    if compression != LZMA:
        pytest.skip("Deflate has a window of 32 KiB")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    stream = bytearray(lzma.compress(bytes(64 * 64), filters=filters))
    header = 12 + 4 * (stream[12] + 1)  # block header: its size, flags, the filter's id, 1 byte of properties, padding
    assert stream[14:16] == b"\x21\x01"
    stream[16] = 40  # 4 GiB − 1
    stream[header - 4 : header] = struct.pack("<I", zlib.crc32(stream[12 : header - 4]))
    with pytest.raises(MaskfoldError, match=r"a\.tif cannot be read .*[Mm]emory"):
        read_image(write(tmp_path / "a.tif", compression, [bytes(stream)]))
