"""Read the headers (not the pixels) of all DICOM files below a folder, group them into series, and name cases."""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.image_types import check_declared_size, check_not_bomb
from competition.dicom.headers import (
    ACQUISITION_KEYWORDS,
    DATE_KEYWORDS,
    Frame,
    SeriesRejected,
    contains_private,
    find_private_patterns,
    read_frames,
    reject_on_error,
    silence_pydicom,
)

DEFERRED_BYTES = 4096  # values of more bytes are not read from the disk
DEFLATED = b"1.2.840.10008.1.2.1.99"
SEGMENTATION_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
}
SUFFIXES = (".dcm", ".dicom", ".ima")
DICOMDIR = "1.2.840.10008.1.3.10"
LAST_IDENTITY_TAG = 0x0020000E  # SeriesInstanceUID; the tags up to this one identify the file and its series

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
TAGS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SourceImageSequence",
    "ReferencedSeriesSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *PIXEL_KEYWORDS,
    *DATE_KEYWORDS,
    *ACQUISITION_KEYWORDS,
]


@dataclass(eq=False)
class Instance:
    """Hold the header of one DICOM file. Texts that the header lacks are empty.

    Attributes:
        path: path of the file.
        name: path of the file below the folder, for messages.
        instance_uid, sop_class, study_uid, series_uid, frame_of_reference: UIDs in the header.
        patient_id, series_number, description, modality: other texts in the header.
        private_patterns: regular expressions for private texts in the header, from `find_private_patterns`.
        instance_number: InstanceNumber; None if absent.
        image_type: values of ImageType, in upper case.
        photometric: PhotometricInterpretation.
        transfer_syntax: UID of the transfer syntax.
        size: number of rows, columns and frames.
        frame_headers: geometry of each frame; empty for segmentations and files without pixels.
        source_uids: UIDs of the instances and series from which the file was derived.
        has_pixels: whether the file is an image, rather than e.g. a report.
        fault: reason why the pixels cannot be used; empty if they can be used.
    """

    path: Path
    name: str
    instance_uid: str
    sop_class: str
    patient_id: str
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    modality: str
    frame_of_reference: str
    private_patterns: frozenset[str]
    instance_number: int | None = None
    image_type: tuple[str, ...] = ()
    photometric: str = ""
    transfer_syntax: str = ""
    size: tuple[int, int, int] = (0, 0, 0)
    frame_headers: tuple[Frame, ...] = ()
    source_uids: frozenset[str] = frozenset()
    has_pixels: bool = False
    fault: str = ""


@dataclass
class Scan:
    """Hold the files of a folder.

    Attributes:
        instances: headers of the DICOM files, sorted by name.
        unreadable: reason why the series of a file is unknown, by the name of the file. Only files that are DICOM or
            are named like DICOM files are listed.
        non_dicom_count: number of all other files that are not DICOM.
        links: paths of links to folders, which are not followed.
    """

    instances: list[Instance] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    non_dicom_count: int = 0
    links: list[str] = field(default_factory=list)


def scan_folder(folder: Path) -> Scan:
    """Read the header of each file below a folder, without following links to folders."""
    result = Scan()
    non_dicom: list[str] = []
    with silence_pydicom():
        for parent, folders, names in os.walk(folder):
            folders.sort()
            result.links += [str(Path(parent, name)) for name in folders if Path(parent, name).is_symlink()]
            for path in (Path(parent) / name for name in sorted(names)):
                _add_file(result, path, path.relative_to(folder).as_posix(), non_dicom)
    result.instances.sort(key=lambda instance: instance.name)
    dicom_patterns = {_name_pattern(instance.name) for instance in result.instances} - {None}
    for name in non_dicom:
        # If a slice at an end of the volume is missing, there is no gap between slices, so only the file names show it.
        if _name_pattern(name) in dicom_patterns or name.lower().endswith(SUFFIXES):
            result.unreadable[name] = f"{name} is named like a DICOM file, but is not a DICOM file"
        else:
            result.non_dicom_count += 1
    return result


