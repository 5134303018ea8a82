"""Read image and label files of any supported format, and put together the image of a case from its files.

The extension of a file selects the format.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.axes import case_axes, file_axes, permutation
from competition.config.competition import Competition
from competition.data.content.open_once import file_below
from competition.data.formats import READERS, FileFormat
from competition.data.formats.raster import open_raster
from competition.data.image_types import (
    FIRST_SIDEWAYS,
    ORIENTATION_TAG,
    Header,
    Image,
    convert_decoder_errors,
    tiff_orientation,
    turn,
    unreadable_error,
)
from competition.errors import MaskfoldError
from competition.text import format_count

# parts of messages by which `competition.planning.layouts.content` tells images from masks
NO_INTEGERS, OTHER_CHANNELS = "not whole numbers", "channels with different values"

EXTENSIONS = {
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".bmp": "raster",
    ".gif": "raster",
    ".jp2": "raster",
    ".j2k": "raster",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".npy": "numpy",
    ".npz": "numpy",
    ".nrrd": "itk",
    ".nhdr": "itk",
    ".mha": "itk",
    ".mhd": "itk",
}

ITK_EXTENSIONS = (".gipl", ".vtk")  # medical formats that ITK reads, and Maskfold does not


# Single files


def read_image(path: str | Path, dimensions: int | None = None, exif: bool = False) -> Image:
    """Read an image file of any supported format.

    16-bit values stay 16-bit. An alpha channel is kept, and dropped only by preprocessing (see `prepare.channels`).
    Palette indices become colours.

    Args:
        path: a PNG, JPEG, JPEG 2000, BMP, GIF, TIFF, NIfTI, NPY, NPZ, NRRD, NHDR, MHA or MHD file.
        dimensions: number of spatial axes, 2 or 3. In a TIFF, 2 reads the pages as channels, and 3 as slices. None
            means 3 for NIfTI, NRRD and MHA, and 2 for other formats.
        exif: whether a 2D image is rotated by its EXIF orientation. Most masks and run lengths refer to the pixels as
            they are stored.

    Returns:
        The image; its array is (C, H, W), (C, X, Y, Z) or (C, H, W, Z).

    Raises:
        MaskfoldError: the file is missing, of an unknown format, truncated, too large, or has NaN or infinite values.

    Example:
        >>> read_image("case.nii.gz").spacing      # doctest: +SKIP
        (1.0, 1.0, 1.0)
    """
    path = path if isinstance(path, Path) else Path(path)
    file_format, dimensions = _reader(path, dimensions)
    with convert_decoder_errors(path):
        image = _to_native(path, file_format.pixels(path, dimensions, labels=False))
    image = _apply_exif(path, image) if exif and dimensions == 2 else image
    invalid = 0
    if image.array.dtype.kind == "f":
        invalid = image.array.size - int(np.isfinite(image.array).sum())
    if invalid:
        raise MaskfoldError(
            f"{path} has {invalid:,} NaN or infinite value{'' if invalid == 1 else 's'}.",
            "Repair the file, or skip the case with competition.on_bad_case=skip.",
        )
    return image


def read_labels(
    path: str | Path, dimensions: int | None = None, exif: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the integer labels of a file of any supported format, and the file's affine.

    If the file has a palette, its indices are the labels. If the file has several channels, they must be equal (a grey
    mask saved as RGB), apart from a constant alpha channel.

    Args:
        path: as for `read_image`.
        dimensions: as for `read_image`.
        exif: as for `read_image`.

    Returns:
        The labels as (*spatial) integers, unchanged, and the affine (4×4 float64, mm) or None.

    Raises:
        MaskfoldError: as for `read_image`; or the channels differ; or a value is not an integer.
    """
    path = path if isinstance(path, Path) else Path(path)
    file_format, dimensions = _reader(path, dimensions)
    with convert_decoder_errors(path):
        image = _to_native(path, file_format.pixels(path, dimensions, labels=True))
    image = _apply_exif(path, image) if exif and dimensions == 2 else image
    array = _single_channel(path, image.array)
    return _as_integers(path, array) if array.dtype.kind == "f" else array, image.affine


