"""Images and label files as arrays; the file's extension chooses the reader."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.data.readers_types import Header, Picture, reading, unreadable

__all__ = ["EXTENSIONS", "Header", "Picture", "known", "read_header", "read_image", "read_labels", "stem"]

EXTENSIONS = {".png": "flat", ".jpg": "flat", ".jpeg": "flat", ".bmp": "flat", ".gif": "flat", ".tif": "tiff",
              ".tiff": "tiff", ".nii": "nifti", ".nii.gz": "nifti", ".npy": "numpy", ".npz": "numpy"}


def read_image(path: str | Path, dimensions: int | None = None) -> Picture:
    """Reads an image.

    16-bit files stay 16-bit, an alpha channel stays a channel (`prepare.channels` drops it), a palette becomes colours.
    An EXIF orientation is not applied, since masks are drawn on the pixels as they are stored.

    Args:
        path: a PNG, JPEG, BMP, GIF, TIFF, NIfTI, NPY or NPZ file.
        dimensions: spatial axes, 2 or 3: whether pages of a TIFF are channels or slices. None: 3 for NIfTI, else 2.

    Returns:
        The picture; its array is (C, H, W), (C, X, Y, Z) or (C, H, W, Z).

    Raises:
        MaskfoldError: the file is missing, of an unknown format, cut off, too large, or holds NaN or infinite values.

    Example:
        >>> read_image("case.nii.gz").spacing      # doctest: +SKIP
        (1.0, 1.0, 1.0)
    """
    path = Path(path)
    module, dimensions = _reader(path, dimensions)
    with reading(path):
        picture = _native(path, module.pixels(path, dimensions, labels=False))
    bad = 0
    if picture.array.dtype.kind == "f":
        bad = picture.array.size - int(np.isfinite(picture.array).sum())
    if bad:
        raise MaskfoldError(f"{path} holds {bad:,} value{'' if bad == 1 else 's'} that {'is' if bad == 1 else 'are'} NaN or infinite.",
                            "Repair it, or leave the case out with competition.on_bad_case=skip.")
    return picture


def read_labels(path: str | Path, dimensions: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a label file.

    A palette's indices are the labels, not its colours. A file with several equal channels (a grey mask saved as RGB) is
    taken as one; a constant alpha channel is ignored.

    Args:
        path: as for `read_image`.
        dimensions: as for `read_image`.

    Returns:
        (*spatial) integers as they are in the file, and the affine (4×4 float64, mm) or None.

    Raises:
        MaskfoldError: as for `read_image`; the channels differ; or a value is not a whole number.
    """
    path = Path(path)
    module, dimensions = _reader(path, dimensions)
    with reading(path):
        picture = _native(path, module.pixels(path, dimensions, labels=True))
    array = _one_channel(path, picture.array)
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(array).all() or np.abs(array - whole).max() > 1e-3:
            raise MaskfoldError(f"{path} holds labels that are not whole numbers.",
                                "Save the mask as integers, resampled with the nearest neighbour if at all.")
        array = whole.astype(np.int32)
    return array, picture.affine


def read_header(path: str | Path, dimensions: int | None = None, labels: bool = False) -> Header:
    """Reads what a file says about itself, without its pixels.

    Args:
        path: as for `read_image`.
        dimensions: as for `read_image`.
        labels: whether it is a label file; matters for archives of several arrays.

    Returns:
        Shape, spacing, affine, channels and dtype.

    Raises:
        MaskfoldError: the file is missing, of an unknown format, or its header is broken or promises too much.
    """
    path = Path(path)
    module, dimensions = _reader(path, dimensions)
    extra = {"labels": labels} if EXTENSIONS[extension(path.name)] == "numpy" else {}
    with reading(path):
        head: Header = module.header(path, dimensions, **extra)
    if 0 in (*head.shape, head.channels):
        raise unreadable(path, f"its shape is {'×'.join(map(str, head.shape))}")
    return head


def extension(name: str) -> str:
    """The extension in lower case, `.nii.gz` as one; empty where there is none."""
    name = name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def known(name: str) -> bool:
    """Whether a reader takes a file of this name."""
    return extension(name) in EXTENSIONS


def stem(name: str) -> str:
    """The name without an extension that a reader knows; other dots belong to the name.

    Example:
        >>> stem("a.b.nii.gz"), stem("scan.v2")
        ('a.b', 'scan.v2')
    """
    return name[: -len(extension(name))] if known(name) else name


def _reader(path: Path, dimensions: int | None) -> tuple[Any, int]:
    """The module that reads the format (imported only now: the libraries behind are heavy), and the dimensions."""
    kind = EXTENSIONS.get(extension(path.name))
    if kind is None and extension(path.name) in (".dcm", ".dicom", ".ima"):
        raise MaskfoldError(f"{path} is DICOM.", "Convert the study to volumes first with `maskfold dicom`.")
    if kind is None:
        raise MaskfoldError(f"{path} has an extension that no reader knows.",
                            f"Convert it to one of {', '.join(EXTENSIONS)}.")
    module = importlib.import_module(f"competition.data.readers_{kind}")
    return module, dimensions or (3 if kind == "nifti" else 2)


def _native(path: Path, picture: Picture) -> Picture:
    """The machine's byte order, and float32 for other floats."""
    array = picture.array
    if array.size == 0:
        raise unreadable(path, f"its shape is {'×'.join(map(str, array.shape[1:]))}")
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return Picture(np.ascontiguousarray(array.astype(dtype, copy=False)), picture.spacing, picture.affine)


def _one_channel(path: Path, array: np.ndarray) -> np.ndarray:
    """The one channel of labels in (C, *spatial)."""
    colours = array
    if len(array) in (2, 4) and (array[-1] == array[-1].flat[0]).all():
        colours = array[:-1]
    if (colours == colours[:1]).all():
        return colours[0]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MaskfoldError(f"The labels of {path} hold NaN or infinite values.", "Write one integer per pixel.")
    raise MaskfoldError(f"{path} has {len(array)} channels that differ, and a label file has one.",
                        "Write a label file with one integer per pixel, or one file per class.")
