"""The slices of a series in the order of their positions, or the reason why they are no volume."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass, field

import numpy as np

from competition.data.dicom.frames import Frame
from competition.data.dicom.grid import Grid, affine_of, check_orientation, normal_of
from competition.data.dicom.pixels import Pixels
from competition.data.dicom.refused import Refused
from competition.data.dicom.scan import Instance, compressed
from competition.data.dicom.series import Series, counted

SAME_PLACE = 1e-3  # mm
GAP = 1.5          # times the usual step
UNEVEN = 0.1       # of a step: how far a slice may lie from its place on an even grid
SHEARED = 0.2      # of a pixel: how far slices may move sideways from the first to the last


@dataclass(eq=False)
class Stack:
    """A series that is a volume.

    Attributes:
        frames: along the slice normal, from the lowest position.
        grid: size and affine.
        notes: remarks that do not stop anything.
        ignored: files that were left out, with the reason.
    """

    series: Series
    frames: list[Frame]
    grid: Grid
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def stack(series: Series, pixels: Pixels) -> Stack:
    """Sorts a series by position along its slice normal, and measures its spacing from the positions.

    Args:
        series: of kind image or label.
        pixels: decodes the slices that share a position.

    Raises:
        Refused: files are broken, packed without a decoder, of mixed sizes, spacings or patients; slices are missing,
            uneven, sheared, or there twice with different pixels.
    """
    if series.reason:
        raise Refused(series.reason)
    ignored: list[str] = []
    whole = _whole(series, ignored)
    _one_owner(whole)
    check_decoders(whole)
    frames = [frame for instance in whole for frame in instance.frames]
    _one_size(frames)
    frames, along = _ordered(frames, {one.name: one for one in whole}, pixels, ignored)
    assert frames[0].orientation is not None and frames[0].spacing is not None and frames[0].position is not None
    step = _step(frames, along)
    _upright(frames, along)
    affine = affine_of(frames[0].position, frames[0].orientation, frames[0].spacing, step)
    rows, columns = frames[0].shape
    notes = _notes(whole, frames, step)
    return Stack(series, frames, Grid(affine, (columns, rows, len(frames))), notes, ignored)


def _whole(series: Series, ignored: list[str]) -> list[Instance]:
    """The files without a fault; a broken one is ignored only where a whole copy of it is there."""
    whole = [one for one in series.instances if not one.fault and one.frames]
    copies = {one.sop for one in whole}
    lost = [one for one in series.instances if one.fault and one.sop not in copies]
    if lost:
        more = f" (and {len(lost) - 1} more of {len(series.instances)} files)" if len(lost) > 1 else ""
        raise Refused(f"{lost[0].fault}{more}")
    for one in series.instances:
        if one.fault:
            ignored.append(f"{one.fault}, with a whole copy")
        elif not one.frames:
            ignored.append(f"{one.name} holds no image")
    return without_copies(whole, ignored)


def without_copies(instances: list[Instance], ignored: list[str]) -> list[Instance]:
    """Leaves out files that are the same byte for byte; what only has the same pixels is found by its position."""
    kept: dict[str, list[Instance]] = {}
    for one in instances:
        same = next((other for other in kept.get(one.sop, ()) if filecmp.cmp(one.path, other.path, shallow=False)), None)
        if same is None:
            kept.setdefault(one.sop, []).append(one)
        else:
            ignored.append(f"{one.name} repeats {same.name}")
    return [one for group in kept.values() for one in group]


def _one_owner(instances: list[Instance]) -> None:
    for what in ("patient", "study", "frame_of_reference"):
        owners = {getattr(one, what) for one in instances}
        if len(owners) > 1:
            raise Refused(f"the files of one series name {len(owners)} different {what.replace('_', ' ')} ids")


def check_decoders(instances: list[Instance]) -> None:
    """Refuses packed pixels that nothing here can unpack, before a file is opened."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for syntax in sorted({one.syntax for one in instances if compressed(one.syntax)}):
        try:
            available = get_decoder(UID(syntax)).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise Refused(f"packed as {UID(syntax).name}, for which no decoder is installed; most JPEG kinds "
                          "need pip install python-gdcm")


def _one_size(frames: list[Frame]) -> None:
    lost = [frame for frame in frames if frame.position is None or frame.orientation is None]
    if lost:
        raise Refused(f"{len(lost)} of {len(frames)} slices have no position in the patient ({lost[0].name})")
    if any(frame.spacing is None for frame in frames):
        raise Refused("its slices have no pixel spacing")
    sizes = [f"{columns}×{rows}" for rows, columns in (frame.shape for frame in frames)]
    if len(set(sizes)) > 1:
        raise Refused(f"slices of mixed sizes: {counted(sizes)} pixels")
    spacings = np.array([frame.spacing for frame in frames])
    if not (spacings > 0).all():
        raise Refused("its pixel spacing is not positive")
    if np.abs(spacings / spacings[0] - 1).max() * max(frames[0].shape) > SHEARED:
        raise Refused(f"slices of mixed pixel spacings: {counted(['×'.join(f'{one:g}' for one in two) for two in spacings])} mm")
    for frame in frames:
        check_orientation(np.asarray(frame.orientation), frame.name)


