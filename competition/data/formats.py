"""Readers of each family of file formats: PNG, JPEG, BMP and GIF; NIfTI; NumPy; TIFF.

Each family has one function that reads the header, and one that reads the pixels after it checked the declared size.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.data.image_types import (
    DEFLATE_BOUND,
    Header,
    Image,
    byte_count,
    channels_first,
    check_declared_size,
    check_not_bomb,
    tiff_orientation,
    turn_back,
    unreadable_error,
    wrong_dimensions_error,
)
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from tifffile import TiffFile, TiffPageSeries

PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples per pixel by colour type (PNG specification, 11.2.2)
# First column, first row, column step and row step of the seven passes of an interlaced file (8.2).
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_BLOCK = 2**18  # bytes unpacked at a time, so that a decompression bomb cannot fill the memory
RASTER_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 3}
DEEP_MODES = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
# Mm per unit, by the header's codes of metres and micrometres; all other codes count as mm.
MILLIMETRES = {1: 1000.0, 3: 0.001}
NIFTI_SIZES = (348, 540, 0x5C010000, 0x1C020000)  # the first field of NIfTI-1 and NIfTI-2 headers, in both byte orders
PIXDIM_ROUNDING = 1e-4  # relative difference between pixdim and affine that rounding explains
MAX_TRAILING = 2**24  # maximum number of bytes after the last voxel
ARRAY_NAMES = {False: ("image", "img", "arr_0"), True: ("mask", "label", "labels", "arr_0")}
UNIT_MILLIMETRES = {  # units of ImageJ and OME
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("inch", "in"), 25.4),
}
# A JPEG has at least one bit for each 8×8 block of a component. Its up to four components share at least ten such
# blocks in 32×32 pixels, if they are subsampled as much as ISO/IEC 10918-1 allows: at most 4 × 1024 × 8 / 10 bytes from
# one byte.
JPEG_BOUND = 4096
UNCOMPRESSED, WHITE_IS_ZERO, PALETTE = 1, 0, 3  # TIFF 6.0, tags 259 and 262


# PNG, JPEG, BMP and GIF: Pillow, and OpenCV for 16-bit colours


def raster_header(path: Path, dimensions: int) -> Header:
    """Read size, channels and depth without decoding a pixel."""
    with open_raster(path) as image:
        return _raster_header(path, image, dimensions)[0]


def _raster_header(path: Path, image: PilImage, dimensions: int) -> tuple[Header, int]:
    """Return the header of a raster image, and its bits per sample."""
    shape = (image.height, image.width)
    if dimensions != 2:
        raise wrong_dimensions_error(path, shape, dimensions)
    mode, depth = _decoded_mode(image), _bits_per_sample(path, image)
    _check_packed_size(path, image, shape, depth)
    dtype = "uint16" if depth == 16 else DEEP_MODES.get(mode, "uint8")
    return Header(shape, (1.0, 1.0), None, RASTER_CHANNELS[mode], dtype), depth


def raster_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Decode a 2D image as (C, H, W).

    Args:
        path: the file.
        dimensions: 2.
        labels: True returns a palette's indices and the raw values of 1-, 2- and 4-bit files; False returns the
            palette's colours, and scales few bits to 0…255.
    """
    with open_raster(path) as image:
        head, depth = _raster_header(path, image, dimensions)
        declared = head.shape[0] * head.shape[1] * head.channels * np.dtype(head.dtype).itemsize
        check_declared_size(path, declared)
        check_not_bomb(path, declared)
        if image.format == "PNG":
            check_png(path)  # Pillow and OpenCV both silently fill in what damaged data lack
        if depth == 16 and image.mode not in DEEP_MODES:
            return _decode_16_bit_colours(path, head.channels)
        array = _raster_labels(image, depth) if labels else np.asarray(image.convert(_decoded_mode(image)))
    if array.dtype == bool:
        array = array.astype(np.uint8) * (1 if labels else 255)
    if depth == 16 and array.dtype != np.uint16:
        array = array.astype(np.uint16)
    return Image(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), (1.0, 1.0))


@contextmanager
def open_raster(path: Path) -> Iterator[PilImage]:
    """Open a PNG, JPEG, BMP or GIF with Pillow."""
    import PIL.Image

    # Pillow's limit depends neither on the file size nor on the free memory; `check_declared_size` checks both.
    PIL.Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about metadata do not concern the pixels
        with PIL.Image.open(path, formats=("PNG", "JPEG", "BMP", "GIF")) as image:
            yield image


