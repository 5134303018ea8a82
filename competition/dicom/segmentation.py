"""Build the masks of a folder's images from DICOM-SEG files and from series that contain labels."""

# This module does not use highdicom (0.28), which would add 29 MB (`du -sh highdicom jpeg_ls`) and 0.3 s of processor
# time per import to the base install. Its `segread` raises an AttributeError if a file lacks an attribute that a mask
# does not need, such as SharedFunctionalGroupsSequence or SegmentedPropertyCategoryCodeSequence. This module reads such
# files.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from competition.dicom.headers import SeriesRejected, functional_group, parse_numbers, reject_on_error, silence_pydicom
from competition.dicom.scan import Instance, Series
from competition.dicom.tables import read_table, write_table
from competition.dicom.volume import (
    Grid,
    PixelReader,
    SliceStack,
    build_stack,
    check_decoders,
    check_orientation,
    decode_frames,
    drop_copies,
    load_volume,
    resample_onto,
    slice_affine,
)
from competition.errors import MaskfoldError
from competition.text import format_count

# Masks of a folder


@dataclass(eq=False)
class Mask:
    """Hold a mask on the grid of its image.

    Attributes:
        image: the image to which the mask belongs.
        array: (X, Y, Z) uint8, label values.
        series: SeriesInstanceUIDs of the DICOM-SEG files or label series from which the mask was made.
        notes: remarks on the conversion.
    """

    image: ConvertedImage
    array: np.ndarray
    series: list[str]
    notes: list[str] = field(default_factory=list)