def _as_integers(path: Path, array: np.ndarray) -> np.ndarray:
    """Convert floating-point labels to int32 slice by slice, to avoid another copy of a large volume.

    Raises:
        MaskfoldError: a value is not an integer.
    """
    labels = np.empty(array.shape, np.int32)
    for index in range(array.shape[-1]):
        values = array[..., index]
        rounded = np.rint(values)
        is_wrong = ~(np.abs(values - rounded) <= 1e-3)
        if is_wrong.any():
            wrong = np.unique(array[~(np.abs(array - np.rint(array)) <= 1e-3)])
            shown = ", ".join(f"{value:.6g}" for value in wrong[:3]) + (" and others" if len(wrong) > 3 else "")
            raise MaskfoldError(
                f"{path} has label values that are {NO_INTEGERS}: found {shown}.",
                "Save the mask with integers. If you resample masks, use nearest-neighbour interpolation.",
            )
        labels[..., index] = rounded
    return labels


def read_header(path: str | Path, dimensions: int | None = None, labels: bool = False, exif: bool = False) -> Header:
    """Read the metadata of a file, without its pixels.

    Args:
        path: as for `read_image`.
        dimensions: as for `read_image`.
        labels: whether the file is a label file. If so, a palette image has one channel, the indices. Of an archive
            with several arrays, the header of the label array is read.
        exif: as for `read_image`.

    Returns:
        Shape, spacing, affine, channels and dtype.

    Raises:
        MaskfoldError: the file is missing or has an unknown format, or its header is broken or declares too large a
            size.
    """
    path = path if isinstance(path, Path) else Path(path)
    file_format, dimensions = _reader(path, dimensions)
    with convert_decoder_errors(path):
        result: Header = file_format.header(path, dimensions, labels)
    if 0 in (*result.shape, result.channels):
        raise _empty_error(path, result.shape, result.channels)
    if exif and dimensions == 2 and exif_orientation(path) >= FIRST_SIDEWAYS:
        result = replace(result, shape=result.shape[::-1], spacing=result.spacing[::-1])
    return result


def exif_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of a raster or TIFF file, 1 (as stored) to 8.

    Return 1 if the file has no valid orientation, or is of another format.
    """
    path, value = Path(path), 1
    kind = EXTENSIONS.get(extension_of(path.name))
    if kind not in ("raster", "tiff"):
        return 1
    with suppress(Exception):  # Damaged metadata are ignored, because they do not affect the pixels.
        if kind == "tiff":
            from competition.data.formats.tiff import open_tiff

            with open_tiff(path) as file:
                value = tiff_orientation(file.series[0])
        else:
            with open_raster(path) as image:
                # Pillow would decode a whole PNG to search for the orientation.
                if image.format != "PNG" or "exif" in image.info:
                    value = int(image.getexif().get(ORIENTATION_TAG, 1))
    return value if 1 <= value <= 8 else 1


def _apply_exif(path: Path, image: Image) -> Image:
    """Return a 2D image (C, H, W) rotated by its EXIF orientation."""
    orientation = exif_orientation(path)
    array = np.moveaxis(turn(np.moveaxis(image.array, 0, -1), orientation), -1, 0)
    spacing = image.spacing[::-1] if orientation >= FIRST_SIDEWAYS else image.spacing
    return replace(image, array=np.ascontiguousarray(array), spacing=spacing)


def _reader(path: Path, dimensions: int | None) -> tuple[FileFormat, int]:
    """Return the reader functions for a file's format, and the number of the file's spatial axes."""
    kind = EXTENSIONS.get(extension_of(path.name))
    if kind is None and extension_of(path.name) in (".dcm", ".dicom", ".ima"):
        raise MaskfoldError(
            f"{path} is a DICOM file, which Maskfold does not read directly.",
            "Convert the study to volumes first: maskfold dicom FOLDER -o OUTPUT --layout imagesTr.",
        )
    if kind is None:
        raise MaskfoldError(
            f"{path} has an extension that Maskfold does not read: expected one of {', '.join(EXTENSIONS)}.",
            _conversion_hint(path),
        )
    return READERS[kind], dimensions or (3 if kind in ("nifti", "itk") else 2)


def _conversion_hint(path: Path) -> str:
    """Return a hint with a command that converts a file of a medical format to NIfTI."""
    extension, stem = extension_of(path.name), path.name.partition(".")[0]
    if extension in (".img", ".hdr"):
        return (
            "Convert each pair of .hdr and .img files to NIfTI with nibabel's command: "
            f"nib-convert {stem}.img {stem}.nii.gz"
        )
    if extension not in ITK_EXTENSIONS:
        return "Convert the file to one of these formats."
    return (
        "Convert each file to NIfTI with SimpleITK (pip install SimpleITK), with the same position and voxel size: "
        f'python -c \'import SimpleITK as s; s.WriteImage(s.ReadImage("{path.name}"), "{stem}.nii.gz")\''
    )


def _to_native(path: Path, image: Image) -> Image:
    """Convert an image to the machine's byte order, and floats of other precision to float32."""
    array = image.array
    if array.size == 0:
        raise _empty_error(path, array.shape[1:], len(array))
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return replace(image, array=np.ascontiguousarray(array.astype(dtype, copy=False)))