def _decoded_mode(image: PilImage) -> str:
    """Return the mode to which an image (not a label file) is decoded."""
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    if image.mode not in RASTER_CHANNELS:
        return "RGB"
    return "RGB" if image.mode == "CMYK" else image.mode


def _bits_per_sample(path: Path, image: PilImage) -> int:
    """Return the bits per sample; Pillow hides a PNG's, which are in byte 24 of the file (PNG specification, IHDR)."""
    if image.format != "PNG":
        return 8
    with path.open("rb") as file:
        return file.read(25)[24]


def _check_packed_size(path: Path, image: PilImage, shape: tuple[int, int], depth: int) -> None:
    """Check that a PNG or JPEG does not declare more pixels than its bytes can be unpacked to."""
    bound = {"PNG": DEFLATE_BOUND, "JPEG": JPEG_BOUND}.get(image.format or "")
    if bound is not None:
        row = -(-shape[1] * RASTER_CHANNELS.get(image.mode, 1) * depth // 8)
        check_declared_size(path, shape[0] * row, path.stat().st_size * bound)


def _raster_labels(image: PilImage, depth: int) -> np.ndarray:
    """Return the stored values of a label image; undo Pillow's scaling of 2- and 4-bit grey values to 8 bits."""
    array = np.asarray(image)
    if image.mode == "L" and depth in (2, 4):
        return array // (255 // (2**depth - 1))
    return array


def _decode_16_bit_colours(path: Path, channels: int) -> Image:
    """Decode a 16-bit colour PNG; OpenCV returns BGR, and may add an alpha channel for one transparent colour."""
    import cv2

    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise unreadable_error(path, "OpenCV cannot decode it")
    if array.ndim == 2:
        return Image(array[None], (1.0, 1.0))
    order = [2, 1, 0, 3][:channels]
    return Image(np.ascontiguousarray(np.moveaxis(array, -1, 0)[order]), (1.0, 1.0))


# Verification of PNG files, since decoders silently fill in what damaged data lack


def check_png(path: Path) -> None:
    """Read a whole PNG once and verify it.

    Args:
        path: the file, whose header a decoder has read already.

    Raises:
        MaskfoldError: the checksum of a pixel chunk is wrong, or the file has fewer pixels than its header declares.
    """
    with path.open("rb") as file:
        file.seek(8)
        decompressor, count, expected = zlib.decompressobj(), 0, None
        for kind, body in _pixel_chunks(path, file):
            if kind == b"IHDR" and expected is None:
                expected = _unpacked_length(body)
            elif kind == b"IDAT" and expected is not None and count < expected:
                count += _count_unpacked(decompressor, body, expected - count)
    if expected is None or count < expected:
        raise unreadable_error(path, f"found {count:,} bytes of pixels, expected {expected or 0:,}")


def _pixel_chunks(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the chunks that affect pixels, with verified checksums."""
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head.ljust(8, b"\0"))
        if kind[:1].islower() and kind != b"tRNS":  # metadata
            file.seek(length + 4, 1)
            continue
        body, check = file.read(length), file.read(4)
        if len(body) < length or check != struct.pack(">I", zlib.crc32(kind + body)):
            raise unreadable_error(path, f"the checksum of its {kind.decode('latin1')} chunk is wrong")
        yield kind, body
        if kind == b"IEND":
            return
    raise unreadable_error(path, "it is truncated")


def _unpacked_length(header: bytes) -> int:
    """Return the bytes of the unpacked lines, each with its filter byte."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, column_step, row_step in passes:
        columns, rows = -(-(width - column) // column_step), -(-(height - row) // row_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * PNG_SAMPLES[colour] * depth // 8))
    return total


def _count_unpacked(decompressor: zlib._Decompress, body: bytes, limit: int) -> int:
    """Count the bytes that a chunk unpacks to; stop at most a block after `limit`."""
    count = len(decompressor.decompress(body, PNG_BLOCK))
    while decompressor.unconsumed_tail and count < limit:
        count += len(decompressor.decompress(decompressor.unconsumed_tail, PNG_BLOCK))
    return count


# NIfTI: nibabel


def nifti_header(path: Path, dimensions: int) -> Header:
    """Read shape, spacing and affine without unpacking a voxel."""
    return _nifti_header(path, _load_nifti(path), dimensions)


def nifti_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Read voxels as (C, X, Y, Z): a fourth axis of the file becomes the channels.

    Unscaled integers keep their dtype; everything else becomes float32. `labels` is ignored.
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
    """Open a file without reading its voxels; raise an error if its extension or its intercept is wrong."""
    import nibabel

    with path.open("rb") as file:
        start = file.read(4)
    is_packed = start[:2] == b"\x1f\x8b"
    if is_packed != (path.suffix.lower() == ".gz") and (is_packed or int.from_bytes(start, "little") in NIFTI_SIZES):
        name = path.name + ".gz" if is_packed else path.name[:-3]
        found = "compressed by gzip" if is_packed else "not compressed"
        raise unreadable_error(path, f"it is NIfTI {found}, unlike its name", f"Rename it to {name}")
    with gzip.open(path) if is_packed else path.open("rb") as file:
        head = file.read(348)
    is_plain = int.from_bytes(head[:4], "little") in NIFTI_SIZES[::2] and head[344:] == b"n+1\0"  # a NIfTI-1 file
    try:  # faster than `nibabel.load`, which tries each of its formats
        return nibabel.Nifti1Image.from_filename(path) if is_plain else nibabel.load(path)
    except nibabel.spatialimages.HeaderDataError as error:
        if "invalid intercept" not in str(error):
            raise
        raise unreadable_error(
            path, "its header has no finite scl_inter", "Set it to 0 if values have no offset"
        ) from error


@contextmanager
def _read_to_end(path: Path, image: Any) -> Iterator[Any]:
    """Yield the voxels; read the rest of a gzip file after them, so that gzip verifies the checksum at its end."""
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
                raise unreadable_error(path, "it has too much data after its last voxel")


def _is_scaled_nifti(proxy: Any) -> bool:
    return (proxy.slope, proxy.inter) != (1.0, 0.0)


def _nifti_header(path: Path, image: Any, dimensions: int) -> Header:
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind == "c":
        raise unreadable_error(path, f"its values are complex ({dtype})", "Save their magnitude as float32")
    if dtype.kind not in "iuf" and not dtype.names:
        raise unreadable_error(path, f"its values are {dtype}")
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
    has_place = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    name = "uint8" if colours > 1 else dtype.newbyteorder("=").name
    is_float = dtype.kind == "f" or _is_scaled_nifti(image.dataobj)
    channels = colours * math.prod(channel_axes)
    dtype_name = "float32" if is_float else name
    return Header(shape[:dimensions], spacing, affine, channels, dtype_name, True, has_place, plain_spacing)


def _nifti_geometry(
    path: Path, image: Any, dimensions: int
) -> tuple[tuple[float, ...], tuple[float, ...] | None, np.ndarray]:
    """Return the spacing, the spacing in pixdim if it differs, and the affine, all in mm.

    The spacing comes from the affine, which determines the positions of voxels: it is the length of the affine's
    columns. If pixdim agrees with it within `PIXDIM_ROUNDING`, pixdim is returned, because it has no rounding errors.
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
    hint = "Repair its header, or skip the case with competition.on_bad_case=skip."
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        size = " × ".join(f"{step:g}" for step in spacing)
        raise MaskfoldError(f"{path} has an invalid voxel size: found {size} mm, expected positive numbers.", hint)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise MaskfoldError(f"{path} has a singular or non-finite affine.", hint)
    columns = tuple(float(length) for length in lengths[:dimensions])
    if all(abs(mm - pixdim) <= PIXDIM_ROUNDING * pixdim for mm, pixdim in zip(columns, spacing, strict=True)):
        return spacing, None, affine
    return columns, spacing, affine


# NumPy arrays and archives


def numpy_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read shape and dtype without reading a value."""
    shape, dtype = _declared_array(path, labels)
    if dtype.kind not in "biuf":
        raise unreadable_error(path, f"its values are {dtype}")
    view = channels_first(np.broadcast_to(np.zeros(1, np.uint8), shape), dimensions, path)
    name = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
    return Header(view.shape[1:], (1.0,) * dimensions, None, view.shape[0], name)


def numpy_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Read an array; `channels_first` finds its channel axis.

    Args:
        path: an .npy file, or an .npz archive that has one array, or several arrays of which one is named `image` (or
            `mask`).
        dimensions: 2 or 3.
        labels: whether to select the mask or the image if an archive has several arrays.
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
        raise unreadable_error(path, f"its format version is {version}")
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
    raise MaskfoldError(
        f"{path} has several arrays or no array: found {', '.join(keys[:5]) or 'no array'}, expected one, or one named "
        f"{' or '.join(ARRAY_NAMES[labels])}.",
        f"Save one array per file, or name one of them `{ARRAY_NAMES[labels][0]}`.",
    )


# TIFF: tifffile, or Pillow and OpenCV for compressions that tifffile cannot decode


def tiff_header(path: Path, dimensions: int) -> Header:
    """Read size, pages and depth without decoding a pixel."""
    from tifffile import TiffFile

    with TiffFile(path) as file:
        series = file.series[0]
        shape, channels = _tiff_layout(path, series, dimensions)
        dtype = np.dtype(series.dtype)
        if dtype.kind not in "biuf":
            raise unreadable_error(path, f"its values are {dtype}")
        spacing = _tiff_spacing(file, dimensions)
        name = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
        if series.keyframe.photometric == PALETTE:
            channels, name = channels * 3, "uint8"
        ones = (1.0,) * dimensions
        plain_spacing = None if spacing in (None, ones) else ones
        return Header(shape, spacing or ones, None, channels, name, spacing is not None, plain_spacing=plain_spacing)


def tiff_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Decode all pages of the first series (the full resolution of a pyramid).

    Args:
        path: the file.
        dimensions: 2 reads pages as channels, (C, H, W); 3 reads them as slices, (C, H, W, Z). The axes of an ImageJ
            or OME file that has both slices and channels are respected.
        labels: True returns a palette's indices, and bits as 0 and 1; False its colours, and bits as 0 and 255.
    """
    from tifffile import TiffFile

    with TiffFile(path) as file:
        series = file.series[0]
        shape, channels = _tiff_layout(path, series, dimensions)
        _check_tiff_size(path, series, byte_count(shape, series.dtype, channels))
        array = _decode_series(path, series)
        if array.dtype == bool:
            array = array.astype(np.uint8) * (1 if labels else 255)
        array = _tiff_to_channels_first(array, series, dimensions)
        if series.keyframe.photometric == PALETTE and not labels:
            colours = (np.asarray(series.keyframe.colormap) >> 8).astype(np.uint8)  # (3, colours), 16 bits in the file
            array = np.concatenate([colours[:, channel] for channel in array])
        spacing = _tiff_spacing(file, dimensions)
    return Image(array, spacing or (1.0,) * dimensions, has_spacing=spacing is not None)


def _tiff_spacing(file: TiffFile, dimensions: int) -> tuple[float, ...] | None:
    """Return the voxel size of a volume, mm along (H, W, Z), by the metadata of ImageJ or OME; None without them.

    In other files the resolution is that of a printer or scanner, and distances in 2D images are measured in pixels.
    """
    if dimensions != 3:
        return None
    sizes: list[float] = []
    if file.ome_metadata is not None:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata)
        for axis in "YXZ" if pixels is not None else "":
            size = re.search(rf'\bPhysicalSize{axis}="([^"]*)"', pixels[0])  # type: ignore[index]
            unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', pixels[0])  # type: ignore[index]
            sizes.append(_in_millimetres(size[1] if size else "", unit[1] if unit else "\u00b5m"))
    elif file.imagej_metadata is not None:
        metadata, tags = file.imagej_metadata, file.pages.first.tags
        for name in ("YResolution", "XResolution"):  # pixels per unit, as a fraction
            count, length = tags[name].value if name in tags else (0, 1)
            sizes.append(_in_millimetres(length / count if count else 0, metadata.get("unit")))
        sizes.append(_in_millimetres(metadata.get("spacing"), metadata.get("unit")))
    return tuple(sizes) if len(sizes) == 3 and all(size > 0 for size in sizes) else None


def _in_millimetres(value: Any, unit: object) -> float:
    """Convert a length, rounded to six digits since resolutions are fractions; 0 if it or its unit is unknown."""
    try:
        size = abs(float(value)) * UNIT_MILLIMETRES.get(str(unit).strip().lower(), 0.0)
    except (TypeError, ValueError):
        return 0.0
    return float(f"{size:.6g}") if math.isfinite(size) else 0.0


def _check_tiff_size(path: Path, series: TiffPageSeries, unpacked: int) -> None:
    """Check that uncompressed pages of the declared size fit in the file, with several pixels per byte for few bits."""
    packed = unpacked * series.keyframe.bitspersample // (8 * np.dtype(series.dtype).itemsize)
    is_plain = series.keyframe.compression == UNCOMPRESSED and not series.is_multifile
    check_declared_size(path, packed, path.stat().st_size if is_plain else None)
    if not series.is_multifile:
        check_not_bomb(path, unpacked if series.keyframe.compression != UNCOMPRESSED else packed)
    check_declared_size(path, unpacked)


def _tiff_pages_and_channels(series: TiffPageSeries) -> tuple[int, int]:
    """Return the number of slices and of channels of the pages; there is 1 channel unless the file declares both."""
    pages = math.prod(series.shape) // max(math.prod(series.keyframe.shape), 1)
    channels = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    return (pages // channels, channels) if 1 < channels < pages else (pages, 1)


def _tiff_layout(path: Path, series: TiffPageSeries, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Return spatial shape and channels."""
    page = dict(zip(series.keyframe.axes, series.keyframe.shape, strict=True))
    if set(page) - set("YXS"):
        raise unreadable_error(path, f"a page has the axes {series.keyframe.axes}")
    slices, channels = _tiff_pages_and_channels(series)
    samples, size = page.get("S", 1), (page["Y"], page["X"])
    if dimensions == 2:
        return size, slices * channels * samples
    if series.keyframe.shape == series.shape:
        raise wrong_dimensions_error(path, size, dimensions)
    return (*size, slices), channels * samples


def _decode_series(path: Path, series: TiffPageSeries) -> np.ndarray:
    """Decode the series in the file's order of axes; white becomes the larger number."""
    try:
        array = np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        pages = _decode_pages(path, series)
        if sum(page.size for page in pages) != math.prod(series.shape):
            compression = getattr(series.keyframe.compression, "name", "unknown")
            raise unreadable_error(path, f"its compression {compression} has no decoder") from error
        return np.stack(pages).reshape(series.shape)
    if series.keyframe.photometric == WHITE_IS_ZERO:
        return ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
    return array


def _decode_pages(path: Path, series: TiffPageSeries) -> list[np.ndarray]:
    """Decode pages with libtiff (LZW, JPEG and fax codes): through Pillow for up to 8 bits, through OpenCV for more."""
    if series.keyframe.bitspersample <= 8:
        import PIL.Image
        import PIL.ImageSequence

        PIL.Image.MAX_IMAGE_PIXELS = None  # `check_declared_size` has checked the size
        with PIL.Image.open(path, formats=("TIFF",)) as file:
            pages = [np.array(page) for page in PIL.ImageSequence.Iterator(file)]
    else:
        import cv2

        _, decoded = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
        pages = [page if page.ndim == 2 else page[..., [2, 1, 0, 3][: page.shape[2]]] for page in decoded]
    # Both libraries apply the orientation of pages.
    pages = [turn_back(page, tiff_orientation(series)) for page in pages]
    return [np.moveaxis(page, -1, 0) for page in pages] if series.keyframe.axes == "SYX" else pages


def _tiff_to_channels_first(array: np.ndarray, series: TiffPageSeries, dimensions: int) -> np.ndarray:
    """Reorder the axes of the file to (C, H, W) or (C, H, W, Z)."""
    page = series.keyframe
    slices, channels = _tiff_pages_and_channels(series)
    if channels > 1:  # pages in the order slices, channels
        array = np.moveaxis(array, series.axes.index("C"), -len(page.shape) - 1)
    array = array.reshape(slices, channels, *page.shape)
    if "S" not in page.axes:
        array = array[:, :, None]
    elif page.axes != "SYX":
        array = np.moveaxis(array, -1, 2)  # (slices, channels, samples, H, W)
    if dimensions == 3:
        array = np.moveaxis(array, 0, -1)
    return array.reshape(-1, *array.shape[-dimensions:])


# Table of the readers


class FileFormat(NamedTuple):
    """The functions that read one family of file formats."""

    header: Callable[..., Header]
    pixels: Callable[..., Any]


READERS = {
    "raster": FileFormat(raster_header, raster_pixels),
    "tiff": FileFormat(tiff_header, tiff_pixels),
    "nifti": FileFormat(nifti_header, nifti_pixels),
    "numpy": FileFormat(numpy_header, numpy_pixels),
}