def _name_pattern(name: str) -> str | None:
    """Return a path with each number replaced by `#`, so that numbered files of a folder have the same pattern.

    Return None if the file name contains no number.
    """
    return re.sub(r"\d+", "#", name) if re.search(r"\d[^/]*$", name) else None


def _add_file(result: Scan, path: Path, name: str, non_dicom: list[str]) -> None:
    try:
        with reject_on_error(f"{name} cannot be read"):
            dataset, complete = _read_header(path) if path.is_file() else (None, False)
            if dataset is None:
                non_dicom.append(name)
                return
            if not dataset.get("SeriesInstanceUID"):
                raise SeriesRejected(f"{name} is truncated, or has no SeriesInstanceUID")
            instance = _read_identity(dataset, path, name)
    except SeriesRejected as error:
        result.unreadable[name] = str(error)
        return
    try:
        with reject_on_error(f"{name} has an unreadable header"):
            if not complete:
                raise SeriesRejected(f"{name} is truncated: the file ends within its header")
            _read_image_attributes(instance, dataset)
    except SeriesRejected as error:
        instance.fault = str(error)
    result.instances.append(instance)


def _read_header(path: Path) -> tuple[Any | None, bool]:
    """Return the header of a file (None if the file is not DICOM), and whether the header is complete."""
    import pydicom
    from pydicom.filereader import read_partial

    with open(path, "rb") as stream:
        start = stream.read(4096)
    no_preamble = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"  # force: old files have no preamble
    if start[128:132] != b"DICM" and not no_preamble:
        return None, False
    if DEFLATED in start:
        _check_deflated_size(path, start)
    dataset: Any = pydicom.Dataset()
    try:
        with reject_on_error("cannot be read"):
            dataset = pydicom.dcmread(path, defer_size=DEFERRED_BYTES, specific_tags=TAGS, force=no_preamble)
    except SeriesRejected:
        pass  # the code below handles this case
    if getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID") == DICOMDIR:
        return None, False
    if dataset.get("SeriesInstanceUID"):
        return dataset, True
    # If the file ends within the header, pydicom raises an error or returns an empty header, so read only up to the
    # SeriesInstanceUID.
    with open(path, "rb") as stream:
        return read_partial(stream, stop_when=lambda tag, *_: tag > LAST_IDENTITY_TAG, force=no_preamble), False


def _check_deflated_size(path: Path, start: bytes) -> None:
    """Check the unpacked size of a deflated file by unpacking it block by block.

    pydicom would unpack the whole file at once, and a decompression bomb would then fill the memory.
    """
    inflater, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as stream:
        stream.seek(144 + int.from_bytes(start[140:144], "little"))  # after the file meta information group
        while block := inflater.unconsumed_tail or stream.read(2**16):
            count += len(inflater.decompress(block, 2**20))
            check_not_bomb(path, count)
    check_declared_size(path, count)


def _read_identity(dataset: Any, path: Path, name: str) -> Instance:
    return Instance(
        path,
        name,
        instance_uid=header_text(dataset, "SOPInstanceUID"),
        sop_class=header_text(dataset, "SOPClassUID"),
        patient_id=header_text(dataset, "PatientID"),
        study_uid=header_text(dataset, "StudyInstanceUID"),
        series_uid=header_text(dataset, "SeriesInstanceUID"),
        series_number=header_text(dataset, "SeriesNumber"),
        description=header_text(dataset, "SeriesDescription"),
        modality=header_text(dataset, "Modality"),
        frame_of_reference=header_text(dataset, "FrameOfReferenceUID"),
        private_patterns=find_private_patterns(dataset),
    )


