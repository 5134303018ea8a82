"""Files to damage. For each kind: an intact file, damage specific to its format, a reader, and another decoder."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.faults import oracles
from tests.faults.mutations import Damage, gzip_bomb, patched, png, png_chunk, zip_bomb, zlib_zeros

BRACKETS = b"[" * 100_000  # nested more deeply than Python's recursion limit
GIB = 2**30


@dataclass
class Target:
    """Describe a kind of file that is damaged and read.

    Attributes:
        file: path of the file, relative to an empty folder.
        content: bytes of the intact file.
        count: number of damaged versions.
        read: function that reads a path with Maskfold's code. It returns plain values or raises `MaskfoldError`.
        said: independent decoder. It returns the content of the given bytes, and raises any exception if they are
            invalid.
        special: damaged versions that are specific to the format.
        beside: contents of other files in the folder, by path.
        named: texts of which an error may contain one instead of the file's name.
    """

    file: str
    content: bytes
    count: int
    read: Callable[[Path], Any]
    said: Callable[[bytes], Any]
    special: list[Damage] = field(default_factory=list)
    beside: dict[str, bytes] = field(default_factory=dict)
    named: tuple[str, ...] = ()


BOMB_GIB = max(3, psutil.virtual_memory().available // 8 // GIB + 1)  # more than Maskfold allows a file to unpack to


def _noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Return an array of a gradient with noise, so that compression and PNG filters have something to do."""
    grid = np.indices(shape).sum(axis=0) * 3
    values = grid + np.random.default_rng(seed).integers(0, 40, shape)
    return (values % (200 if np.dtype(dtype).itemsize == 1 else 3000)).astype(dtype)


# Pictures


def _image(path: Path) -> Any:
    from competition.data.readers import read_header, read_image

    picture, head = read_image(path), read_header(path)
    assert head.shape == picture.array.shape[1:] and head.channels == len(picture.array), "header and pixels differ"
    return picture.array


def _labels(path: Path) -> Any:
    from competition.data.readers import read_labels

    return read_labels(path)[0][None]


def _volume(path: Path) -> Any:
    from competition.data.readers import read_header, read_image

    picture, head = read_image(path), read_header(path)
    assert head.shape == picture.array.shape[1:] and head.channels == len(picture.array), "header and pixels differ"
    return picture.array, picture.spacing, picture.affine


def _encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(array).save(memory, kind, **options)
    return memory.getvalue()


