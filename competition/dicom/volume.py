"""Build volumes from image series: sort slices, read pixel values, compute voxel grids, write NIfTI files."""

from __future__ import annotations

import filecmp
import gzip
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.image_types import check_declared_size, check_not_bomb
from competition.dicom.headers import Frame, SeriesRejected, reject_on_error
from competition.dicom.scan import Instance, Series, format_counts, is_compressed
from competition.io import make_temporary_path, open_synced, remove_stale_temp, sync_folder
from competition.text import format_count, has_or_have

# Stacks of slices

SAME_POSITION_MM = 1e-3
MIN_GAP = 1.5  # a slice counts as missing if a gap is larger than this multiple of the median step
MAX_UNEVENNESS = 0.1  # maximum deviation of a slice from its position on an even grid, as a share of a step
MAX_SHEAR = 0.2  # maximum sideways shift from the first to the last slice, in pixels


@dataclass(eq=False)
class SliceStack:
    """Hold the sorted slices of a series that form one volume.

    Attributes:
        frames: the slices, sorted along the slice normal from the lowest position.
        grid: size and affine of the volume.
        notes: remarks that do not prevent the conversion.
        ignored: ignored files with the reasons.
    """

    series: Series
    frames: list[Frame]
    grid: Grid
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def build_stack(series: Series, pixels: PixelReader) -> SliceStack:
    """Sort the slices of a series along their normal, and compute the distance between slices from their positions.

    Args:
        series: a series of kind image or label.
        pixels: reader that decodes slices that have the same position, in order to compare their pixels.

    Raises:
        SeriesRejected: files are damaged, have different sizes, spacings or patients, or cannot be decoded; or slices
            are missing, unevenly spaced, shifted sideways, or duplicated with different pixels.
    """
    if series.reason:
        raise SeriesRejected(series.reason)
    ignored: list[str] = []
    instances = _usable_instances(series, ignored)
    _check_one_patient(instances)
    check_decoders(instances)
    frames = [frame for instance in instances for frame in instance.frame_headers]
    _check_one_grid(frames)
    frames, along = _sort_frames(frames, {instance.name: instance for instance in instances}, pixels, ignored)
    assert frames[0].orientation is not None and frames[0].spacing is not None and frames[0].position is not None
    step = _measure_step(frames, along)
    _check_upright(frames, along)
    affine = slice_affine(frames[0].position, frames[0].orientation, frames[0].spacing, step)
    rows, columns = frames[0].shape
    notes = _notes(instances, frames, step)
    return SliceStack(series, frames, Grid(affine, (columns, rows, len(frames))), notes, ignored)


def _usable_instances(series: Series, ignored: list[str]) -> list[Instance]:
    """Return the undamaged files of a series; raise an error for a damaged file without a complete copy."""
    complete = [instance for instance in series.instances if not instance.fault and instance.frame_headers]
    complete_uids = {instance.instance_uid for instance in complete}
    damaged = [
        instance for instance in series.instances if instance.fault and instance.instance_uid not in complete_uids
    ]
    if damaged:
        more = f" (damaged files: {len(damaged)} of {len(series.instances)})" if len(damaged) > 1 else ""
        raise SeriesRejected(f"{damaged[0].fault}{more}")
    for instance in series.instances:
        if instance.fault:
            ignored.append(f"{instance.fault}; a complete copy was used")
        elif not instance.frame_headers:
            ignored.append(f"{instance.name} contains no image")
    return drop_copies(complete, ignored)


def drop_copies(instances: list[Instance], ignored: list[str]) -> list[Instance]:
    """Remove byte-identical copies from a list of files; add a remark on each copy to `ignored`.

    Files with equal pixels but different headers stay in the list. `_sort_frames` finds them by their position.
    """
    kept: dict[str, list[Instance]] = {}
    for instance in instances:
        same_uid = kept.setdefault(instance.instance_uid, [])
        original = next((item for item in same_uid if filecmp.cmp(instance.path, item.path, shallow=False)), None)
        if original is None:
            same_uid.append(instance)
        else:
            ignored.append(f"{instance.name} is a copy of {original.name}")
    return [instance for same_uid in kept.values() for instance in same_uid]


