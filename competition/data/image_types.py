"""Define what the readers share: `Image` and `Header`, which they return; checks of files; digests of files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from competition.data.content.open_once import open_file
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    from tifffile import TiffPageSeries

# Deflate (PNG, .gz, .npz) packs at most 1,032 bytes into one byte (zlib's technical notes, "maximum compression
# factor"). The larger number allows for headers.
DEFLATE_BOUND = 1100
# A file is treated as a decompression bomb if it unpacks to more than a hundred times its size and to a large part of
# the free memory. But a mask may be compressed as strongly: one organ in 512×512×700 voxels of float64 (1.4 GiB) by a
# factor of 200 or more. So up to 2 GiB are read if the memory is large enough, and more on machines with more memory.
MAX_RATIO, MAX_UNPACKED, MAX_SHARE = 100, 2**31, 1 / 8
SMALL = 2**20  # bytes; smaller images are read without checking the free memory, because the check takes longer
MAX_HEADER = 2**20  # bytes of the header of an MHA, MHD, NRRD or NHDR file
# For each extension: the header line that names the file with the voxels, the name of this field anywhere in the
# header, and the name for messages. MetaImage distinguishes upper and lower case; NRRD has two spellings.
META_LINE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
NRRD_LINE = re.compile(rb"^data ?file:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE | re.IGNORECASE)
META_KEY = b"ElementDataFile"
META_FIELD, NRRD_FIELD = re.compile(META_KEY), re.compile(rb"(?:^|(?<=[\r\n]))data ?file:", re.IGNORECASE)
NRRD_END = re.compile(rb"\n\r?\n")  # an empty line
DATA_FILE_LINES = {
    **dict.fromkeys((".mha", ".mhd"), (META_LINE, META_FIELD, "ElementDataFile")),
    **dict.fromkeys((".nrrd", ".nhdr"), (NRRD_LINE, NRRD_FIELD, "data file")),
}


@dataclass(frozen=True, eq=False)
class Image:
    """Hold an image in memory.

    Attributes:
        array: (C, *spatial), with the file's order of axes and dtype, except that scaled and double-precision values
            become float32.
        spacing: voxel size along each spatial axis in mm; ones if the file does not store it.
        affine: 4×4 float64 matrix from voxel to world coordinates in mm; None if the format stores no affine.
        has_spacing: whether the file stores its spacing.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None
    has_spacing: bool = False


@dataclass(frozen=True, eq=False)
class Header:
    """Hold the metadata of an image file that can be read without decoding its pixels.

    Attributes:
        shape: the spatial shape.
        spacing: voxel size along each spatial axis in mm; ones if the file does not store it.
        affine: 4×4 float64 matrix from voxel to world coordinates in mm; None if the format stores no affine.
        channels: number of channels of the image.
        dtype: numpy's name of the dtype that `read_image` returns.
        has_spacing: whether the file stores its spacing.
        in_patient_space: whether the affine refers to the patient; False for a NIfTI file whose `qform_code` and
            `sform_code` are 0.
        plain_spacing: the spacing in mm that Maskfold before version 0.2 used: pixdim of NIfTI, 1 mm for TIFF. None if
            it equals `spacing`. If it differs, the hash of the case differs from the hash in those versions.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None
    channels: int
    dtype: str
    has_spacing: bool = False
    in_patient_space: bool = False
    plain_spacing: tuple[float, ...] | None = None


# Orientations of EXIF and TIFF (CIPA DC-008 and TIFF 6.0, tag 0x0112): 1 is as stored; from 5 on, rows and columns are
# exchanged.

ORIENTATION_TAG = 0x0112
FIRST_SIDEWAYS = 5
# Axes to flip after rows and columns were exchanged.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to an array (H, W, …), as viewers do."""
    array = array.swapaxes(0, 1) if orientation >= FIRST_SIDEWAYS else array
    return np.flip(array, _FLIPS.get(orientation, ()))


