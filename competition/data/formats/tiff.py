"""Read TIFF files with tifffile, or with Pillow and OpenCV for compressions that tifffile cannot decode."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition import large_arrays
from competition.data.formats.tiff_decoders import bound_decoders
from competition.data.image_types import (
    Header,
    Image,
    byte_count,
    check_declared_size,
    check_not_bomb,
    tiff_orientation,
    turn_back,
    unreadable_error,
    wrong_dimensions_error,
    wrong_values_error,
)
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

UNIT_MILLIMETRES = {  # units of ImageJ and OME
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("inch", "in"), 25.4),
}
OME_FILE = re.compile(r"""<(?:[\w.-]+:)?UUID\b[^>]*?\bFileName\s*=\s*["']([^"']*)["']""")  # file of a plane
UNCOMPRESSED, WHITE_IS_ZERO, PALETTE = 1, 0, 3  # TIFF 6.0, tags 259 and 262


@contextmanager
def open_tiff(path: Path) -> Iterator[TiffFile]:
    """Open a TIFF whose pixels are all in this file; unpack strips and tiles only up to their declared size.

    The metadata of an OME file may name other files, in any folder, that contain planes. The package tifffile would
    read these files, and would replace a missing file by zeros.

    Raises:
        MaskfoldError: pixels are in another file.
    """
    from tifffile import TiffFile

    bound_decoders()
    with TiffFile(path, _multifile=False) as file:
        for name in OME_FILE.findall(file.ome_metadata or ""):
            if html.unescape(name).lower() != path.name.lower():
                raise unreadable_error(
                    path,
                    f"its OME metadata say that the pixels are in another file, {name[:80]}",
                    "Save it as one file (`tifffile.imwrite`, ImageJ). If the file was renamed, give it its old name",
                )
        yield file


def tiff_header(path: Path, dimensions: int, labels: bool = False) -> Header:
    """Read shape, number of channels and dtype without decoding a pixel.

    Args:
        path: the file.
        dimensions: 2 reads pages as channels; 3 reads pages as slices.
        labels: whether the file is a label file. If so, a palette image has one channel, the indices.
    """
    with open_tiff(path) as file:
        series = file.series[0]
        shape, channels = _tiff_layout(path, series, dimensions)
        dtype = np.dtype(series.dtype)
        spacing = _tiff_spacing(file, dimensions)
        name = {"b": "uint8", "f": "float32"}.get(dtype.kind, dtype.newbyteorder("=").name)
        if series.keyframe.photometric == PALETTE and not labels:
            channels, name = channels * 3, "uint8"
        ones = (1.0,) * dimensions
        plain_spacing = None if spacing in (None, ones) else ones
        return Header(shape, spacing or ones, None, channels, name, spacing is not None, plain_spacing=plain_spacing)


def tiff_pixels(path: Path, dimensions: int, labels: bool) -> Image:
    """Decode all pages of the first series (the full resolution of a pyramid).

    Args:
        path: the file.
        dimensions: 2 reads pages as channels, (C, H, W); 3 reads them as slices, (C, H, W, Z). The axes of an ImageJ
            or OME file that has both slices and channels are respected. A large 2D page is decoded strip by strip or
            tile by tile, see `competition.large_arrays`.
        labels: True returns a palette's indices, and 1-bit values as 0 and 1; False returns the palette's colours, and
            1-bit values as 0 and 255.
    """
    with open_tiff(path) as file:
        series = file.series[0]
        shape, channels = _tiff_layout(path, series, dimensions)
        check_tiff_size(path, series)
        if dimensions == 2 and _is_large_page(series) and (array := _read_large_page(series.keyframe)) is not None:
            return Image(array, (1.0,) * dimensions)
        check_declared_size(path, byte_count(shape, series.dtype, channels))
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
    """Return the voxel size of a volume in mm along (H, W, Z), from the metadata of ImageJ or OME.

    Return None for 2D images, whose distances are measured in pixels. Also return None for a file without such
    metadata, because its TIFF resolution describes a printer or scanner.
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
    """Convert a length to mm, rounded to six digits; return 0 if the length or its unit is unknown."""
    try:
        size = abs(float(value)) * UNIT_MILLIMETRES.get(str(unit).strip().lower(), 0.0)
    except (TypeError, ValueError):
        return 0.0
    return float(f"{size:.6g}") if math.isfinite(size) else 0.0


def _is_large_page(series: TiffPageSeries) -> bool:
    """Return whether a series is one large page that can be read in parts.

    The page's stored values must be its pixels: a palette or inverted grey values would need conversion.
    """
    page, dtype = series.keyframe, np.dtype(series.dtype)
    is_plain = dtype.kind in "uif" and page.photometric not in (WHITE_IS_ZERO, PALETTE)
    is_single = len(series.pages) == 1 and series.axes in ("YX", "YXS", "SYX")
    return is_plain and is_single and large_arrays.is_large(series.shape, dtype)