def _check_one_patient(instances: list[Instance]) -> None:
    for attribute, name in (
        ("patient_id", "patient ids"),
        ("study_uid", "study ids"),
        ("frame_of_reference", "frame of reference ids"),
    ):
        count = len({getattr(instance, attribute) for instance in instances})
        if count > 1:
            raise SeriesRejected(f"the files of one series have {count} different {name}, expected one")


def check_decoders(instances: list[Instance]) -> None:
    """Check that decoders for the compressed pixels of all files are installed, without opening the files.

    Raises:
        SeriesRejected: no decoder for one of the files is installed.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for syntax in sorted({item.transfer_syntax for item in instances if is_compressed(item.transfer_syntax)}):
        try:
            available = get_decoder(UID(syntax)).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise SeriesRejected(
                f"its pixels are compressed as {UID(syntax).name}, and no decoder for this compression is "
                "installed; for most kinds of JPEG, run pip install python-gdcm"
            )


def _check_one_grid(frames: list[Frame]) -> None:
    """Check that every slice has a position, and that all slices have the same size and pixel spacing."""
    unplaced = [frame for frame in frames if frame.position is None or frame.orientation is None]
    if unplaced:
        raise SeriesRejected(
            f"{len(unplaced)} of {format_count(len(frames), 'slice')} {has_or_have(len(unplaced))} no position in the "
            f"patient ({unplaced[0].name})"
        )
    if any(frame.spacing is None for frame in frames):
        raise SeriesRejected("its slices have no pixel spacing")
    sizes = [f"{columns}×{rows}" for rows, columns in (frame.shape for frame in frames)]
    if len(set(sizes)) > 1:
        raise SeriesRejected(f"its slices have different sizes: {format_counts(sizes)} pixels")
    spacings = np.array([frame.spacing for frame in frames])
    if not (spacings > 0).all():
        raise SeriesRejected(f"found a pixel spacing of {spacings.min():g} mm, expected a value above 0")
    if np.abs(spacings / spacings[0] - 1).max() * max(frames[0].shape) > MAX_SHEAR:
        texts = ["×".join(f"{value:g}" for value in spacing) for spacing in spacings]
        raise SeriesRejected(f"its slices have different pixel spacings: {format_counts(texts)} mm")
    for frame in frames:
        check_orientation(np.asarray(frame.orientation), frame.name)


def _sort_frames(
    frames: list[Frame], instances: dict[str, Instance], pixels: PixelReader, ignored: list[str]
) -> tuple[list[Frame], np.ndarray]:
    """Return the slices, sorted along the slice normal, and their positions (N,) on the normal in mm.

    If slices at the same position have equal pixels, only the first of them is returned.
    """
    normal = slice_normal(np.asarray(frames[0].orientation))
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    kept: list[int] = []
    duplicates: list[tuple[int, int]] = []
    for index in np.argsort(along, kind="stable"):
        last = kept[-1] if kept else None
        if last is None or along[index] - along[last] > SAME_POSITION_MM:
            kept.append(int(index))
        elif np.abs(positions[index] - positions[last]).max() > 10 * SAME_POSITION_MM:
            raise SeriesRejected(
                f"its slices are side by side instead of in a stack ({frames[last].name} and {frames[index].name})"
            )
        else:
            duplicates.append((last, int(index)))
    for first_index, second_index in duplicates:
        first, second = frames[first_index], frames[second_index]
        if not pixels.equal(first, second):
            raise SeriesRejected(_duplicate_reason(frames, duplicates, instances[first.name], instances[second.name]))
        ignored.append(f"{second.name} is a copy of {first.name}")
    return [frames[index] for index in kept], along[kept]


def _duplicate_reason(frames: list[Frame], duplicates: list[tuple[int, int]], first: Instance, second: Instance) -> str:
    """Return the reason for refusing a series in which slices at the same position have different pixels."""
    if first.instance_uid == second.instance_uid and first.path != second.path:
        return f"{first.name} and {second.name} have the same SOPInstanceUID, but different pixels"
    keys = [key for key in frames[0].acquisition if len({frame.acquisition.get(key) for frame in frames}) > 1]
    differing = f" and different {', '.join(keys)}" if keys else ""
    count = len({index for index, _ in duplicates})
    return (
        f"it contains several acquisitions: slices with different pixels{differing} share "
        f"{format_count(count, 'position')} ({first.name} and {second.name}). Export each acquisition as a series of "
        "its own"
    )


def _measure_step(frames: list[Frame], along: np.ndarray) -> float:
    """Return the distance between slices in mm; for a single slice, the distance or thickness in its header.

    Raises:
        SeriesRejected: slices are missing or unevenly spaced, or the header of a single slice has no thickness.
    """
    if len(frames) == 1:
        step = frames[0].slice_spacing or frames[0].thickness
        if not step:
            raise SeriesRejected("it has a single slice, and the thickness of the slice is missing")
        return step
    steps = np.diff(along)
    median = float(np.median(steps))
    gaps = np.flatnonzero(steps > MIN_GAP * median)
    if len(gaps):
        first_gap = int(gaps[0])
        count = round(float(steps[first_gap]) / median) - 1
        missing = "a slice is missing" if count == 1 else f"{count} slices are missing"
        more = f", and {format_count(len(gaps) - 1, 'more gap')}" if len(gaps) > 1 else ""
        raise SeriesRejected(
            f"{missing} between {along[first_gap]:.2f} and {along[first_gap + 1]:.2f} mm along the slice "
            f"normal ({frames[first_gap].name} and {frames[first_gap + 1].name}){more}; the median distance "
            f"between slices is {median:.4g} mm"
        )
    step = float(along[-1] - along[0]) / (len(along) - 1)
    deviation = np.abs(along - np.linspace(along[0], along[-1], len(along))).max() / step
    if deviation > MAX_UNEVENNESS:
        raise SeriesRejected(
            f"its slices are not evenly spaced: their distances are {steps.min():.4g} to {steps.max():.4g} mm"
        )
    return step


def _check_upright(frames: list[Frame], along: np.ndarray) -> None:
    """Check that slices are not shifted sideways, as a tilted gantry shifts them.

    A volume of such slices would be sheared.
    """
    normal = slice_normal(np.asarray(frames[0].orientation))
    positions = np.array([frame.position for frame in frames])
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    largest = float(np.linalg.norm(sideways, axis=1).max())
    if largest > MAX_SHEAR * min(frames[0].spacing or (1.0,)):
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), along[-1] - along[0]))
        raise SeriesRejected(f"the gantry was tilted: slices shift sideways by up to {largest:.3g} mm ({angle:.1f}°)")


def _notes(instances: list[Instance], frames: list[Frame], step: float) -> list[str]:
    notes = []
    instance_numbers = {item.instance_number for item in instances if item.instance_number is not None}
    if instance_numbers and len(instances) == len(frames) == len(instance_numbers):
        if min(instance_numbers) > 1:
            notes.append(f"the instance numbers start at {min(instance_numbers)}, so a slice at an end may be missing")
        elif max(instance_numbers) - min(instance_numbers) + 1 > len(instance_numbers):
            notes.append(
                "the instance numbers have a gap, but the positions have none, so a slice at an end may be missing"
            )
    if any(instance.photometric == "MONOCHROME1" for instance in instances):
        notes.append("MONOCHROME1 displays high values as dark; the values were not changed")
    thickness = frames[0].thickness
    if len(frames) == 1:
        notes.append(f"it has a single slice, which is {step:g} mm thick")
    elif thickness and abs(thickness / step - 1) > 0.05:
        notes.append(f"its slices are {thickness:.4g} mm thick and {step:.4g} mm apart")
    return notes


# Voxel values

INT16 = np.iinfo(np.int16)


def load_volume(slices: SliceStack, pixels: PixelReader) -> np.ndarray:
    """Read the values of sorted slices as one array.

    Args:
        slices: the sorted slices.
        pixels: reader that decodes the slices.

    Returns:
        Values (X, Y, Z): columns, rows, slices. The dtype is int16 if all slopes and intercepts are whole numbers and
            all values fit. Otherwise it is float32.

    Raises:
        SeriesRejected: a slice cannot be decoded, or has values that are not finite.
        MaskfoldError: the volume does not fit into memory.
    """
    shape, frames = slices.grid.shape, slices.frames
    check_declared_size(frames[0].path, math.prod(shape) * 8)
    whole_numbers = all(frame.slope.is_integer() and frame.intercept.is_integer() for frame in frames)
    volume = np.empty(shape, np.float32)
    int16_volume = np.empty(shape, np.int16) if whole_numbers else None
    # Read file by file instead of slice by slice, because all frames of an enhanced file are decoded together.
    order = sorted(range(len(frames)), key=lambda z: (frames[z].name, frames[z].index))
    for z in order:
        frame = frames[z]
        # float64 represents whole numbers below 2^53 exactly
        values = pixels.read(frame).T.astype(np.float64) * frame.slope + frame.intercept
        if not np.isfinite(values).all():
            raise SeriesRejected(f"{frame.name} has values that are not finite")
        volume[:, :, z] = values
        if int16_volume is not None:
            if values.min() < INT16.min or values.max() > INT16.max or (values != np.rint(values)).any():
                int16_volume = None
            else:
                int16_volume[:, :, z] = values
    return volume if int16_volume is None else int16_volume


class PixelReader:
    """Decode frames. The last decoded file is cached, because callers read all frames of a file one after the other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._array = np.empty((0, 0, 0))

    def read(self, frame: Frame) -> np.ndarray:
        """Return the stored values of a frame, (rows, columns), in the file's dtype.

        Raises:
            SeriesRejected: the file cannot be decoded, or differs from its header.
        """
        if self._path != frame.path:
            self._path = None
            self._array = decode_frames(frame.path, frame.name)
            self._path = frame.path
        if frame.index >= len(self._array) or self._array.shape[1:] != frame.shape:
            raise SeriesRejected(
                f"{frame.name} does not match its header: found pixels of shape {self._array.shape}, expected frame "
                f"{frame.index + 1} of shape {frame.shape}"
            )
        return self._array[frame.index]

    def equal(self, first: Frame, second: Frame) -> bool:
        """Return whether two frames have the same values."""
        first_values = self.read(first).copy()
        same_rescale = (first.slope, first.intercept) == (second.slope, second.intercept)
        return same_rescale and np.array_equal(first_values, self.read(second))