def _ordered(frames: list[Frame], files: dict[str, Instance], pixels: Pixels,
             ignored: list[str]) -> tuple[list[Frame], np.ndarray]:
    """Slices by position along the normal, (N,) mm; of slices that are there twice, the first."""
    normal = normal_of(np.asarray(frames[0].orientation))
    places = np.array([frame.position for frame in frames])
    along = places @ normal
    kept: list[int] = []
    twice: list[tuple[int, int]] = []
    for index in np.argsort(along, kind="stable"):
        last = kept[-1] if kept else None
        if last is None or along[index] - along[last] > SAME_PLACE:
            kept.append(int(index))
        elif np.abs(places[index] - places[last]).max() > 10 * SAME_PLACE:
            raise Refused(f"slices lie beside one another ({frames[last].name} and {frames[index].name})")
        else:
            twice.append((last, int(index)))
    for one, other in twice:
        first, again = frames[one], frames[other]
        if not pixels.same(first, again):
            raise Refused(_two_acquisitions(frames, twice, files[first.name], files[again.name]))
        ignored.append(f"{again.name} repeats {first.name}")
    return [frames[index] for index in kept], along[kept]


def _two_acquisitions(frames: list[Frame], twice: list[tuple[int, int]], first: Instance, again: Instance) -> str:
    if first.sop == again.sop and first.path != again.path:
        return f"{first.name} and {again.name} share one SOPInstanceUID and differ in their pixels"
    told = [key for key in frames[0].told if len({frame.told.get(key) for frame in frames}) > 1]
    by = f", told apart by {', '.join(told)}" if told else ""
    count = len({one for one, _ in twice})
    return (f"several acquisitions in one series: {count} positions are there more than once with different pixels{by} "
            f"({first.name} and {again.name}); export each as a series of its own")


def _step(frames: list[Frame], along: np.ndarray) -> float:
    """mm from slice to slice."""
    if len(frames) == 1:
        step = frames[0].between or frames[0].thickness
        if not step:
            raise Refused("a single slice without a thickness")
        return step
    steps = np.diff(along)
    usual = float(np.median(steps))
    gaps = np.flatnonzero(steps > GAP * usual)
    if len(gaps):
        at = int(gaps[0])
        count = round(float(steps[at]) / usual) - 1
        lost = "a slice is missing" if count == 1 else f"{count} slices are missing"
        more = f", and there are {len(gaps) - 1} more gaps" if len(gaps) > 1 else ""
        raise Refused(f"{lost} between {along[at]:.2f} and {along[at + 1]:.2f} mm along the slice normal "
                      f"({frames[at].name} and {frames[at + 1].name}){more}; the usual step is {usual:.4g} mm")
    step = float(along[-1] - along[0]) / (len(along) - 1)
    off = np.abs(along - np.linspace(along[0], along[-1], len(along))).max() / step
    if off > UNEVEN:
        raise Refused(f"uneven steps between slices, from {steps.min():.4g} to {steps.max():.4g} mm")
    return step


def _upright(frames: list[Frame], along: np.ndarray) -> None:
    """Refuses slices that move sideways: a tilted gantry, whose volume is sheared."""
    normal = normal_of(np.asarray(frames[0].orientation))
    places = np.array([frame.position for frame in frames])
    sideways = places - places[0] - np.outer(along - along[0], normal)
    largest = float(np.linalg.norm(sideways, axis=1).max())
    if largest > SHEARED * min(frames[0].spacing or (1.0,)):
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), along[-1] - along[0]))
        raise Refused(f"a tilted gantry: slices move sideways by up to {largest:.3g} mm ({angle:.1f}°), a sheared volume")


def _notes(instances: list[Instance], frames: list[Frame], step: float) -> list[str]:
    notes = []
    numbers = {one.number for one in instances if one.number is not None}
    if numbers and len(instances) == len(frames) == len(numbers):
        if min(numbers) > 1:
            notes.append(f"instance numbers begin at {min(numbers)}: a slice at an end may be missing")
        elif max(numbers) - min(numbers) + 1 > len(numbers):
            notes.append("instance numbers have gaps and positions have none: a slice at an end may be missing")
    if any(one.photometric == "MONOCHROME1" for one in instances):
        notes.append("MONOCHROME1: high values are meant to be shown dark; values are kept")
    thick = frames[0].thickness
    if len(frames) == 1:
        notes.append(f"a single slice, {step:g} mm thick")
    elif thick and abs(thick / step - 1) > 0.05:
        notes.append(f"slices are {thick:.4g} mm thick and {step:.4g} mm apart")
    return notes