def _read_large_page(page: TiffPage) -> np.ndarray | None:
    """Read a large page as (C, H, W), one strip or tile at a time; None if tifffile lacks the decoder."""
    result = large_arrays.empty((page.samplesperpixel, page.imagelength, page.imagewidth), page.dtype)
    # tifffile orders the axes of strips and tiles as: separate sample, depth, row, column, sample of a pixel.
    target = np.moveaxis(result, 0, -1)[None, None] if page.axes == "YXS" else result[:, None, :, :, None]
    if page.is_memmappable:
        file = page.parent.filehandle
        stored_type = result.dtype.newbyteorder(page.parent.byteorder)
        stored = np.memmap(file.path, stored_type, "r", page.dataoffsets[0], target.shape)
        for rows in large_arrays.row_blocks((page.imagelength, page.imagewidth * len(result))):
            target[:, :, rows] = stored[:, :, rows]
        return result
    try:
        for segment, (sample, _, top, left, _), (_, height, width, _) in page.segments(maxworkers=1):
            part = page.nodata if segment is None else segment[:, : page.imagelength - top, : page.imagewidth - left]
            target[sample, :, top : top + height, left : left + width] = part
    except ValueError as error:
        if not lacks_decoder(page, error):
            raise
        return None
    return result


def lacks_decoder(page: TiffPage | TiffFrame, error: ValueError) -> bool:
    """Return whether `error` means that tifffile cannot decode the page's compression or packed values.

    Newer versions of tifffile say that the package imagecodecs has the decoder. Older versions do not know some
    compressions, e.g. fax codes.
    """
    from tifffile import TIFF

    return "imagecodecs" in str(error) or page.compression not in TIFF.DECOMPRESSORS


def check_tiff_size(path: Path, series: TiffPageSeries) -> None:
    """Check that a file, if it is uncompressed, is large enough for its pages, and that it is no decompression bomb.

    The computed size takes into account that pixels of less than 8 bits share a byte, and that the tiles of a
    compressed page may extend beyond the page.

    Raises:
        MaskfoldError: the file is too small, or unpacks to too many bytes.
    """
    unpacked = byte_count(series.shape, series.dtype)
    if series.keyframe.compression == UNCOMPRESSED:
        unpacked = unpacked * series.keyframe.bitspersample // (8 * np.dtype(series.dtype).itemsize)
        if not series.is_multifile and unpacked > (size := path.stat().st_size):
            check_declared_size(path, unpacked, size)
    else:
        largest = filled = 0
        for page in series:
            if page is not None:
                segment = byte_count(page.chunks, series.dtype)
                largest, filled = max(largest, segment), filled + segment * math.prod(page.chunked)
        check_declared_size(path, largest)
        unpacked = max(unpacked, filled)
    if not series.is_multifile:
        check_not_bomb(path, unpacked)


def _tiff_pages_and_channels(series: TiffPageSeries) -> tuple[int, int]:
    """Return the number of slices and the number of channels into which the pages of a series are divided.

    If the file does not declare channels in addition to slices, the number of channels is 1.
    """
    pages = math.prod(series.shape) // max(math.prod(series.keyframe.shape), 1)
    channels = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    return (pages // channels, channels) if 1 < channels < pages else (pages, 1)


def _tiff_layout(path: Path, series: TiffPageSeries, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Return the spatial shape and the number of channels; raise an error if the values are not real numbers."""
    if (dtype := np.dtype(series.dtype)).kind not in "biuf":
        raise wrong_values_error(path, dtype)
    page = dict(zip(series.keyframe.axes, series.keyframe.shape, strict=True))
    if set(page) - set("YXS"):
        raise unreadable_error(path, f"a page has the axes {series.keyframe.axes}, expected YX, YXS or SYX")
    slices, channels = _tiff_pages_and_channels(series)
    samples, size = page.get("S", 1), (page["Y"], page["X"])
    if dimensions == 2:
        return size, slices * channels * samples
    if series.keyframe.shape == series.shape:
        raise wrong_dimensions_error(path, size, dimensions)
    return (*size, slices), channels * samples


def _decode_series(path: Path, series: TiffPageSeries) -> np.ndarray:
    """Decode the series in the file's order of axes; invert it if the file stores white as 0."""
    try:
        array = np.asarray(series.asarray())
    except ValueError as error:
        if not lacks_decoder(series.keyframe, error):
            raise
        pages = _decode_pages(path, series)
        if sum(page.size for page in pages) != math.prod(series.shape):
            compression = getattr(series.keyframe.compression, "name", "unknown")
            raise MaskfoldError(  # with status 1, `on_bad_case: skip` would skip every case
                f"{path} cannot be read, because no installed package decodes its compression {compression}.",
                "Install a package that decodes it: pip install imagecodecs. Or save the file with the compression "
                "Deflate.",
                status=2,
            ) from error
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
