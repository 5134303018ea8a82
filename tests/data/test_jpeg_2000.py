"""JPEG 2000 of 8, 12 and 16 bits, as images and as label files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.features
import PIL.Image
import pytest

from competition.data.readers import read_header, read_image, read_labels
from competition.errors import MaskfoldError

CODESTREAM = b"\xff\x4f\xff\x51"


def save_12_bits(path: Path, values: np.ndarray) -> None:
    """Write values below 4096 as a 12-bit file: a 16-bit file, moved by the difference of the levels, and renamed."""
    PIL.Image.fromarray((values + 2**15 - 2**11).astype(np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    content[content.find(CODESTREAM) + 42] = 11
    path.write_bytes(content)


def test_twelve_bits_keep_their_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    save_12_bits(tmp_path / "a.j2k", values)
    header = read_header(tmp_path / "a.j2k")
    assert (header.shape, header.channels, header.dtype) == ((40, 50), 1, "uint16")
    np.testing.assert_array_equal(read_image(tmp_path / "a.j2k").array, values[None])
    save_12_bits(tmp_path / "mask.j2k", values % 3)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.j2k")[0], values % 3)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1), (np.uint16, 3)])
def test_eight_and_sixteen_bits(tmp_path: Path, dtype: type, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, (40, 50, channels)).astype(dtype)
    assert cv2.imwrite(str(tmp_path / "a.jp2"), values[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    image = read_image(tmp_path / "a.jp2").array
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, np.moveaxis(values, -1, 0))


def test_errors_are_worded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    path = tmp_path / "a.j2k"
    save_12_bits(path, values)
    content = bytearray(path.read_bytes())
    content[content.find(CODESTREAM) + 42] |= 128
    (tmp_path / "signed.j2k").write_bytes(content)
    with pytest.raises(MaskfoldError, match="signed values of 12 bits"):
        read_header(tmp_path / "signed.j2k")
    (tmp_path / "cut.j2k").write_bytes(path.read_bytes()[:60])
    with pytest.raises(MaskfoldError, match="cut.j2k"):
        read_image(tmp_path / "cut.j2k")
    monkeypatch.setattr(PIL.features, "check", lambda name: False)
    with pytest.raises(MaskfoldError, match="without OpenJPEG") as caught:
        read_image(path)
    assert "pip install" in caught.value.hint and caught.value.status == 2