def turn_back(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo `turn`: return the array as it was stored."""
    array = np.flip(array, _FLIPS.get(orientation, ()))
    return array.swapaxes(0, 1) if orientation >= FIRST_SIDEWAYS else array


def tiff_orientation(series: TiffPageSeries) -> int:
    """Return the orientation of a TIFF's first series; 1 if the file has no valid orientation."""
    tag = series.keyframe.tags.get(ORIENTATION_TAG)
    value = tag.value if tag is not None else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# Checks of files


def unreadable_error(path: Path, reason: object, solution: str = "Replace it by an intact copy") -> MaskfoldError:
    """Return the error for a file that is not a valid image.

    The hint tells the user to follow `solution`, an imperative clause, or to skip the case.
    """
    return MaskfoldError(
        f"{path} cannot be read ({reason}).", f"{solution}, or skip the case with competition.on_bad_case=skip."
    )


def wrong_values_error(path: Path, dtype: object) -> MaskfoldError:
    """Return the error for a file whose values are not real numbers, such as complex64."""
    if "complex" in str(dtype):
        return unreadable_error(path, f"its values are complex ({dtype})", "Save their magnitude as float32")
    return unreadable_error(path, f"its values are {dtype}, expected real numbers")


@contextmanager
def convert_decoder_errors(path: Path) -> Iterator[None]:
    """Convert any error of a decoder into one `MaskfoldError` that names the file.

    Raises:
        MaskfoldError: an error was raised inside the `with` block. The exit status is 2 if a package is missing,
            otherwise 1.
    """
    try:
        yield
    except MaskfoldError:
        raise
    except FileNotFoundError as error:
        raise MaskfoldError(
            f"{path} does not exist.", "Check competition.root and the patterns in the competition's YAML."
        ) from error
    except ImportError as error:  # with status 1, `on_bad_case: skip` would skip every case
        package = error.name or str(error)
        raise MaskfoldError(
            f"{path} can be read only with the package {package}, which cannot be imported.",
            f"Install the package: pip install {package}.",
            status=2,
        ) from error
    except Exception as error:  # for damaged files, decoders raise errors of arbitrary types
        message = " ".join(str(error).split())
        name = type(error).__name__
        raise unreadable_error(path, f"{name}: {message[:200]}" if message else name) from error


def check_declared_size(path: Path, declared: int, limit: int | None = None) -> None:
    """Check, before the pixels are allocated, that the file and the memory can hold the declared pixels.

    Args:
        path: the file.
        declared: number of bytes of the pixels, as the file's header declares.
        limit: maximum number of bytes of pixels that the file can contain; None if its compression has no useful bound.

    Raises:
        MaskfoldError: the file or the free memory is too small for the declared pixels.
    """
    if limit is not None and declared > limit:
        raise unreadable_error(
            path, f"its header declares {declared:,} bytes of pixels, but the file can hold at most {limit:,}"
        )
    if declared < SMALL:
        return
    import psutil

    free = psutil.virtual_memory().available
    if declared > free:
        raise MaskfoldError(
            f"{path} cannot be read: its header declares {declared / 2**30:,.1f} GiB of pixels, but only "
            f"{free / 2**30:,.1f} GiB of memory are free.",
            "Cut the image into smaller ones, or skip the case with competition.on_bad_case=skip.",
        )


def check_not_bomb(path: Path, declared: int) -> None:
    """Raise an error if a file is a decompression bomb: a small file whose pixels would fill the memory.

    Args:
        path: the file.
        declared: number of bytes of the pixels, as the file's header declares.

    Raises:
        MaskfoldError: the file would unpack to more than `MAX_RATIO` times its size, and to more than `MAX_UNPACKED`
            bytes and `MAX_SHARE` of the free memory.
    """
    size = path.stat().st_size
    if declared <= max(MAX_UNPACKED, MAX_RATIO * size):
        return
    import psutil

    free = psutil.virtual_memory().available
    if declared > MAX_SHARE * free:
        raise unreadable_error(
            path,
            f"found {size:,} bytes that unpack to {declared / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB "
            f"of memory are free; a file that unpacks to more than {MAX_RATIO} times its size may use at most an "
            "eighth of the free memory",
            "Save its values as integers, or cut it into smaller files",
        )


def channels_first(array: np.ndarray, dimensions: int, path: Path) -> np.ndarray:
    """Move the channel axis of an array without metadata to the front.

    If an array has one axis more than `dimensions`, the channel axis is the first or the last axis, whichever is
    shorter. If both are equally long, it is the last axis.

    Args:
        array: array with `dimensions` or `dimensions + 1` axes.
        dimensions: 2 or 3.
        path: path of the array's file, for the message.

    Returns:
        (C, *spatial), a view.
    """
    if array.ndim == dimensions:
        return array[None]
    if array.ndim == dimensions + 1:
        return array if array.shape[0] < array.shape[-1] else np.moveaxis(array, -1, 0)
    raise wrong_dimensions_error(path, array.shape, dimensions)


def wrong_dimensions_error(path: Path, shape: tuple[int, ...], dimensions: int) -> MaskfoldError:
    """Return the error for a 2D image where a volume is expected, or for a volume where a 2D image is expected."""
    size = "×".join(map(str, shape))
    if dimensions == 3:
        return MaskfoldError(
            f"{path} is a 2D image ({size}), expected a volume, because competition.dimensions is 3.",
            "For 2D images, set `dimensions: 2`. For a stack of slices, match the slices with {z} in the pattern.",
        )
    return MaskfoldError(
        f"{path} has the shape {size}, expected a 2D image, because competition.dimensions is 2.",
        "For volumes, set `dimensions: 3`. Otherwise save the slices as 2D images.",
    )


def byte_count(shape: tuple[int, ...], dtype: np.dtype | str, channels: int = 1) -> int:
    """Return the number of bytes of `channels` × `shape` values, without integer overflow."""
    return math.prod(shape) * channels * np.dtype(dtype).itemsize


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's bytes.

    The digest of a gzip file leaves out the gzip header, which stores the name of the original file (RFC 1952, section
    2.3). Otherwise two copies of a volume under two ids would have different digests.

    The digest of an MHD or NHDR file includes the file with the voxels.

    Raises:
        MaskfoldError: the file cannot be read.
    """
    with convert_decoder_errors(path), open_file(path) as file:
        if path.suffix.lower() == ".gz":
            _skip_gzip_header(file)
        # `file_digest` would hash all of a BytesIO, also what was read before.
        rest = hashlib.sha256(file.read()) if isinstance(file, BytesIO) else hashlib.file_digest(file, "sha256")
        digest = rest.digest()
        if (data := detached_data_file(path)) is None:
            return digest
        with data.open("rb") as voxels:
            return hashlib.sha256(digest + hashlib.file_digest(voxels, "sha256").digest()).digest()


def detached_data_file(path: Path) -> Path | None:
    """Return the file with the voxels of an MHD or NHDR file; None for other files, which contain their voxels.

    Raises:
        MaskfoldError: one of the following is true.

            - The header of an MHD or NHDR file names several files, or a file in another folder.
            - The header of an MHA or NRRD file names another file, although such a file must contain its voxels.
            - The header is ambiguous, so that ITK might read another file name from it.
    """
    suffix = path.suffix.lower()
    if suffix not in DATA_FILE_LINES:
        return None
    line, field, name_of_field = DATA_FILE_LINES[suffix]
    with path.open("rb") as file:
        header = file.read(MAX_HEADER)
        # ITK continues to search after a line that it does not understand, so the field must occur only once.
        count = len(field.findall(header)) + (_count_in_rest(file, header) if suffix == ".mha" else 0)
    found = line.findall(header)
    if suffix == ".nrrd" and count:
        raise unreadable_error(
            path, "its voxels are in another file", "Rename the file to .nhdr, or save header and voxels in one file"
        )
    ends = suffix == ".mha" or len(header) < MAX_HEADER or (suffix == ".nrrd" and NRRD_END.search(header))
    if not ends:
        raise unreadable_error(path, f"its header has more than {MAX_HEADER:,} bytes")
    if suffix == ".nrrd":
        return None
    if not count:
        raise unreadable_error(path, f"its header has no line {name_of_field}")
    if count > 1 or len(found) != 1:
        raise unreadable_error(
            path, f"its header has the field {name_of_field} {count} times, expected once, at the start of a line"
        )
    name = found[0].decode(errors="replace").removeprefix("./")
    if name.upper() == "LOCAL":
        return None
    if suffix == ".mha":
        raise unreadable_error(
            path, f"its voxels are in {name[:80]}", "Rename the file to .mhd, or save header and voxels in one file"
        )
    is_path = name in ("", ".", "..") or any(character in name for character in "/\\%\r\0")
    if is_path or name.split(" ")[0].upper() == "LIST":
        raise unreadable_error(
            path,
            f"its header says that the voxels are in {name[:80]}, expected one file in the same folder",
            "Save it as MHA, NRRD or NIfTI",
        )
    return path.with_name(name)


def _count_in_rest(file: IO[bytes], header: bytes) -> int:
    """Return how often `ElementDataFile` occurs in the rest of a file, after `header`."""
    count, end = 0, header[1 - len(META_KEY) :]
    while block := file.read(2**20):
        count += (end + block).count(META_KEY)
        end = (end + block)[1 - len(META_KEY) :]
    return count


def has_detached_voxels(path: Path) -> bool:
    """Return whether a file has the extension .mhd or .nhdr, so that its voxels may be in a second file."""
    return path.name.lower().endswith((".mhd", ".nhdr"))


def combined_digest(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 (hexadecimal) of the digests of the parts; the results of [a, b] and [a + b] differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _skip_gzip_header(file: IO[bytes]) -> None:
    head = file.read(10)
    if head[:2] != b"\x1f\x8b" or len(head) < 10:
        file.seek(0)
        return
    flags = head[3]
    if flags & 4:  # extra field
        file.read(int.from_bytes(file.read(2), "little"))
    for flag in (8, 16):  # name and comment, each closed by a zero byte
        while flags & flag and file.read(1) not in (b"\0", b""):
            pass
    if flags & 2:  # checksum of the header
        file.read(2)