def decode_frames(path: Path, name: str) -> np.ndarray:
    """Return all frames of a file, (frames, rows, columns).

    Raises:
        SeriesRejected: the file cannot be decoded, or does not fit into memory.
    """
    import pydicom

    with reject_on_error(f"{name} cannot be decoded"):
        dataset = pydicom.dcmread(path, force=True)
        if not dataset.file_meta.get("TransferSyntaxUID"):  # an old file without a preamble is never compressed
            dataset.file_meta.TransferSyntaxUID = _uncompressed_syntax(*dataset.original_encoding)
        frame_count = int(dataset.get("NumberOfFrames") or 1)
        pixel_bytes = max(1, int(dataset.get("BitsAllocated") or 16) // 8) * int(dataset.get("SamplesPerPixel") or 1)
        declared = math.prod((int(dataset.Rows), int(dataset.Columns), frame_count)) * pixel_bytes
        check_declared_size(path, declared)
        check_not_bomb(path, declared)
        array = np.asarray(dataset.pixel_array)
        return array.reshape(frame_count, *array.shape[array.ndim - 2 :]) if array.ndim < 3 else array


def _uncompressed_syntax(implicit: bool | None, little: bool | None) -> Any:
    """Return the transfer syntax of a file that declares none, from the encoding that pydicom detected."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian


GZIP_LEVEL = 4  # compression level: twice as fast as the default 9, with hardly larger files for noisy images


def write_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array as a compressed NIfTI file on a voxel grid, atomically.

    Args:
        path: path of the file, ending in .nii.gz. A missing folder is created.
        array: (X, Y, Z) int16, float32 or uint8.
        grid: the grid; its affine is written as sform and qform, both coded as scanner coordinates, in mm.

    Raises:
        DiskFullError: the disk is full.
    """
    import nibabel

    image = nibabel.Nifti1Image(array, grid.affine)
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temp(path.parent, path.name)
    temporary_path = make_temporary_path(path)
    try:
        # The gzip header has no name and no time, so that equal values give equal bytes.
        with (
            open_synced(temporary_path, array.nbytes) as stream,
            gzip.GzipFile("", "wb", GZIP_LEVEL, stream, mtime=0) as compressor,
        ):
            image.to_stream(compressor)
        os.replace(temporary_path, path)
        sync_folder(path.parent)
    finally:
        temporary_path.unlink(missing_ok=True)


# Voxel grids

# X and y of DICOM point to the left and back, those of NIfTI to the right and front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_OFFSET = 0.1  # maximum offset between two equal grids, in voxels


@dataclass(frozen=True, eq=False)
class Grid:
    """Describe a voxel grid in the coordinates of the patient.

    Attributes:
        affine: 4×4 float64, voxel (x, y, z) to RAS mm.
        shape: number of voxels along X (columns), Y (rows) and Z (slices).
    """

    affine: np.ndarray
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} voxels of {'×'.join(f'{step:.4g}' for step in self.spacing)} mm"


