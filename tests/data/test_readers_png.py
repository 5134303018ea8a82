"""Valid PNG files of every kind pass the check, and missing pixels are found in each."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from competition.data.formats.png import PNG_PASSES, check_png, decode_plain_png
from competition.data.formats.raster import _decode_with_pillow
from competition.data.readers import read_image
from competition.errors import MaskfoldError
from tests.faults.mutations import png_chunk

KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


NUCLEI = Path(__file__).parents[2] / "data" / "nuclei" / "stage1_train"


def bits(values: np.ndarray, depth: int) -> bytes:
    """A line of samples, packed (PNG specification, 7.2)."""
    if depth >= 8:
        return values.astype(">u2" if depth == 16 else "u1").tobytes()
    ones = (values[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(-1).astype(np.uint8)).tobytes()


def encoded(
    colour: int, depth: int, interlaced: bool, width: int = 13, height: int = 11, cut: int = 0
) -> tuple[bytes, np.ndarray]:
    """A PNG and its samples (height, width, samples); `cut` bytes are missing at the end of the unpacked lines."""
    values = np.random.default_rng(colour * 100 + depth).integers(0, 2**depth, (height, width, SAMPLES[colour]))
    lines = b""
    for column, row, across, down in PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        part = values[row::down, column::across]
        if part.size:
            lines += b"".join(b"\0" + bits(line.reshape(-1), depth) for line in part)
    packed = zlib.compress(lines[: len(lines) - cut])
    palette = (
        png_chunk(b"PLTE", bytes(range(48)) * 16)
        if colour == 3 and depth == 8
        else png_chunk(b"PLTE", bytes(range(3 * 2**depth)))
        if colour == 3
        else b""
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    half = len(packed) // 2  # in two chunks, as encoders write long streams
    body = png_chunk(b"IDAT", packed[:half]) + png_chunk(b"IDAT", packed[half:])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"tEXt", b"a\0b") + palette + body + png_chunk(
        b"IEND", b""
    ), values


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_is_read_and_a_missing_byte_is_seen(
    tmp_path: Path, colour: int, depth: int, interlaced: bool
) -> None:
    content, values = encoded(colour, depth, interlaced)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    check_png(path)
    array = read_image(path).array
    if depth == 8 and colour in (0, 2, 4, 6):
        np.testing.assert_array_equal(np.moveaxis(array, 0, -1), values)
        np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(values.shape), values)
    path.write_bytes(encoded(colour, depth, interlaced, cut=1)[0])
    with pytest.raises(MaskfoldError, match=r"a\.png cannot be read .*bytes of pixels"):
        check_png(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (4, 4), (9, 8)])
def test_small_interlaced_pictures_have_empty_passes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(2, 8, True, *size)[0])
    check_png(path)
    path.write_bytes(encoded(2, 8, True, *size, cut=1)[0])
    with pytest.raises(MaskfoldError):
        check_png(path)


def test_a_damaged_remark_is_no_matter_and_a_damaged_palette_is(tmp_path: Path) -> None:
    content, _ = encoded(3, 8, False)
    path = tmp_path / "a.png"
    at = content.index(b"tEXt") + 5
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    check_png(path)
    at = content.index(b"PLTE") + 5
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(MaskfoldError, match="checksum of its PLTE chunk"):
        check_png(path)


# The short path for common kinds, which unpacks a file only once


def agree(path: Path) -> bool:
    """Whether the short path reads the file; its pixels must be those of Pillow, as an image and as labels."""
    plain = decode_plain_png(path, 2)
    if plain is not None:
        for labels in (False, True):
            expected = _decode_with_pillow(path, 2, labels).array
            assert plain.dtype == expected.dtype
            np.testing.assert_array_equal(plain, expected)
    return plain is not None


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_the_short_path_reads_grey_and_colours_of_8_bits(
    tmp_path: Path, colour: int, depth: int, interlaced: bool
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(colour, depth, interlaced)[0])
    assert agree(path) == (depth == 8 and colour in (0, 2, 6))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (300, 201)])
def test_the_short_path_undoes_every_filter(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[0])
    smooth = np.add.outer(np.arange(size[1]), np.arange(size[0]))[..., None] * [1, 2, 3, 4] // 2
    values = (smooth + random.integers(0, 3, smooth.shape)).astype(np.uint8)[..., : len(mode)]
    path = tmp_path / "a.png"
    Image.fromarray(values[..., 0] if mode == "L" else values, mode).save(path)
    assert agree(path)
    for strategy in range(5):  # OpenCV's strategies, with one filter for the whole file each
        cv2.imwrite(str(path), values[..., : len(mode)].squeeze(), [cv2.IMWRITE_PNG_FILTER, 8 << strategy])
        assert agree(path)


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [
        ({"dpi": (72, 72)}, True),
        ({"transparency": (1, 2, 3)}, False),
        ({"icc_profile": b"profile"}, False),
        ({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}, False),
        ({"save_all": True, "append_images": [Image.new("RGB", (9, 6), (1, 1, 1))]}, False),
    ],
)
def test_metadata_that_might_matter_are_left_to_pillow(tmp_path: Path, options: dict[str, Any], is_plain: bool) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)).save(path, **options)
    assert agree(path) == is_plain


def test_a_damaged_file_is_left_to_pillow_or_refused(tmp_path: Path) -> None:
    content, path = encoded(2, 8, False)[0], tmp_path / "a.png"
    for at in (content.index(b"tEXt") + 5, content.index(b"IDAT") + 9, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        assert decode_plain_png(path, 2) is None
    path.write_bytes(content[:-20])
    assert decode_plain_png(path, 2) is None
    path.write_bytes(content.replace(content[8:33], png_chunk(b"IHDR", content[16:23] + b"\x0a" + content[24:29])))
    assert agree(path)  # a row of pixels more than the header declares
    path.write_bytes(encoded(2, 8, False, cut=1)[0])
    with pytest.raises(MaskfoldError, match="bytes of pixels"):
        decode_plain_png(path, 2)
    with pytest.raises(MaskfoldError, match="competition.dimensions is 3"):
        decode_plain_png(path, 3)


@pytest.mark.skipif(not NUCLEI.exists(), reason="data/nuclei is absent")
def test_the_short_path_reads_the_pictures_of_nuclei() -> None:
    for path in sorted(NUCLEI.glob("*/images/*.png"))[::40]:
        assert agree(path)
