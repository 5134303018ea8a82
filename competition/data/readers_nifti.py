"""NIfTI volumes (.nii, .nii.gz), read by nibabel."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.data.readers_types import (
    DEFLATE_BOUND,
    Header,
    Picture,
    refuse_bomb,
    refuse_size,
    unreadable,
    wrong_dimensions,
)

MILLIMETRES = {1: 1000.0, 3: 0.001}  # the header's code of metres and of micrometres; anything else is taken as mm
MOST_BEHIND = 2**24  # bytes that may follow the last voxel


def header(path: Path, dimensions: int) -> Header:
    """Reads shape, spacing and affine without unpacking a voxel."""
    import nibabel

    return _header(path, nibabel.load(path), dimensions)


def pixels(path: Path, dimensions: int, labels: bool) -> Picture:
    """Reads voxels as (C, X, Y, Z): a fourth axis of the file becomes the channels.

    Stored integers without a scale keep their dtype; everything else becomes float32. `labels` makes no difference.
    """
    import nibabel

    first: Any = nibabel.load(path)
    head = _header(path, first, dimensions)
    widest = max(first.get_data_dtype().itemsize, np.dtype(head.dtype).itemsize)
    refuse_size(path, math.prod(first.shape) * widest)
    with _whole(path, first) as image:
        proxy = image.dataobj
        if _scaled(proxy) or image.get_data_dtype().kind == "f":
            array = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        else:
            stored = proxy.get_unscaled()
            array = np.array(stored) if isinstance(stored, np.memmap) else stored
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    array = array.reshape(*head.shape, head.channels)
    return Picture(np.moveaxis(array, -1, 0), head.spacing, head.affine)


@contextmanager
def _whole(path: Path, image: Any) -> Iterator[Any]:
    """The image; of a packed one, what is left when its voxels are read is read too: there the checksum stands."""
    if path.suffix.lower() != ".gz":
        yield image
        return
    with gzip.open(path) as stream:
        yield type(image).from_stream(stream)
        left = MOST_BEHIND
        while block := stream.read(2**20):
            left -= len(block)
            if left < 0:
                raise unreadable(path, "it goes on behind its last voxel")


def _scaled(proxy: Any) -> bool:
    return (proxy.slope, proxy.inter) != (1.0, 0.0)


def _header(path: Path, image: Any, dimensions: int) -> Header:
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind not in "iuf" and not dtype.names:
        raise unreadable(path, f"its values are {dtype}")
    size, packed = path.stat().st_size, path.suffix.lower() == ".gz"
    refuse_size(path, math.prod(shape) * dtype.itemsize, size * DEFLATE_BOUND if packed else size)
    refuse_bomb(path, math.prod(shape) * dtype.itemsize)
    colours = len(dtype.names) if dtype.names else 1
    further = [n for n in shape[3:] if n > 1]
    if len(shape) < dimensions or (dimensions == 2 and math.prod(shape[2:3]) > 1):
        raise wrong_dimensions(path, shape, dimensions)
    if len(further) + (colours > 1) > 1:
        raise unreadable(path, f"its shape is {'×'.join(map(str, shape))}, with more than one axis of channels")
    spacing, affine = _geometry(path, image, dimensions)
    kept = "uint8" if colours > 1 else dtype.newbyteorder("=").name
    real = dtype.kind == "f" or _scaled(image.dataobj)
    return Header(shape[:dimensions], spacing, affine, colours * math.prod(further), "float32" if real else kept)


def _geometry(path: Path, image: Any, dimensions: int) -> tuple[tuple[float, ...], np.ndarray]:
    """Spacing (by the header's zooms) and affine, both in mm."""
    import nibabel

    factor = MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
    # As stored: nibabel reads a voxel size of 0 as 1 mm, with a remark in its log.
    with nibabel.openers.ImageOpener(str(path)) as file:
        stored = type(image.header).from_fileobj(file, check=False)["pixdim"][1: dimensions + 1]
    spacing = tuple(abs(float(step)) * factor for step in stored)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= factor
    cure = "Repair its header, or leave the case out with competition.on_bad_case=skip."
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise MaskfoldError(f"{path} has the voxel size {' × '.join(f'{step:g}' for step in spacing)} mm.", cure)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise MaskfoldError(f"{path} has an affine that cannot be inverted.", cure)
    return spacing, affine