def slice_affine(
    position: np.ndarray, orientation: np.ndarray, spacing: tuple[float, float], step: float
) -> np.ndarray:
    """Return the affine of parallel slices, by DICOM PS3.3 C.7.6.2.1.1, converted from LPS to RAS.

    Args:
        position: (3,) mm, LPS: ImagePositionPatient of the first slice.
        orientation: (6,) ImageOrientationPatient.
        spacing: PixelSpacing: mm between rows, mm between columns.
        step: distance from slice to slice along the normal, mm.

    Returns:
        4×4 float64 matrix from (column, row, slice) to RAS mm.
    """
    row, column = orientation[:3], orientation[3:]
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = slice_normal(orientation) * step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def slice_normal(orientation: np.ndarray) -> np.ndarray:
    """Return the normal vector (3,) of the slices, of length 1."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def check_orientation(orientation: np.ndarray, name: str) -> None:
    """Check that the two direction vectors (3,) in ImageOrientationPatient have length 1 and are orthogonal.

    Raises:
        SeriesRejected: the vectors do not have length 1, or are not orthogonal.
    """
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-3:
        cosines = ", ".join(f"{value:g}" for value in orientation)
        raise SeriesRejected(
            f"{name} has an invalid orientation: found {cosines}, expected two orthogonal unit vectors"
        )


def resample_onto(grid: Grid, affine: np.ndarray, points: np.ndarray, extent: tuple[int, int, int]) -> np.ndarray:
    """Convert voxel indices of another grid to voxel indices of `grid`, without interpolation.

    The other grid may have permuted or flipped axes and may cover another part of the patient. Its voxel centres must
    coincide with the voxel centres of `grid`.

    Args:
        grid: grid of the image.
        affine: 4×4 matrix from voxels of the other grid to RAS mm.
        points: (N, 3) int, voxel indices of the other grid.
        extent: shape of the other grid. The direction of an axis with only one voxel is ignored.

    Returns:
        (N, 3) int64, the voxel index in `grid` for each of the `points`.

    Raises:
        SeriesRejected: the grids differ by more than a tenth of a voxel, or a point is outside `grid`.
    """
    exact = np.linalg.inv(grid.affine) @ affine
    rotation = np.round(exact[:3, :3]).astype(np.int64)
    offset = np.round(exact[:3, 3]).astype(np.int64)
    used_axes = [axis for axis in range(3) if extent[axis] > 1]
    for axis in range(3):
        if axis not in used_axes:
            rotation[:, axis] = 0
    if (
        any(np.abs(rotation[:, axis]).sum() != 1 for axis in used_axes)
        or np.abs(rotation).sum(axis=1).max(initial=0) > 1
    ):
        raise SeriesRejected("its voxels differ from those of the image in size or direction")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in extent], indexing="ij")).reshape(3, -1)
    distance = np.abs(exact[:3, :3] @ corners + exact[:3, 3:] - rotation @ corners - offset[:, None]).max()
    if not distance <= MAX_OFFSET:
        raise SeriesRejected(f"its voxels are shifted by up to {distance:.2g} voxels from those of the image")
    voxels = points @ rotation.T + offset
    outside = int(((voxels < 0) | (voxels >= np.array(grid.shape))).any(axis=1).sum())
    if outside:
        raise SeriesRejected(f"it has {format_count(outside, 'labelled voxel')} outside of the image")
    return voxels
