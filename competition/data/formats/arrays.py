"""Read NumPy arrays and archives."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from competition.data.image_types import (
    DEFLATE_BOUND,
    Header,
    Image,
    byte_count,
    channels_first,
    check_declared_size,
    check_not_bomb,
    unreadable_error,
    wrong_values_error,
)
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    pass

ARRAY_NAMES = {False: ("image", "img", "arr_0"), True: ("mask", "label", "labels", "arr_0")}


def numpy_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read the shape and dtype of an array from its header, without its values.

    Args:
        path: an .npy file or .npz archive, see `numpy_pixels`.
        dimensions: 2 or 3.
        labels: which array of an archive with several arrays is read: True for the mask, False for the image.
    """
    shape, dtype = _declared_array(path, labels)
    if dtype.kind not in "biuf":
        raise wrong_values_error(path, dtype)
    view = channels_first(np.broadcast_to(np.zeros(1, np.uint8), shape), dimensions, path)
    name = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
    return Header(view.shape[1:], (1.0,) * dimensions, None, view.shape[0], name)


def numpy_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Read an image or mask from a NumPy file; `channels_first` finds its channel axis.

    Args:
        path: an .npy file or an .npz archive. If the archive has several arrays, one of them must have a name in
            `ARRAY_NAMES`, such as `image` or `mask`.
        dimensions: 2 or 3.
        labels: which array of an archive with several arrays is read: True for the mask, False for the image.
    """
    numpy_header(path, dimensions, labels)
    shape, dtype = _declared_array(path, labels)
    check_declared_size(path, byte_count(shape, dtype))
    loaded = np.load(path, allow_pickle=False)
    array = loaded if path.suffix.lower() == ".npy" else loaded[_archive_member(path, loaded.files, labels)]
    array = channels_first(array.astype(np.uint8) if array.dtype == bool else array, dimensions, path)
    return Image(array, (1.0,) * dimensions)


def _declared_array(path: Path, labels: bool) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype from the array's header, checked against the size of the file."""
    size = path.stat().st_size
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            shape, dtype = _array_header(path, file)
            check_declared_size(path, byte_count(shape, dtype), size - file.tell())
        return shape, dtype
    with zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        member = archive.getinfo(_archive_member(path, keys, labels) + ".npy")
        with archive.open(member) as file:
            shape, dtype = _array_header(path, file)
            check_declared_size(path, byte_count(shape, dtype), member.file_size - file.tell())
            check_declared_size(path, byte_count(shape, dtype), size * DEFLATE_BOUND)
            check_not_bomb(path, byte_count(shape, dtype))
    return shape, dtype


def _array_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise unreadable_error(path, f"its format version is {version}, expected (1, 0) or (2, 0)")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise unreadable_error(path, "it has pickled Python objects, which may run code")
    return shape, dtype


def _archive_member(path: Path, keys: list[str], labels: bool) -> str:
    if len(keys) == 1:
        return keys[0]
    for name in ARRAY_NAMES[labels]:
        if name in keys:
            return name
    found = f"the arrays {', '.join(keys[:5])}" if keys else "no array"
    raise MaskfoldError(
        f"{path}: found {found}, expected a single array, or one with the name {' or '.join(ARRAY_NAMES[labels])}.",
        f"Save one array per file, or give one of the arrays the name `{ARRAY_NAMES[labels][0]}`.",
    )