def _empty_error(path: Path, shape: tuple[int, ...], channels: int) -> MaskfoldError:
    size = f"{'×'.join(map(str, shape))} with {format_count(channels, 'channel')}"
    return unreadable_error(path, f"its shape is {size}, expected at least one pixel")


def _single_channel(path: Path, array: np.ndarray) -> np.ndarray:
    """Return labels (C, *spatial) as one channel; raise an error if the channels, except a constant alpha, differ."""
    if len(array) == 1:
        return array[0]
    colours = array
    if len(array) in (2, 4) and (array[-1] == array[-1].flat[0]).all():
        colours = array[:-1]
    if (colours == colours[:1]).all():
        return colours[0]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MaskfoldError(
            f"The label file {path} has NaN or infinite values, expected whole numbers.",
            "Write one whole number per pixel.",
        )
    raise MaskfoldError(
        f"The label file {path} has {len(array)} {OTHER_CHANNELS}, expected 1 channel.",
        "Write one whole number per pixel, or one file per class"
        + ("; if the fourth axis is time, write a file for each volume." if array.ndim == 4 else "."),
    )


# The image of a case


def load_image(comp: Competition, row: Any) -> Image:
    """Read the image of a case.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        The image (C, *spatial) with the channels of all files, in the YAML's order. A stack of slices becomes (C, H,
        W, Z). The spatial axes have the competition's order, see `competition.config.axes`; spacing and affine come
        from the first channel.

    Raises:
        MaskfoldError: a file cannot be read, has NaN or infinite values, or differs in size from the other files.
    """
    axes = row_axes(comp, row)
    parts = [_read(comp, files, axes) for files in get_json(row, "images").values()]
    sizes = {part.array.shape[1:] for part in parts}
    if len(sizes) > 1:
        raise MaskfoldError(
            f"The channels of case {get_column(row, 'id')} have different sizes: "
            f"{', '.join('×'.join(map(str, size)) for size in sorted(sizes))}.",
            "Resample all channels to one grid, or skip the case with competition.on_bad_case=skip.",
        )
    if len(parts) == 1:
        return parts[0]
    array = np.concatenate([part.array for part in parts])
    if array.dtype == np.float64:  # float64 results from combining 32-bit integers with floats
        array = array.astype(np.float32)
    return replace(parts[0], array=array)


def read_case_header(comp: Competition, files: str | list[str], labels: bool, axes: str | None) -> Header:
    """Read the header of a case's file in the case's order of axes; a stack has one header for all its slices.

    Args:
        comp: the competition.
        files: a path below the root, or a stack's paths.
        labels: whether the file is a label file.
        axes: the case's order of axes, such as `xyz`; None if it is unknown.

    Raises:
        MaskfoldError: a file cannot be read, or the slices of a stack differ.
    """
    root = comp.root
    if isinstance(files, str):
        header = read_header(file_below(root, files), comp.dimensions, labels, comp.applies_exif)
    else:
        headers = [read_header(file_below(root, path), 2, labels, comp.applies_exif) for path in files]
        first = headers[0]
        for path, other in zip(files, headers, strict=True):
            if other.shape != first.shape or other.channels != first.channels:
                raise MaskfoldError(
                    f"The slices {root / files[0]} and {root / path} have different sizes: {_format_size(first)} and "
                    f"{_format_size(other)}.",
                    "Give all slices of a case the same size, or skip the case with competition.on_bad_case=skip.",
                )
        header = Header((*first.shape, len(headers)), (1.0, 1.0, 1.0), None, first.channels, first.dtype)
    order = permutation(file_axes(comp, files), axes)
    if order is not None:
        plain_spacing = None if header.plain_spacing is None else _permute(header.plain_spacing, order)
        header = replace(
            header,
            shape=_permute(header.shape, order),
            spacing=_permute(header.spacing, order),
            affine=_permute_affine(header.affine, order),
            plain_spacing=plain_spacing,
        )
    return header if comp.spacing is None or header.has_spacing else replace(header, spacing=tuple(comp.spacing))