def _deep_png(array: np.ndarray) -> bytes:
    """Return a PNG of 16-bit colours (H, W, 3), which Pillow cannot write."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    return png(array.shape[1], array.shape[0], 16, 2, zlib.compress(lines))


def _png_tricks(content: bytes) -> list[Damage]:
    packed = zlib.compress(b"\0" * 100)
    head = content[16:33]
    side = math.isqrt(BOMB_GIB * GIB) + 1
    return [
        ("2^31 by 2^31 pixels", png(2**31 - 1, 2**31 - 1, 8, 2, packed)),
        ("65,535 by 65,535", png(65535, 65535, 8, 6, packed)),
        ("no width", png(0, 40, 8, 0, packed)),
        ("several GiB of zeros", png(side, side, 8, 0, zlib_zeros(side * (side + 1)))),
        ("too few lines", png(48, 64, 8, 2, zlib.compress(bytes(30 * (1 + 48 * 3))))),
        ("an unknown colour type", png(48, 64, 8, 5, packed)),
        ("7 bits", png(48, 64, 7, 0, packed)),
        ("no pixels", content[:33] + png_chunk(b"IEND", b"")),
        ("two headers", content[:33] + content[8:]),
        ("a huge chunk", content[:33] + b"\x7f\xff\xff\xffIDAT"),
        ("a text of 64 MB", content[:33] + png_chunk(b"zTXt", b"k\0\0" + zlib_zeros(2**26)) + content[33:]),
        ("header only", content[:29] + head[-4:]),
    ]


def _jpeg_size(content: bytes, size: bytes) -> bytes:
    """Return a JPEG with another height and width in its frame header (marker SOF0)."""
    return patched(content, (content.index(b"\xff\xc0") + 5, size))


def _jpeg(content: bytes) -> np.ndarray:
    import cv2

    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.moveaxis(found[..., ::-1], -1, 0)


def pictures() -> dict[str, Target]:
    colour, grey, mask = _noise((64, 48, 3), "uint8"), _noise((40, 50), "uint16"), _noise((64, 48), "uint8") // 60
    rgb, deep = _encoded(colour, "PNG"), _deep_png(_noise((30, 20, 3), "uint16"))
    jpeg = _encoded(colour, "JPEG", quality=90)
    tricks = [
        ("65,535 by 65,535 pixels", _jpeg_size(jpeg, b"\xff\xff\xff\xff")),
        ("no height", _jpeg_size(jpeg, b"\0\0\0\x30")),
        ("30,000 by 30,000 pixels", _jpeg_size(jpeg, struct.pack(">HH", 30000, 30000))),
    ]
    return {
        "png": Target("case_1.png", rgb, 44, _image, oracles.png, _png_tricks(rgb)),
        "png16": Target("case_1.png", _encoded(grey, "PNG"), 16, _image, oracles.png),
        "png48": Target("case_1.png", deep, 16, _image, oracles.png),
        "mask": Target("case_1.png", _encoded(mask, "PNG"), 16, _labels, oracles.png),
        "jpg": Target("case_1.jpg", jpeg, 30, _image, _jpeg, tricks),
    }


# Volumes


def _nifti(array: np.ndarray, **header: Any) -> bytes:
    import nibabel

    affine = np.array([[-1.0, 0, 0, 90], [0, 1.5, 0.2, -126], [0, -0.2, 2.0, -72], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    return bytes(image.to_bytes())


def _nifti_tricks(raw: bytes) -> list[Damage]:
    """Return NIfTI files with invalid headers or voxels: e.g. sizes that are too large, NaN and infinity."""
    shape = struct.pack
    reals = _nifti(_noise((6, 7, 5), "float32"))
    rows = tuple(range(280, 328, 4))
    return [
        ("NaN voxels", patched(reals, (400, shape("<f", float("nan"))))),
        ("infinite voxels", patched(reals, (500, shape("<f", float("inf"))))),
        ("no spacing", patched(raw, (80, shape("<f", 0.0)))),
        ("spacing NaN", patched(raw, (84, shape("<f", float("nan"))))),
        ("spacing infinite", patched(raw, (88, shape("<f", float("inf"))))),
        ("affine of zeros", patched(raw, *((row, bytes(4)) for row in rows))),
        ("two equal columns", patched(raw, *((row + 4, raw[row : row + 4]) for row in (280, 296, 312)))),
        ("affine NaN", patched(raw, (280, shape("<f", float("nan"))))),
        ("32,767 cubed", patched(raw, (42, shape("<3h", 32767, 32767, 32767)))),
        ("a negative length", patched(raw, (42, shape("<h", -5)))),
        ("seven dimensions", patched(raw, (40, shape("<h", 7)))),
        ("no dimension", patched(raw, (40, shape("<h", 0)))),
        ("voxels from 2e9", patched(raw, (108, shape("<f", 2e9)))),
        ("voxels from NaN", patched(raw, (108, shape("<f", float("nan"))))),
        ("voxels before the header", patched(raw, (108, shape("<f", 10)))),
        ("slope NaN", patched(raw, (112, shape("<f", float("nan"))))),
        ("slope 1e38", patched(raw, (112, shape("<f", 1e38)))),
        ("an unknown type", patched(raw, (70, shape("<h", 77)))),
        ("complex numbers", patched(raw, (70, shape("<hh", 32, 64)))),
        ("a huge extension", patched(raw, (108, shape("<f", 20000)), (348, b"\1\0\0\0" + shape("<ii", 2**30, 4)))),
    ]


def _bomb_volume(count: int) -> bytes:
    head = bytearray(_nifti(_noise((6, 7, 5), "uint8"))[:352])
    head[42:48] = struct.pack("<3h", 1024, 1024, count // 2**20)
    return gzip_bomb(bytes(head), count)


def volumes() -> dict[str, Target]:
    raw = _nifti(_noise((12, 9, 7), "int16"))
    packed = gzip.compress(raw, mtime=0)
    tricks = _nifti_tricks(raw)
    again = [(what, gzip.compress(bad, mtime=0)) for what, bad in tricks[:11]]
    bombs = [
        (f"{BOMB_GIB} GiB of zeros", _bomb_volume(BOMB_GIB * GIB)),
        ("20 GiB of zeros", _bomb_volume(20 * GIB)),
        ("20 GiB behind the last voxel", gzip_bomb(raw, 20 * GIB)),
        ("checksum", packed[:-8] + b"\1\2\3\4" + packed[-4:]),
        ("length", packed[:-4] + b"\1\0\0\0"),
        ("no end", packed[:-8]),
    ]
    return {
        "nii": Target("case_1.nii", raw, 44, _volume, oracles.nifti, tricks),
        "nii.gz": Target("case_1.nii.gz", packed, 40, _volume, oracles.nifti, again + bombs),
    }


def _npy(array: np.ndarray, **options: Any) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array, **options)
    return memory.getvalue()


def _npz(content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "arr_0.npy") -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, method)
    return memory.getvalue()


def _npy_head(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    memory = io.BytesIO()
    np.lib.format.write_array_header_1_0(memory, {"descr": kind, "fortran_order": False, "shape": shape})
    return memory.getvalue()


def arrays() -> dict[str, Target]:
    sound = _npy(_noise((30, 20), "uint16"))
    objects = _npy(np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    reals = np.ones((8, 8), np.float32)
    reals[3, 4] = np.nan
    lies = [
        ("2^40 values", _npy_head((2**20, 2**20)) + bytes(50)),
        ("2^70 values", _npy_head((2**35, 2**35)) + bytes(50)),
        ("a negative length", _npy_head((-4, 20)) + bytes(80)),
        ("objects", objects),
        ("NaN", _npy(reals)),
        ("empty", _npy(np.zeros((0, 4)))),
        ("complex", _npy(np.ones((4, 4), complex))),
        ("text", _npy(np.array([["a", "b"]]))),
        ("one axis", _npy(np.arange(9))),
        ("a header of 4 GB", b"\x93NUMPY\2\0\xff\xff\xff\xff" + sound[10:]),
        ("a header that nests", b"\x93NUMPY\2\0" + struct.pack("<I", 9000) + b"{'descr': " + b"(" * 8990),
    ]
    wide = (
        (f"{BOMB_GIB} GiB of zeros", (BOMB_GIB * 2**10, 2**10, 2**10)),
        ("20 GiB", (20 * 2**10, 2**10, 2**10)),
        ("200 GiB", (200 * 2**10, 2**10, 2**10)),
    )
    bombs = [(what, zip_bomb("arr_0.npy", _npy_head(shape), int(np.prod(shape[:3])))) for what, shape in wide[:2]]
    bombs.append((wide[2][0] + " promised", _npz(_npy_head(wide[2][1]) + bytes(2**20))))
    two = io.BytesIO()
    np.savez(two, a=np.ones((3, 3)), b=np.ones((3, 3)))
    odd = [
        ("no member", _npz(b"", name="readme.txt")),
        ("two arrays", two.getvalue()),
        ("a pickle", _npz(objects)),
        ("a member outside", _npz(sound, name="../../arr_0.npy")),
        ("stored, and short", _npz(_npy_head((4000, 4000)) + bytes(9), 0)),
    ]
    flat = lambda content: oracles.npy(content)[None]  # noqa: E731
    packed = lambda content: oracles.npz(content)[None]  # noqa: E731
    return {
        "npy": Target("case_1.npy", sound, 26, _image, flat, lies),
        "npz": Target("case_1.npz", _npz(sound), 30, _flat_or_deep, packed, bombs + odd),
    }


def _flat_or_deep(path: Path) -> Any:
    """Read an array as an image, or as a volume if it has three dimensions, as the archives of zeros do."""
    from competition.data.readers import read_image
    from competition.errors import MaskfoldError

    try:
        return _image(path)
    except MaskfoldError as error:
        if "dimensions is 2" in error.message:
            return read_image(path, 3).array
        raise