def _read_image_attributes(instance: Instance, dataset: Any) -> None:
    """Set those attributes of `instance` that describe the image.

    Raises:
        SeriesRejected: the pixels are incomplete.
    """
    instance.transfer_syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    instance.image_type = tuple(header_text(dataset, "ImageType").upper().split("\\"))
    instance.photometric = header_text(dataset, "PhotometricInterpretation")
    number = header_text(dataset, "InstanceNumber")
    instance.instance_number = int(number) if number.removeprefix("-").isdecimal() else None
    instance.source_uids = _read_source_uids(dataset)
    pixel_keyword = next((keyword for keyword in PIXEL_KEYWORDS if keyword in dataset), None)
    if pixel_keyword is None and "Rows" not in dataset and "Image Storage" not in _class_name(instance.sop_class):
        return  # not an image, but e.g. a report, contours or a presentation state
    instance.has_pixels = True
    if pixel_keyword is None:
        raise SeriesRejected(f"{instance.name} is truncated: found no pixels")
    instance.size = (int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1))
    _check_pixel_bytes(instance, dataset, pixel_keyword)
    if instance.sop_class not in SEGMENTATION_CLASSES:
        instance.frame_headers = read_frames(dataset, instance.path, instance.name)


def _check_pixel_bytes(instance: Instance, dataset: Any, pixel_keyword: str) -> None:
    """Check that the file has at least as many bytes of pixels as the header declares."""
    element = dataset.get_item(pixel_keyword, keep_deferred=True)
    length, start = getattr(element, "length", None), getattr(element, "value_tell", 0)
    if length is None or length == 0xFFFFFFFF or getattr(element, "is_undefined_length", False):
        return  # for encapsulated pixels, pydicom does not return the element of a truncated file
    bits = int(dataset.get("BitsAllocated") or 16) * int(dataset.get("SamplesPerPixel") or 1)
    expected = -(-math.prod(instance.size) * bits // 8)
    available = length
    if DEFLATED.decode() != instance.transfer_syntax:
        available = min(length, instance.path.stat().st_size - start)
    uncompressed = not is_compressed(instance.transfer_syntax)
    if available < min(expected, length) or (available < expected and uncompressed):
        raise SeriesRejected(
            f"{instance.name} is truncated: found {available:,} bytes of pixels, expected {max(expected, length):,}"
        )


def is_compressed(transfer_syntax: str) -> bool:
    """Return whether a transfer syntax compresses the pixels."""
    from pydicom.uid import UID

    uid = UID(transfer_syntax)
    return uid.is_transfer_syntax and uid.is_compressed


def _class_name(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).name


def _read_source_uids(dataset: Any) -> frozenset[str]:
    """Return the UIDs of the instances and series from which an instance or one of its frames was derived."""
    uids: set[str] = set()
    for series in dataset.get("ReferencedSeriesSequence") or ():
        uids.add(str(series.get("SeriesInstanceUID") or ""))
        for reference in series.get("ReferencedInstanceSequence") or ():
            uids.add(str(reference.get("ReferencedSOPInstanceUID") or ""))
    shared_groups = dataset.get("SharedFunctionalGroupsSequence") or ()
    frame_groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [*shared_groups, *frame_groups]
    derivations = [item for group in groups for item in group.get("DerivationImageSequence") or ()]
    for holder in (dataset, *derivations):
        for reference in holder.get("SourceImageSequence") or ():
            uids.add(str(reference.get("ReferencedSOPInstanceUID") or ""))
    return frozenset(uids - {""})


def header_text(dataset: Any, keyword: str) -> str:
    """Return an attribute as one line of text; an empty text if it is absent."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    multi_valued = not isinstance(value, str) and hasattr(value, "__iter__") and hasattr(value, "append")
    values = value if multi_valued else [value]
    return " ".join("\\".join(map(str, values)).replace("\0", " ").split())


# Series

MAX_COSINE_DIFFERENCE = 1e-3  # maximum difference between direction cosines of equal directions
MAX_COUNTED_DIRECTIONS = 99  # counting stops here, because a rotating view has as many directions as frames
SLICE_MODALITIES = ("CT", "MR", "PT", "NM")
UNPLACED = (
    "its images have no position in the patient, so their order and spacing are unknown. Export "
    "the series again with ImagePositionPatient"
)
NON_IMAGE_HINTS = {
    "RTSTRUCT": "contours, which Maskfold does not convert; export them as DICOM-SEG or as a label series"
}


@dataclass(eq=False)
class Series:
    """Hold the files of one SeriesInstanceUID.

    Attributes:
        instances: headers of the files, at least one, sorted by name.
        kind: image, label (an image series that contains labels), picture (2D images without a position), segmentation
            (DICOM-SEG) or other.
        reason: reason, other than damaged files, why the series cannot be converted; empty if there is none.
    """

    uid: str
    instances: list[Instance]
    kind: str
    reason: str

    @property
    def header(self) -> Instance:
        """The header that describes the series: the first complete header of its instances."""
        return next((instance for instance in self.instances if not instance.fault), self.instances[0])

    @property
    def private_patterns(self) -> frozenset[str]:
        """The patterns of private texts in the series; see `find_private_patterns`."""
        return frozenset().union(*(instance.private_patterns for instance in self.instances))


def group_series(instances: list[Instance], label_pattern: re.Pattern[str] | None) -> list[Series]:
    """Group files into series; the folders of the files do not matter.

    Args:
        instances: files of a scan.
        label_pattern: regular expression. A series whose description matches it contains labels. None if there is no
            such series.

    Returns:
        Series, sorted by patient, SeriesNumber and UID.
    """
    instances_of_uid: dict[str, list[Instance]] = {}
    for instance in instances:
        instances_of_uid.setdefault(instance.series_uid, []).append(instance)
    series = [_new_series(uid, instances_of_uid[uid], label_pattern) for uid in sorted(instances_of_uid)]
    return sorted(
        series,
        key=lambda item: (item.header.patient_id, int("0" + re.sub(r"\D", "", item.header.series_number)), item.uid),
    )


def _new_series(uid: str, instances: list[Instance], label_pattern: re.Pattern[str] | None) -> Series:
    series = Series(uid, instances, "image", "")
    header = series.header
    if header.sop_class in SEGMENTATION_CLASSES:
        series.kind = "segmentation"
    elif not any(instance.has_pixels or instance.fault for instance in instances):
        series.kind = "other"
        series.reason = f"{header.modality or 'it'} contains {NON_IMAGE_HINTS.get(header.modality, 'no images')}"
    elif label_pattern is not None and label_pattern.search(header.description):
        series.kind = "label"
    if series.kind in ("image", "label"):
        series.reason = _non_volume_reason(series)
        if series.reason == UNPLACED and _are_pictures(series):
            series.kind, series.reason = "picture", ""
        elif series.reason:
            series.kind = "other"
    return series


def _are_pictures(series: Series) -> bool:
    """Return whether images without a position are 2D pictures, rather than slices whose position is missing."""
    one_frame_each = all(len(instance.frame_headers) == 1 for instance in series.instances if not instance.fault)
    return one_frame_each and series.kind == "image" and series.header.modality not in SLICE_MODALITIES


def _non_volume_reason(series: Series) -> str:
    """Return the reason why the images are not slices of one volume; an empty text if they form a volume."""
    for instance in series.instances:
        if "LOCALIZER" in instance.image_type:
            return f"it is a localiser, an overview image ({instance.name})"
        if "MOSAIC" in instance.image_type:
            return f"it contains mosaics, in which each image shows a whole volume ({instance.name})"
        if instance.photometric and not instance.photometric.startswith("MONOCHROME"):
            return (
                f"it has colours: found {instance.photometric}, expected MONOCHROME1 or MONOCHROME2 ({instance.name})"
            )
    frames = [frame for instance in series.instances for frame in instance.frame_headers]
    if frames and all(frame.position is None or frame.orientation is None for frame in frames):
        return UNPLACED
    directions = _count_directions([frame.orientation for frame in frames if frame.orientation is not None])
    if directions > 1:
        return f"its slices have {directions} orientations, as in a localiser or in planes cut from a volume"
    return ""


def _count_directions(orientations: list[np.ndarray]) -> int:
    """Count the different directions among direction cosines; stop at `MAX_COUNTED_DIRECTIONS` + 1."""
    directions: list[np.ndarray] = []
    for cosines in orientations:
        if not any(np.abs(cosines - direction).max() <= MAX_COSINE_DIFFERENCE for direction in directions):
            directions.append(cosines)
        if len(directions) > MAX_COUNTED_DIRECTIONS:
            break
    return len(directions)


def format_counts(values: list[str]) -> str:
    """Format values with their counts, the most frequent value first, e.g. `20 of 512×512, 1 of 256×256`."""
    return ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())


# Names of patients and cases

MAX_LENGTH = 60  # maximum number of characters of a cleaned text


def _clean(text: str) -> str:
    """Reduce a text to ASCII letters, digits, `_` and `-`; the result may be empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_-")[:MAX_LENGTH]


def _short_hash(text: str) -> str:
    """Return six hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def name_patients(series: list[Series]) -> dict[str, str]:
    """Return a name for the patient of each series.

    Args:
        series: all series of the folder.

    Returns:
        The cleaned PatientID by SeriesInstanceUID. If two PatientIDs are equal after cleaning, six hash digits are
        appended. If the PatientID is empty, or contains the name or a date of a series of this patient, the name is
        `patient_` and six hash digits of the PatientID. If there is no PatientID, the digits are a hash of the study's
        UID.
    """
    originals = {item.uid: item.header.patient_id or item.header.study_uid for item in series}
    # All series of a patient have the same name, even if only one of them has the date that the PatientID contains.
    patterns: dict[str, set[str]] = {}
    for item in series:
        patterns.setdefault(item.header.patient_id, set()).update(item.private_patterns)
    names = {}
    for item in series:
        patient_id = item.header.patient_id
        name = _clean(patient_id)
        if not name or contains_private(patient_id, patterns[patient_id]) or "^" in patient_id:
            name = f"patient_{_short_hash(originals[item.uid])}"
        names[item.uid] = name
    originals_of_name: dict[str, set[str]] = {}
    for uid, name in names.items():
        # on case-insensitive disks, P1 and p1 are the same file
        originals_of_name.setdefault(name.casefold(), set()).add(originals[uid])
    return {
        uid: f"{name}_{_short_hash(originals[uid])}" if len(originals_of_name[name.casefold()]) > 1 else name
        for uid, name in names.items()
    }


def assign_case_ids(
    series: list[Series], patient_of: dict[str, str], known_ids: dict[str, str], taken_ids: set[str]
) -> dict[str, str]:
    """Return an id for each image series.

    Args:
        series: image series of the folder. Damaged series are included, so that repairing a series does not change the
            ids of other series.
        patient_of: result of `name_patients`.
        known_ids: ids from earlier conversions, by SeriesInstanceUID. A series with such an id keeps this id.
        taken_ids: ids that other series got in earlier conversions.

    Returns:
        Ids by SeriesInstanceUID. An id begins with the name of the patient. If the patient has several studies, `_st`
        and six hash digits of the study are added. If the patient has several series, `_s` and SeriesNumber are added.
        If the id is still not unique, six hash digits of the series are added.
    """
    series_count = Counter(patient_of[item.uid] for item in series)
    studies: dict[str, set[str]] = {}
    for item in series:
        studies.setdefault(patient_of[item.uid], set()).add(item.header.study_uid)
    ids = {}
    for item in series:
        patient = patient_of[item.uid]
        study = f"_st{_short_hash(item.header.study_uid)}" if len(studies[patient]) > 1 else ""
        number = _clean(item.header.series_number) or f"x{_short_hash(item.uid)}"
        ids[item.uid] = f"{patient}{study}_s{number}" if series_count[patient] > 1 else patient
    ids |= {uid: known_ids[uid] for uid in ids if uid in known_ids}
    uses = Counter(case.casefold() for case in ids.values()) + Counter(case.casefold() for case in taken_ids)
    return {
        uid: case if uses[case.casefold()] == 1 or uid in known_ids else f"{case}_{_short_hash(uid)}"
        for uid, case in ids.items()
    }
