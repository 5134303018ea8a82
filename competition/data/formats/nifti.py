"""Read NIfTI files with nibabel."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np

from competition.data.image_types import (
    DEFLATE_BOUND,
    Header,
    Image,
    check_declared_size,
    check_not_bomb,
    unreadable_error,
    wrong_dimensions_error,
    wrong_values_error,
)
from competition.errors import MaskfoldError

# Mm per unit, by the header's codes of metres and micrometres; all other codes count as mm.
MILLIMETRES = {1: 1000.0, 3: 0.001}
NIFTI_SIZES = (348, 540, 0x5C010000, 0x1C020000)  # the first field of NIfTI-1 and NIfTI-2 headers, in both byte orders
PIXDIM_ROUNDING = 1e-4  # relative difference between pixdim and affine that counts as rounding
MAX_TRAILING = 2**24  # maximum number of bytes after the last voxel
MAX_EXTENSIONS = 2**26  # maximum number of bytes between header and first voxel


def nifti_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read shape, spacing and affine from the header, without unpacking the voxels; `labels` is ignored."""
    return _nifti_header(path, _load_nifti(path), dimensions)


def nifti_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Read voxels as (C, X, Y, Z): a fourth axis of the file becomes the channels.

    Unscaled integers keep their dtype; all other values become float32. `labels` is ignored.
    """
    unread = _load_nifti(path)
    head = _nifti_header(path, unread, dimensions)
    itemsize = max(unread.get_data_dtype().itemsize, np.dtype(head.dtype).itemsize)
    check_declared_size(path, math.prod(unread.shape) * itemsize)
    with _read_to_end(path, unread) as proxy:
        if _is_scaled_nifti(proxy) or unread.get_data_dtype().kind == "f":
            array: np.ndarray = np.asarray(proxy, dtype=np.float32)
        else:
            stored = proxy.get_unscaled()
            array = np.array(stored) if isinstance(stored, np.memmap) else stored
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    array = array.reshape(*head.shape, head.channels)
    return Image(np.moveaxis(array, -1, 0), head.spacing, head.affine, head.has_spacing)


def _load_nifti(path: Path) -> Any:
    """Open a file without reading its voxels; check that its name, header extensions and intercept are valid."""
    import nibabel

    with path.open("rb") as file:
        start = file.read(4)
    is_packed = start[:2] == b"\x1f\x8b"
    if is_packed != (path.suffix.lower() == ".gz") and (is_packed or int.from_bytes(start, "little") in NIFTI_SIZES):
        name = path.name + ".gz" if is_packed else path.name[:-3]
        found = "compressed by gzip" if is_packed else "not compressed"
        raise unreadable_error(
            path, f"its content is NIfTI {found}, which does not fit its name", f"Rename it to {name}"
        )
    with gzip.open(path) if is_packed else path.open("rb") as file:
        head = file.read(348)
        _check_extensions(path, head, file)
    is_plain = int.from_bytes(head[:4], "little") in NIFTI_SIZES[::2] and head[344:] == b"n+1\0"  # a NIfTI-1 file
    try:  # faster than `nibabel.load`, which tries each of its formats
        return nibabel.Nifti1Image.from_filename(path) if is_plain else nibabel.load(path)
    except nibabel.spatialimages.HeaderDataError as error:
        if "invalid intercept" not in str(error):
            raise
        raise unreadable_error(
            path, "scl_inter in its header is not a finite number", "Set scl_inter to 0 if the values have no offset"
        ) from error


def _check_extensions(path: Path, head: bytes, file: gzip.GzipFile | BufferedReader) -> None:
    """Check the sizes of the extensions after a header, because nibabel reads extensions of any size.

    Args:
        path: the file.
        head: the first 348 bytes of the file.
        file: the rest of the file, unpacked.

    Raises:
        MaskfoldError: the extensions do not end before the first voxel, or are too large.
    """
    import nibabel

    is_second = head[4:7] in (b"n+2", b"ni2")
    head += file.read(540 - 348) if is_second else b""
    if len(head) < (540 if is_second else 348) or file.read(4)[:1] in (b"", b"\0"):
        return
    kind = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    header = kind(head, check=False)
    offset = float(header["vox_offset"])
    left = offset - len(head) - 4
    if not 0 <= left <= MAX_EXTENSIONS:
        first = len(head) + 4
        raise unreadable_error(
            path,
            f"the extensions of its header end at byte {offset:,.0f}, expected {first:,} to {first + MAX_EXTENSIONS:,}",
        )
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    while left >= 16:
        size = int.from_bytes(file.read(8)[:4], order, signed=True)
        if not 8 <= size <= left:
            raise unreadable_error(
                path, f"an extension of its header declares {size:,} bytes, but only {left:,.0f} are left"
            )
        file.read(size - 8)
        left -= size


@contextmanager
def _read_to_end(path: Path, image: Any) -> Iterator[Any]:
    """Yield an object that reads the voxels; after the block, read a gzip file to its end, to verify its checksum."""
    voxels = image.dataobj
    if path.suffix.lower() != ".gz":
        yield voxels
        return
    with gzip.open(path) as stream:
        yield type(voxels)(stream, (voxels.shape, voxels.dtype, voxels.offset, voxels.slope, voxels.inter))
        remaining = MAX_TRAILING
        while block := stream.read(2**20):
            remaining -= len(block)
            if remaining < 0:
                raise unreadable_error(path, f"it has more than {MAX_TRAILING:,} bytes after its last voxel")


def _is_scaled_nifti(proxy: Any) -> bool:
    return (proxy.slope, proxy.inter) != (1.0, 0.0)


def _nifti_header(path: Path, image: Any, dimensions: int) -> Header:
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind not in "iuf" and not dtype.names:
        raise wrong_values_error(path, dtype)
    size, packed = path.stat().st_size, path.suffix.lower() == ".gz"
    check_declared_size(path, math.prod(shape) * dtype.itemsize, size * DEFLATE_BOUND if packed else size)
    check_not_bomb(path, math.prod(shape) * dtype.itemsize)
    colours = len(dtype.names) if dtype.names else 1
    channel_axes = [n for n in shape[3:] if n > 1]
    if len(shape) < dimensions or (dimensions == 2 and math.prod(shape[2:3]) > 1):
        raise wrong_dimensions_error(path, shape, dimensions)
    if len(channel_axes) + (colours > 1) > 1:
        raise unreadable_error(path, f"its shape is {'×'.join(map(str, shape))}, with more than one channel axis")
    spacing, plain_spacing, affine = _nifti_geometry(path, image, dimensions)
    in_patient_space = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    name = "uint8" if colours > 1 else dtype.newbyteorder("=").name
    is_float = dtype.kind == "f" or _is_scaled_nifti(image.dataobj)
    channels = colours * math.prod(channel_axes)
    dtype_name = "float32" if is_float else name
    return Header(shape[:dimensions], spacing, affine, channels, dtype_name, True, in_patient_space, plain_spacing)


def _nifti_geometry(
    path: Path, image: Any, dimensions: int
) -> tuple[tuple[float, ...], tuple[float, ...] | None, np.ndarray]:
    """Return the spacing, the header's field pixdim, and the affine of a file, all in mm.

    The affine determines the positions of voxels, so the spacing is the lengths of the affine's columns. If pixdim
    differs from these lengths by at most the share `PIXDIM_ROUNDING`, the spacing is taken from pixdim, which has no
    rounding errors. In this case, None is returned instead of pixdim.
    """
    import nibabel

    factor = MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
    # Read the stored values, because nibabel reads a voxel size of 0 as 1 mm.
    header = image.header
    with nibabel.openers.ImageOpener(str(path)) as file:
        raw = file.read(header.template_dtype.itemsize)
    stored = np.frombuffer(raw, header.template_dtype.newbyteorder(header.endianness))["pixdim"][0, 1 : dimensions + 1]
    spacing = tuple(abs(float(step)) * factor for step in stored)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= factor
    hint = "Repair the file's header, or skip the case with competition.on_bad_case=skip."
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        size = " × ".join(f"{step:g}" for step in spacing)
        raise MaskfoldError(f"{path} has an invalid voxel size: found {size} mm, expected positive numbers.", hint)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise MaskfoldError(f"{path} has an affine that cannot be inverted or is not finite.", hint)
    columns = tuple(float(length) for length in lengths[:dimensions])
    if all(abs(mm - pixdim) <= PIXDIM_ROUNDING * pixdim for mm, pixdim in zip(columns, spacing, strict=True)):
        return spacing, None, affine
    return columns, spacing, affine
