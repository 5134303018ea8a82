"""Read NRRD, MHA and MHD files with SimpleITK (extra `[itk]`).

A volume gets the affine that it would have as a NIfTI file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from competition.data.image_types import (
    Header,
    Image,
    check_declared_size,
    check_not_bomb,
    detached_data_file,
    has_detached_voxels,
    unreadable_error,
    wrong_dimensions_error,
    wrong_values_error,
)
from competition.errors import MaskfoldError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # ITK's axes point to the left and back, NIfTI's to the right and front


def itk_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read shape, spacing and affine from the header, without the voxels; `labels` is ignored."""
    return _header(path, _open(path), dimensions)


def itk_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Read voxels as (C, X, Y, Z): the components of a voxel, or a fourth axis, become the channels.

    Integers keep their dtype; floating-point values become float32. `labels` is ignored.
    """
    reader = _open(path)
    import SimpleITK

    head = _header(path, reader, dimensions)
    check_declared_size(path, math.prod(head.shape) * head.channels * np.dtype(head.dtype).itemsize)
    stored: Any = SimpleITK.GetArrayFromImage(reader.Execute())  # (…, Z, Y, X), components last
    has_components = reader.GetNumberOfComponents() > 1
    if not has_components:
        stored = stored[..., None]
    array = stored.transpose(*range(stored.ndim - 2, -1, -1), stored.ndim - 1)  # (X, Y, Z, …, components)
    array = np.moveaxis(array.reshape(*head.shape, head.channels), -1, 0)
    array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)
    return Image(array, head.spacing, head.affine, True)


class ItkGeometry(NamedTuple):
    """Hold spacing (mm), origin (mm) and direction matrix of a file in ITK's coordinates (LPS).

    Spacing and origin have one number per axis; the direction is the matrix row by row.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def itk_geometry(path: Path) -> ItkGeometry:
    """Read the geometry of a file from its header, without the voxels.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: SimpleITK is not installed (exit status 2), or the header is damaged.
    """
    reader = _open(path)
    return ItkGeometry(tuple(reader.GetSpacing()), tuple(reader.GetOrigin()), tuple(reader.GetDirection()))


def pixel_dtype(path: Path) -> np.dtype[Any]:
    """Return the dtype in which the file stores one component of a voxel.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: SimpleITK is not installed (exit status 2), or the header is damaged.
    """
    import SimpleITK

    return _dtype(SimpleITK.GetPixelIDValueAsString(_open(path).GetPixelID()))


def _open(path: Path) -> Any:
    """Return a reader that has read the header of a file.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError (exit status 2): SimpleITK is not installed.
        MaskfoldError: the header is damaged.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise MaskfoldError(
            f"{path} can be read only with SimpleITK, which is not installed.",
            "Run: pip install 'maskfold[itk]'.",
            status=2,
        ) from error
    if not path.is_file():
        raise FileNotFoundError(path)
    detached_data_file(path)  # raises an error for a file in another folder, because ITK would read it
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    # The reader is chosen by the file's extension, as in the check of the header. ITK would choose it by the content.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no header")
        raise unreadable_error(path, f"its header is damaged ({reason[:200]})") from error
    return reader


def _header(path: Path, reader: Any, dimensions: int) -> Header:
    import SimpleITK

    size, axes = tuple(int(length) for length in reader.GetSize()), reader.GetDimension()
    pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel:
        raise wrong_values_error(path, pixel)
    if axes < dimensions or (dimensions == 2 and math.prod(size[2:3]) > 1):
        raise wrong_dimensions_error(path, size, dimensions)
    components, extra = reader.GetNumberOfComponents(), math.prod(size[3:])
    if axes > 4 or (components > 1 and extra > 1):
        raise unreadable_error(path, f"its shape is {'×'.join(map(str, size))}, with more than one channel axis")
    dtype = _dtype(pixel)
    declared = math.prod(size) * components * dtype.itemsize
    check_declared_size(path, declared)
    check_not_bomb((detached_data_file(path) if has_detached_voxels(path) else None) or path, declared)
    spacing = tuple(float(step) for step in reader.GetSpacing()[:dimensions])
    return Header(
        size[:dimensions],
        spacing,
        _affine(path, reader),
        components * extra,
        "float32" if dtype.kind == "f" else dtype.name,
        True,
        True,
    )


def _dtype(pixel: str) -> np.dtype[Any]:
    """Return the dtype of a pixel type such as `vector of 16-bit signed integer`."""
    bits = next((word[: -len("-bit")] for word in pixel.split() if word.endswith("-bit")), "64")
    if "float" in pixel:
        return np.dtype(f"float{bits}")
    return np.dtype(f"{'u' if 'unsigned' in pixel else ''}int{bits}")


def _affine(path: Path, reader: Any) -> np.ndarray:
    """Return the 4×4 matrix from voxel to world coordinates in mm, with the axes of NIfTI (RAS)."""
    axes = reader.GetDimension()
    used = min(3, axes)
    direction = np.eye(3)
    direction[:used, :used] = np.reshape(reader.GetDirection(), (axes, axes))[:used, :used]
    spacing, origin = np.ones(3), np.zeros(3)
    spacing[:used], origin[:used] = reader.GetSpacing()[:used], reader.GetOrigin()[:used]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LPS_TO_RAS @ direction * spacing, LPS_TO_RAS @ origin
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod():
        raise MaskfoldError(
            f"{path} has an affine that cannot be inverted or is not finite.",
            "Repair the file's header, or skip the case with competition.on_bad_case=skip.",
        )
    return affine
