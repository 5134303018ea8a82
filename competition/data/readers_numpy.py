"""NumPy arrays (.npy, .npz), read without unpickling."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from competition.config.errors import MaskfoldError
from competition.data.readers_types import (
    DEFLATE_BOUND,
    Header,
    Picture,
    channels_first,
    count,
    refuse_bomb,
    refuse_size,
    unreadable,
)

NAMES = {False: ("image", "img", "arr_0"), True: ("mask", "label", "labels", "arr_0")}


def header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Reads shape and dtype without reading a value."""
    shape, dtype = _declared(path, labels)
    if dtype.kind not in "biuf":
        raise unreadable(path, f"its values are {dtype}")
    view = channels_first(np.broadcast_to(np.zeros(1, np.uint8), shape), dimensions, path)
    kept = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
    return Header(view.shape[1:], (1.0,) * dimensions, None, view.shape[0], kept)


def pixels(path: Path, dimensions: int, labels: bool) -> Picture:
    """Reads an array; `channels_first` says where its channels are.

    Args:
        path: an .npy file, or an .npz archive of one array, or of several with one named `image` (or `mask`).
        dimensions: 2 or 3.
        labels: which of several arrays of an archive.
    """
    header(path, dimensions, labels)
    shape, dtype = _declared(path, labels)
    refuse_size(path, count(shape, dtype))
    loaded = np.load(path, allow_pickle=False)
    array = loaded if path.suffix.lower() == ".npy" else loaded[_member(path, loaded.files, labels)]
    array = channels_first(array.astype(np.uint8) if array.dtype == bool else array, dimensions, path)
    return Picture(array, (1.0,) * dimensions)


def _declared(path: Path, labels: bool) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype by the array's own header, checked against the bytes that are there."""
    size = path.stat().st_size
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            shape, dtype = _array_header(path, file)
            refuse_size(path, count(shape, dtype), size - file.tell())
        return shape, dtype
    with zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        member = archive.getinfo(_member(path, keys, labels) + ".npy")
        with archive.open(member) as file:
            shape, dtype = _array_header(path, file)
            refuse_size(path, count(shape, dtype), member.file_size - file.tell())
            refuse_size(path, count(shape, dtype), size * DEFLATE_BOUND)
            refuse_bomb(path, count(shape, dtype))
    return shape, dtype


def _array_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise unreadable(path, f"its format has the version {version}")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise unreadable(path, "it holds pickled Python objects, which may run code")
    return shape, dtype


def _member(path: Path, keys: list[str], labels: bool) -> str:
    if len(keys) == 1:
        return keys[0]
    for name in NAMES[labels]:
        if name in keys:
            return name
    raise MaskfoldError(f"{path} holds the arrays {', '.join(keys[:5]) or 'none'}, and which is meant is not clear.",
                        f"Save one array per file, or name one of them `{NAMES[labels][0]}`.")