class MaskBuilder:
    """Build the masks of a folder's images.

    If a file cannot be used, the reason is recorded, and all other masks are built.

    Attributes:
        rejections: reasons why a series of labels, or a part of it, is missing from the masks. The keys are
            SeriesInstanceUIDs.
        ignored: ignored files by SeriesInstanceUID.
    """

    def __init__(self, matcher: ReferenceMatcher, label_map: LabelMap) -> None:
        self._matcher = matcher
        self._label_map = label_map
        self._segmentations: dict[str, list[tuple[ConvertedImage, Segmentation]]] = {}
        self._label_series: dict[str, list[tuple[ConvertedImage, SliceStack]]] = {}
        self.rejections: dict[str, list[str]] = {}
        self.ignored: dict[str, list[str]] = {}

    def add_segmentations(self, series: list[Series]) -> None:
        """Read the headers of all DICOM-SEG files, assign a value to each label, and find the images of the files."""
        segmentations: list[Segmentation] = []
        for item in series:
            for instance in drop_copies(item.instances, self.ignored.setdefault(item.uid, [])):
                try:
                    segmentations.append(read_segmentation(instance))
                except SeriesRejected as error:
                    self.reject([item.uid], str(error))
        # Also number the labels of rejected files, so that repairing a file does not change the numbers.
        self._label_map.add(
            (number, label) for segmentation in segmentations for number, label in segmentation.labels.items()
        )
        for segmentation in segmentations:
            instance = segmentation.instance
            try:
                image = self._matcher.find_image(instance, partial(grid_mismatch, segmentation), strict=True)
            except SeriesRejected as error:
                self.reject([instance.series_uid], str(error))
            else:
                self._segmentations.setdefault(image.id, []).append((image, segmentation))

    def add_label_series(self, series: list[Series], pixels: PixelReader) -> None:
        """Find the images to which the series with labels belong."""
        for item in series:
            try:
                slices = build_stack(item, pixels)
                image = self._matcher.find_image(item.header, partial(_stack_mismatch, slices), strict=False)
            except SeriesRejected as error:
                self.reject([item.uid], str(error))
            else:
                self.ignored[item.uid] = slices.ignored
                self._label_series.setdefault(image.id, []).append((image, slices))

    def build(self, case: str, pixels: PixelReader) -> Mask | None:
        """Build the mask of an image; return None if the image has no labels or its labels were rejected.

        Args:
            case: id of the image.
            pixels: reader that decodes the label series.
        """
        mask = None
        if case in self._segmentations:
            uids = [segmentation.instance.series_uid for _, segmentation in self._segmentations[case]]
            mask = self._build_or_reject(uids, partial(self._from_segmentations, case))
        label_series = self._label_series.get(case, [])
        uids = [slices.series.uid for _, slices in label_series]
        if mask is not None:
            self.reject(uids, f"{case} already has a mask from a DICOM-SEG file")
        elif len(label_series) > 1:
            self.reject(
                uids,
                f"{len(label_series)} label series belong to the image {case}, expected one; write a narrower "
                "expression for --labels",
            )
        elif label_series:
            mask = self._build_or_reject(uids, partial(self._from_label_series, case, pixels))
        return mask

    def _build_or_reject(self, uids: list[str], build: Callable[[], Mask]) -> Mask | None:
        try:
            with reject_on_error("the labels cannot be read"):
                return build()
        except SeriesRejected as error:
            self.reject(uids, str(error))
            return None

    def _from_segmentations(self, case: str) -> Mask:
        image = self._segmentations[case][0][0]
        segmentations = [segmentation for _, segmentation in self._segmentations[case]]
        files_by_value: dict[int, set[str]] = {}
        for segmentation in segmentations:
            for label in segmentation.labels.values():
                files_by_value.setdefault(self._label_map.value_of(label), set()).add(segmentation.instance.name)
        for value, files in sorted(files_by_value.items()):
            if len(files) > 1:
                raise SeriesRejected(
                    f"{len(files)} segmentations of {case} contain the label `{self._label_map.labels[value]}` "
                    f"({', '.join(sorted(files))}), expected one; keep one of these files"
                )
        canvas, notes = MaskCanvas(image.slices.grid), []
        for segmentation in segmentations:
            values = {number: self._label_map.value_of(label) for number, label in segmentation.labels.items()}
            merged = [self._label_map.labels[value] for value, count in Counter(values.values()).items() if count > 1]
            notes += [f"several segments have the label `{label}`, so they were merged" for label in merged]
            paint_segments(segmentation, canvas, values)
        if overlap_count := int(canvas.overlaps.sum()):
            notes.append(
                f"voxels in more than one segment: {overlap_count:,}; each of them gets the segment with the "
                "larger fraction or, if the fractions are equal, with the higher value"
            )
        return _new_mask(image, canvas.mask, [item.instance.series_uid for item in segmentations], notes)

    def _from_label_series(self, case: str, pixels: PixelReader) -> Mask:
        image, slices = self._label_series[case][0]
        values = load_volume(slices, pixels)
        lowest, highest = float(values.min()), float(values.max())
        fractions = values[values != np.rint(values)]
        if lowest < 0 or highest > MAX_LABEL_VALUE or fractions.size:
            found = str(fractions[0]) if fractions.size else f"{lowest:g} to {highest:g}"
            raise SeriesRejected(
                f"its values are no labels: found {found}, expected whole numbers from 0 to {MAX_LABEL_VALUE}"
            )
        labels = values.astype(np.uint8)
        points = np.argwhere(labels)
        voxels = resample_onto(image.slices.grid, slices.grid.affine, points, slices.grid.shape)
        array = np.zeros(image.slices.grid.shape, np.uint8)
        array[tuple(voxels.T)] = labels[tuple(points.T)]
        present = [int(value) for value in np.unique(labels) if value]
        self._label_map.add_values(present)
        is_consecutive = not present or present[-1] == len(present)
        notes = [] if is_consecutive else [f"its label values are not consecutive: {', '.join(map(str, present[:8]))}"]
        return _new_mask(image, array, [slices.series.uid], notes + slices.notes)

    def reject(self, uids: list[str], reason: str) -> None:
        """Record why DICOM-SEG files or label series, or parts of them, are missing from a mask.

        `uids` are their SeriesInstanceUIDs.
        """
        for uid in uids:
            reasons = self.rejections.setdefault(uid, [])
            if reason not in reasons:
                reasons.append(reason)


def _new_mask(image: ConvertedImage, array: np.ndarray, series: list[str], notes: list[str]) -> Mask:
    if not array.any():
        notes = [*notes, "the mask is empty"]
    return Mask(image, array, list(dict.fromkeys(series)), notes)


def _stack_mismatch(slices: SliceStack, grid: Grid) -> str:
    """Return why the voxels of a label series do not lie on the voxels of a grid; an empty text if all do."""
    try:
        resample_onto(grid, slices.grid.affine, np.empty((0, 3), np.int64), slices.grid.shape)
    except SeriesRejected as error:
        return f"{error} (found a grid of {slices.grid}, expected {grid})"
    return ""


# Values of labels

COLUMNS = ["value", "label"]
MAX_LABEL_VALUE = 255  # masks are uint8