def read_case_labels(comp: Competition, files: str | list[str], axes: str | None) -> np.ndarray:
    """Read the labels (*spatial) of a file or of a stack of slices, in the case's order of axes.

    Args:
        comp: the competition.
        files: a path below the root, or a stack's paths.
        axes: the case's order of axes, such as `xyz`; None if it is unknown.

    Raises:
        MaskfoldError: as for `read_labels`.
    """
    root = comp.root
    if isinstance(files, str):
        labels = read_labels(file_below(root, files), comp.dimensions, comp.applies_exif)[0]
    else:
        labels = np.stack([read_labels(file_below(root, path), 2, comp.applies_exif)[0] for path in files], axis=-1)
    order = permutation(file_axes(comp, files), axes)
    return labels if order is None else np.ascontiguousarray(labels.transpose(order))


def row_axes(comp: Competition, row: Any) -> str | None:
    """Return the order of axes of a case's arrays, such as `xyz`; None if the case's files do not define an order."""
    files: str | list[str] | None = next(iter(get_json(row, "images").values()), None)
    return None if files is None else case_axes(comp, files)


def transpose_image(image: Image, order: tuple[int, ...] | None) -> Image:
    """Reorder the spatial axes of an image, with its spacing and affine; `order` is a result of `permutation`."""
    if order is None:
        return image
    array = np.ascontiguousarray(image.array.transpose(0, *(axis + 1 for axis in order)))
    return replace(
        image, array=array, spacing=_permute(image.spacing, order), affine=_permute_affine(image.affine, order)
    )


def _permute(values: tuple[Any, ...], order: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(values[axis] for axis in order)


def _permute_affine(affine: np.ndarray | None, order: tuple[int, ...]) -> np.ndarray | None:
    """Reorder the columns of an affine; for 2D images, the third column stays in place."""
    return None if affine is None else affine[:, [*order, *range(len(order), 4)]]


def _format_size(header: Header) -> str:
    return f"{'×'.join(map(str, header.shape))} with {format_count(header.channels, 'channel')}"


def get_column(row: Any, column: str) -> Any:
    """Return one cell of a row of the case table.

    Args:
        row: a Series, a tuple of `itertuples`, or an object with the columns as attributes. A Series is read by key,
            because attributes such as `shape` hide its columns of the same name.
        column: name of the column.
    """
    return row[column] if hasattr(row, "iloc") else getattr(row, column)


def get_json(row: Any, column: str) -> Any:
    """Return the parsed JSON of one cell of a row; the result is shared, so it must not be changed."""
    return _parse_cell(get_column(row, column))


@lru_cache(maxsize=16)
def _parse_cell(text: str) -> Any:
    """Parse a cell; the result is cached, because the cells of one case are read several times in succession."""
    return json.loads(text)


def _read(comp: Competition, files: str | list[str], axes: str | None) -> Image:
    """Read the image of a file or of a stack of slices, in the case's order of axes."""
    root = comp.root
    if isinstance(files, str):
        image = read_image(file_below(root, files), comp.dimensions, comp.applies_exif)
    else:
        slices = [read_image(file_below(root, path), 2, comp.applies_exif).array for path in files]
        for path, array in zip(files, slices, strict=True):
            if array.shape != slices[0].shape:
                raise MaskfoldError(
                    f"The slices {root / files[0]} and {root / path} have different shapes: {slices[0].shape} and "
                    f"{array.shape}.",
                    "Give all slices of a case the same size, or skip the case with competition.on_bad_case=skip.",
                )
        image = Image(np.stack(slices, axis=-1), (1.0, 1.0, 1.0))
    image = transpose_image(image, permutation(file_axes(comp, files), axes))
    return image if comp.spacing is None or image.has_spacing else replace(image, spacing=tuple(comp.spacing))


# File names


def display_name(files: str | list[str]) -> str:
    """Return the name of a file for messages; for a stack, the names of its first and last slice."""
    return files if isinstance(files, str) else f"{files[0]} … {files[-1]}"


def extension_of(name: str) -> str:
    """Return the extension in lower case, e.g. `.png` or `.nii.gz`; an empty string if there is none."""
    name = name.lower()
    if name.endswith(".nii.gz"):
        return ".nii.gz"
    last = name.rstrip("/").rpartition("/")[2]  # `Path.suffix` takes ten times as long
    dot = last.rfind(".")
    return last[dot:] if 0 < dot < len(last) - 1 else ""


def has_reader(name: str) -> bool:
    """Return whether Maskfold can read files with the extension of this name."""
    return extension_of(name) in EXTENSIONS


def strip_extension(name: str) -> str:
    """Return the name without its extension if a reader supports the extension; other dots belong to the name.

    Example:
        >>> strip_extension("a.b.nii.gz"), strip_extension("scan.v2")
        ('a.b', 'scan.v2')
    """
    return name[: -len(extension_of(name))] if has_reader(name) else name
