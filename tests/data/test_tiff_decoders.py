"""TIFF files whose compression tifffile cannot decode without imagecodecs: Zstandard before Python 3.14, fax codes."""

from __future__ import annotations

import sys
from pathlib import Path

import numcodecs.zstd
import numpy as np
import pytest
import tifffile
from PIL import Image

from competition.data.formats import tiff
from competition.data.formats.tiff_decoders import BoundedDecoders
from competition.data.readers import read_image
from competition.errors import MaskfoldError
from competition.viz import preview
from tests.data.test_tiff_bombs import write

ZSTD = 50000  # tag 259
VALUES = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python and its packages have no decoder of Zstandard, as on Python 3.11 without imagecodecs."""

    def zstd_decode(data: bytes, **_: object) -> bytes:
        raise ModuleNotFoundError("No module named 'compression'", name="compression")

    zstd_decode.__module__ = "tifffile._imagecodecs"
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", BoundedDecoders({1: None, ZSTD: zstd_decode}))  # type: ignore[dict-item]


def zstd_file(path: Path, values: np.ndarray) -> Path:
    return write(path, ZSTD, [bytes(numcodecs.zstd.compress(values.tobytes()))], bits=8 * values.itemsize)


@pytest.mark.parametrize("large", [False, True])
def test_pillow_reads_zstandard_of_8_bits(
    tmp_path: Path, lacking: None, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "0" if large else "512")
    path = zstd_file(tmp_path / "a.tif", VALUES)
    np.testing.assert_array_equal(read_image(path).array[0], VALUES)
    monkeypatch.setattr(preview, "LARGE_FILE", 0)
    monkeypatch.setattr(preview, "reduction_step", lambda shape: 2)
    assert preview._read_reduced(path, exif=False) is None


def test_zstandard_of_16_bits_needs_imagecodecs(tmp_path: Path, lacking: None) -> None:
    path = zstd_file(tmp_path / "a.tif", VALUES.astype(np.uint16) * 200)
    with pytest.raises(MaskfoldError, match=r"a\.tif cannot be read.*ZSTD") as caught:
        read_image(path)
    assert "pip install imagecodecs" in caught.value.hint
    assert caught.value.status == 2  # `on_bad_case: skip` would leave out every case


def test_a_compression_that_tifffile_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions of the lower bound have no decoder of fax codes, and do not mention imagecodecs."""

    class Decoders(dict[int, object]):
        def __missing__(self, key: int) -> object:
            raise KeyError(f"<COMPRESSION.CCITT_T6: {key}> not supported")

    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", BoundedDecoders(Decoders({1: None})))  # type: ignore[arg-type]
    mask = np.eye(16, dtype=bool)
    Image.fromarray(mask).save(tmp_path / "a.tif", compression="group4")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], 255 * mask)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        assert tiff.lacks_decoder(page, ValueError("not supported"))