class LabelMap:
    """Assign values to labels and store them in segments.csv; the value of a label never changes.

    Args:
        path: path of segments.csv. If the table exists, its values are never changed, whoever wrote them.

    Raises:
        MaskfoldError: the table is damaged, or a value or a label occurs twice in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.labels: dict[int, str] = {}
        for row in read_table(path, COLUMNS):
            value = int(row["value"]) if row["value"].isdigit() else 0
            if (
                not 0 < value <= MAX_LABEL_VALUE
                or value in self.labels
                or _normalise(row["label"]) in self._value_by_key()
            ):
                raise MaskfoldError(
                    f"{path} has an invalid row: found value {row['value']} and label {row['label']}, expected a "
                    f"unique value from 1 to {MAX_LABEL_VALUE} and a unique label.",
                    "Correct the row. Or delete the table, so that the command numbers the labels again.",
                )
            self.labels[value] = row["label"]

    def _value_by_key(self) -> dict[str, int]:
        return {_normalise(label): value for value, label in self.labels.items()}

    def add(self, segments: Iterable[tuple[int, str]]) -> None:
        """Assign a value to each label that has no value.

        Args:
            segments: pairs (segment number, label) of all files. New labels are sorted by their lowest segment number,
                then alphabetically, so that the order of files does not matter.

        Raises:
            MaskfoldError: there are more than 255 labels.
        """
        lowest: dict[str, tuple[int, str]] = {}
        for number, label in sorted(segments):
            lowest.setdefault(_normalise(label), (number, label))
        for key, (_, label) in sorted(lowest.items(), key=lambda item: (item[1][0], item[0])):
            if key in self._value_by_key():
                continue
            value = max(self.labels, default=0) + 1
            if value > MAX_LABEL_VALUE:
                raise MaskfoldError(
                    f"The segmentations have more than {MAX_LABEL_VALUE} different labels.",
                    "Divide the files into groups, so that files with the same labels are in one group. Convert each "
                    "group into its own output folder.",
                )
            self.labels[value] = label

    def add_values(self, values: Iterable[int]) -> None:
        """Add the values of a label series under names such as `value 3`, because a label series contains no names."""
        for value in values:
            self.labels.setdefault(value, f"value {value}")

    def value_of(self, label: str) -> int:
        """Return the value of a label that `add` or `add_values` added."""
        return self._value_by_key()[_normalise(label)]

    def save(self) -> None:
        """Write segments.csv if there are labels."""
        if self.labels:
            rows = [{"value": str(value), "label": self.labels[value]} for value in sorted(self.labels)]
            write_table(self._path, COLUMNS, rows)


def _normalise(label: str) -> str:
    """Return the form of a label that is used in comparisons: `Spleen` and ` spleen ` have the same form."""
    return " ".join(label.casefold().split())


# Images that masks reference


@dataclass(frozen=True, eq=False)
class ConvertedImage:
    """Hold the case id and the sorted slices of a converted image series."""

    id: str
    slices: SliceStack


class ReferenceMatcher:
    """Find the image that a mask references.

    Args:
        series: all image series of the folder.
        images: converted image series by SeriesInstanceUID.
    """

    def __init__(self, series: list[Series], images: dict[str, ConvertedImage]) -> None:
        self._images = images
        self._series_of_uid = {item.uid: item.uid for item in series} | {
            instance.instance_uid: item.uid for item in series for instance in item.instances if instance.instance_uid
        }

    def find_image(self, instance: Instance, find_mismatch: Callable[[Grid], str], strict: bool) -> ConvertedImage:
        """Find the image to which a mask belongs.

        Args:
            instance: a file of the mask.
            find_mismatch: function that returns why the mask does not lie on an image's grid. An empty text means that
                the mask lies on the grid.
            strict: whether a referenced image must be in the folder. If `strict` is False and the referenced image is
                not in the folder, any image of the study may match.

        Returns:
            The referenced image that has the mask's grid. If the file references no image of the folder, the result is
            the only image in the same study and frame of reference that has the mask's grid.

        Raises:
            SeriesRejected: no image matches, or several images match.
        """
        referenced = {self._series_of_uid[uid] for uid in instance.source_uids if uid in self._series_of_uid}
        if referenced:
            candidates = [self._images[uid] for uid in sorted(referenced) if uid in self._images]
            if not candidates:
                raise SeriesRejected("the image series to which it refers was refused")
        elif instance.source_uids and strict:
            raise SeriesRejected("the image series to which it refers is not in the folder")
        else:
            candidates = [image for image in self._images.values() if _same_frame(image.slices.series.header, instance)]
            if not candidates:
                raise SeriesRejected("no image of the same study and frame of reference was converted")
        mismatches = {image.id: find_mismatch(image.slices.grid) for image in candidates}
        matching = [image for image in candidates if not mismatches[image.id]]
        if len(matching) > 1:
            ids = ", ".join(sorted(image.id for image in matching))
            raise SeriesRejected(
                f"several images have the grid of the mask, and the mask does not refer to exactly one of them: {ids}"
            )
        if not matching:
            case, mismatch = min(mismatches.items())
            more = (
                f"; it is also not on the grid of {format_count(len(candidates) - 1, 'more image')}"
                if len(candidates) > 1
                else ""
            )
            raise SeriesRejected(f"it is not on the grid of {case}: {mismatch}{more}")
        return matching[0]


def _same_frame(image: Instance, mask: Instance) -> bool:
    """Return whether image and mask have the same study and frame of reference.

    A missing frame of reference matches every other.
    """
    frames_of_reference = {image.frame_of_reference, mask.frame_of_reference} - {""}
    return image.study_uid == mask.study_uid and len(frames_of_reference) < 2


# DICOM-SEG files

MIN_FRACTION = 0.5  # a voxel of a fractional segmentation belongs to the segment from this fraction on


@dataclass(eq=False)
class Segmentation:
    """Hold the header of one DICOM-SEG file.

    Attributes:
        labels: SegmentLabel by segment number.
        kind: BINARY, FRACTIONAL or LABELMAP.
        max_value: stored value that represents a fraction of 1.
        frame_geometry: for each frame, the segment number (None in a label map) and the affine to RAS mm.
        shape: rows and columns.
    """

    instance: Instance
    labels: dict[int, str]
    kind: str
    max_value: float
    frame_geometry: list[tuple[int | None, np.ndarray]]
    shape: tuple[int, int]


@dataclass(eq=False)
class MaskCanvas:
    """Paint a mask segment by segment.

    Attributes:
        grid: grid of the image.
        mask: (X, Y, Z) uint8, label values.
        overlaps: (X, Y, Z) bool, voxels in more than one segment.
    """

    grid: Grid
    mask: np.ndarray = field(init=False)
    overlaps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.grid.shape, np.uint8)
        self.overlaps = np.zeros(self.grid.shape, bool)
        self._fraction = np.zeros(self.grid.shape, np.float32)

    def set_voxels(self, voxels: np.ndarray, value: int, fraction: np.ndarray | float = 1.0) -> None:
        """Set the mask to the label value `value` at the voxels (N, 3).

        `fraction` is the fraction that a fractional segmentation stores for each voxel, and 1 for all other
        segmentations. If several calls set the same voxel, the value with the largest fraction wins. If the fractions
        are equal, the highest value wins.
        """
        index = tuple(voxels.T)
        old_value, old_fraction = self.mask[index], self._fraction[index]
        self.overlaps[index] |= (old_value != 0) & (old_value != value)
        wins = (fraction > old_fraction) | ((fraction == old_fraction) & (value > old_value))
        self.mask[index] = np.where(wins, value, old_value)
        self._fraction[index] = np.where(wins, fraction, old_fraction)


def read_segmentation(instance: Instance) -> Segmentation:
    """Read the header of a DICOM-SEG, without its pixels.

    Raises:
        SeriesRejected: the file is damaged, or a frame has no position, orientation, spacing or segment.
    """
    import pydicom

    if instance.fault:
        raise SeriesRejected(instance.fault)
    with silence_pydicom(), reject_on_error(f"{instance.name} cannot be read"):
        dataset = pydicom.dcmread(instance.path, stop_before_pixels=True, force=True)
        kind = str(dataset.get("SegmentationType") or "BINARY").upper()
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise SeriesRejected(
                f"{instance.name}: found SegmentationType {kind}, expected BINARY, FRACTIONAL or LABELMAP"
            )
        labels = {
            int(segment.SegmentNumber): _segment_label(segment) for segment in dataset.get("SegmentSequence") or ()
        }
        labels.pop(0, None)  # a label map may describe its background, which has no segment
        frame_geometry = list(_read_frame_geometry(dataset, instance, kind))
        for number, _ in frame_geometry:
            if number is not None and number not in labels:
                raise SeriesRejected(
                    f"{instance.name} has a frame of segment {number}, but its header describes no segment {number}"
                )
        return Segmentation(
            instance,
            labels,
            kind,
            float(dataset.get("MaximumFractionalValue") or 255),
            frame_geometry,
            (int(dataset.Rows), int(dataset.Columns)),
        )


def _segment_label(segment: Any) -> str:
    """Return the name of a segment: its SegmentLabel.

    If SegmentLabel is empty, return the name of the segment's type. If this name is also empty, return `segment` and
    the number of the segment.
    """
    types = segment.get("SegmentedPropertyTypeCodeSequence") or [{}]
    for name in (segment.get("SegmentLabel"), types[0].get("CodeMeaning")):
        if name and str(name).strip():
            # A sign at the beginning would make the cell a formula in a spreadsheet.
            return " ".join(str(name).split()).lstrip("=+-@") or f"segment {segment.SegmentNumber}"
    return f"segment {segment.SegmentNumber}"


def _read_frame_geometry(dataset: Any, instance: Instance, kind: str) -> Iterator[tuple[int | None, np.ndarray]]:
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if len(groups) != instance.size[2]:
        raise SeriesRejected(f"{instance.name} declares {instance.size[2]} frames, but describes {len(groups)}")
    for index, group in enumerate(groups):
        plane_position = functional_group(dataset, group, "PlanePositionSequence")
        plane_orientation = functional_group(dataset, group, "PlaneOrientationSequence")
        measures = functional_group(dataset, group, "PixelMeasuresSequence")
        segment = functional_group(dataset, group, "SegmentIdentificationSequence")
        position = parse_numbers(plane_position.get("ImagePositionPatient"), 3)
        spacing = parse_numbers(measures.get("PixelSpacing"), 2)
        orientation = parse_numbers(plane_orientation.get("ImageOrientationPatient"), 6)
        number = segment.get("ReferencedSegmentNumber")
        if position is None or orientation is None or spacing is None:
            raise SeriesRejected(f"frame {index + 1} of {instance.name} has no position, orientation or pixel spacing")
        check_orientation(orientation, instance.name)
        if number is None and kind != "LABELMAP":
            raise SeriesRejected(f"frame {index + 1} of {instance.name} has no segment number")
        affine = slice_affine(position, orientation, (float(spacing[0]), float(spacing[1])), 1.0)
        yield (None if kind == "LABELMAP" else int(number)), affine


def grid_mismatch(segmentation: Segmentation, grid: Grid) -> str:
    """Return why the pixels of a segmentation do not lie on the voxels of a grid; an empty text if all do.

    Frames beyond the ends of the grid are allowed.
    """
    rows, columns = segmentation.shape
    try:
        for _, affine in segmentation.frame_geometry:
            resample_onto(grid, affine, np.empty((0, 3), np.int64), (columns, rows, 1))
    except SeriesRejected as error:
        return str(error)
    return ""


def paint_segments(segmentation: Segmentation, canvas: MaskCanvas, values: dict[int, int]) -> None:
    """Paint all segments of a DICOM-SEG file on the canvas.

    Args:
        segmentation: result of `read_segmentation`.
        canvas: the canvas on the image's grid, painted in place.
        values: values in the mask by segment number.

    Raises:
        SeriesRejected: the pixels cannot be decoded or do not lie on the grid of the image, or a labelled voxel is
            outside of the image.
    """
    name = segmentation.instance.name
    check_decoders([segmentation.instance])
    with silence_pydicom():
        stored = decode_frames(segmentation.instance.path, name)
    expected_shape = (len(segmentation.frame_geometry), *segmentation.shape)
    if stored.shape != expected_shape:
        raise SeriesRejected(
            f"{name} does not match its header: found pixels of shape {stored.shape}, expected {expected_shape}"
        )
    rows, columns = segmentation.shape
    fractional = segmentation.kind == "FRACTIONAL"
    for pixels, (number, affine) in zip(stored, segmentation.frame_geometry, strict=True):
        if number is None:
            insides = {int(value): pixels == value for value in np.unique(pixels) if value}
        elif fractional:
            insides = {number: pixels >= MIN_FRACTION * segmentation.max_value}
        else:
            insides = {number: pixels > 0}
        for segment, inside in insides.items():
            if segment not in values:
                raise SeriesRejected(
                    f"the pixels of {name} contain segment {segment}, but its header describes no segment {segment}"
                )
            row, column = np.nonzero(inside)
            points = np.stack([column, row, np.zeros_like(row)], axis=1)
            voxels = resample_onto(canvas.grid, affine, points, (columns, rows, 1))
            fraction = (pixels[inside] / segmentation.max_value).astype(np.float32) if fractional else 1.0
            canvas.set_voxels(voxels, values[segment], fraction)
