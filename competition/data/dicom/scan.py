"""The headers of every DICOM file below a folder, whatever the files are called; pixels are not read."""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from competition.data.dicom.frames import TELLING, Frame, frames
from competition.data.dicom.privacy import DATES, private_words
from competition.data.dicom.refused import Refused, quiet, refusing
from competition.data.readers_types import refuse_bomb, refuse_size

DEFERRED_BYTES = 4096  # values longer than this stay on the disk
DEFLATED = b"1.2.840.10008.1.2.1.99"
SEGMENTATIONS = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}  # Segmentation, Label Map Segmentation
SUFFIXES = (".dcm", ".dicom", ".ima")
DIRECTORY = "1.2.840.10008.1.3.10"
LAST_IDENTITY = 0x0020000E  # SeriesInstanceUID: what comes before it names the file and its series

TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientName",
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "SourceImageSequence", "ReferencedSeriesSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", *DATES, *TELLING]
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(eq=False)
class Instance:
    """One DICOM file.

    Attributes:
        name: its path below the folder, for messages.
        patient … modality: text as it is in the header; empty where it is absent.
        number: its place in the series by InstanceNumber; None where absent.
        syntax: the transfer syntax UID.
        size: rows, columns and frames.
        frames: where each frame lies; empty for segmentations and for what holds no pixels.
        sources: UIDs of the instances and series that the file says it is made from.
        fault: why its pixels cannot be used; empty where nothing is wrong.
        private: see `private_words`.
    """

    path: Path
    name: str
    sop: str
    sop_class: str
    patient: str
    study: str
    series: str
    series_number: str
    description: str
    modality: str
    frame_of_reference: str
    private: frozenset[str]
    number: int | None = None
    image_type: tuple[str, ...] = ()
    photometric: str = ""
    syntax: str = ""
    size: tuple[int, int, int] = (0, 0, 0)
    frames: tuple[Frame, ...] = ()
    sources: frozenset[str] = frozenset()
    holds_pixels: bool = False
    fault: str = ""


@dataclass
class Scan:
    """What a folder holds.

    Attributes:
        instances: sorted by name.
        lost: files that are DICOM or are called so, with the reason why not even their series is known.
        others: how many files are not DICOM.
    """

    instances: list[Instance] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    others: int = 0


def scan(folder: Path) -> Scan:
    """Reads the header of each file below a folder; links to folders are not followed."""
    found = Scan()
    others: list[str] = []
    with quiet():
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for path in (Path(parent) / name for name in sorted(names)):
                _add(found, path, path.relative_to(folder).as_posix(), others)
    found.instances.sort(key=lambda one: one.name)
    slices = {_pattern(one.name) for one in found.instances} - {None}
    for name in others:
        if _pattern(name) in slices or name.lower().endswith(SUFFIXES):  # a slice that was overwritten leaves no gap at an end
            found.lost[name] = f"{name} is called like a DICOM file and is none"
        else:
            found.others += 1
    return found


def _pattern(name: str) -> str | None:
    """A name without its numbers; None where it has none."""
    return re.sub(r"\d+", "#", name) if re.search(r"\d[^/]*$", name) else None


def _add(found: Scan, path: Path, name: str, others: list[str]) -> None:
    try:
        with refusing(f"{name} cannot be read"):
            dataset, whole = _header(path) if path.is_file() else (None, False)
            if dataset is None:
                others.append(name)
                return
            if not dataset.get("SeriesInstanceUID"):
                raise Refused(f"{name} is cut short, or names no series")
            instance = _identity(dataset, path, name)
    except Refused as error:
        found.lost[name] = str(error)
        return
    try:
        with refusing(f"{name} has a header that cannot be read"):
            if not whole:
                raise Refused(f"{name} is cut short in its header")
            _describe(instance, dataset)
    except Refused as error:
        instance.fault = str(error)
    found.instances.append(instance)


def _header(path: Path) -> tuple[Any | None, bool]:
    """The header, and whether it was whole; None for what is not DICOM."""
    import pydicom
    from pydicom.filereader import read_partial

    with open(path, "rb") as stream:
        start = stream.read(4096)
    bare = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"  # old files without preamble
    if start[128:132] != b"DICM" and not bare:
        return None, False
    if DEFLATED in start:
        _refuse_deflated(path, start)
    dataset: Any = pydicom.Dataset()
    try:
        with refusing("it cannot be read"):
            dataset = pydicom.dcmread(path, defer_size=DEFERRED_BYTES, specific_tags=TAGS, force=bare)
    except Refused:
        pass  # below
    if getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID") == DIRECTORY:
        return None, False
    if dataset.get("SeriesInstanceUID"):
        return dataset, True
    # pydicom gives an empty header, or raises, where the file ends within it: read as far as the name of the series only.
    with open(path, "rb") as stream:
        return read_partial(stream, stop_when=lambda tag, *_: tag > LAST_IDENTITY, force=bare), False


def _refuse_deflated(path: Path, start: bytes) -> None:
    """Unpacks a deflated dataset block by block, only to see how large it is: pydicom unpacks all of it at once."""
    unpack, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as stream:
        stream.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the group of the file's own description
        while block := unpack.unconsumed_tail or stream.read(2**16):
            count += len(unpack.decompress(block, 2**20))
            refuse_bomb(path, count)
    refuse_size(path, count)


def _identity(dataset: Any, path: Path, name: str) -> Instance:
    return Instance(
        path, name, sop=text(dataset, "SOPInstanceUID"), sop_class=text(dataset, "SOPClassUID"),
        patient=text(dataset, "PatientID"), study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"), series_number=text(dataset, "SeriesNumber"),
        description=text(dataset, "SeriesDescription"), modality=text(dataset, "Modality"),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"), private=private_words(dataset))


def _describe(instance: Instance, dataset: Any) -> None:
    """What is known without decoding; raises Refused where the pixels cannot be there as a whole."""
    instance.syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    instance.image_type = tuple(text(dataset, "ImageType").upper().split("\\"))
    instance.photometric = text(dataset, "PhotometricInterpretation")
    number = text(dataset, "InstanceNumber")
    instance.number = int(number) if number.lstrip("-").isdigit() else None
    instance.sources = _sources(dataset)
    pixels = next((key for key in PIXELS if key in dataset), None)
    if pixels is None and "Rows" not in dataset and "Image Storage" not in _class_name(instance.sop_class):
        return  # a report, contours, a presentation: no image at all
    instance.holds_pixels = True
    if pixels is None:
        raise Refused(f"{instance.name} is cut short: its pixels are missing")
    instance.size = (int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1))
    _measure(instance, dataset, pixels)
    if instance.sop_class not in SEGMENTATIONS:
        instance.frames = frames(dataset, instance.path, instance.name)


def _measure(instance: Instance, dataset: Any, pixels: str) -> None:
    """Compares the bytes of pixels in the file with what the header promises."""
    element = dataset.get_item(pixels, keep_deferred=True)
    length, start = getattr(element, "length", None), getattr(element, "value_tell", 0)
    if length is None or length == 0xFFFFFFFF or getattr(element, "is_undefined_length", False):
        return  # encapsulated: a file that ends too early has no end of that element, and pydicom does not give it
    bits = int(dataset.get("BitsAllocated") or 16) * int(dataset.get("SamplesPerPixel") or 1)
    needed = -(-math.prod(instance.size) * bits // 8)
    there = length
    if DEFLATED.decode() != instance.syntax:
        there = min(length, instance.path.stat().st_size - start)
    if there < min(needed, length) or (there < needed and not compressed(instance.syntax)):
        raise Refused(f"{instance.name} is cut short: {there:,} of {max(needed, length):,} bytes of pixels are there")


def compressed(syntax: str) -> bool:
    """Whether a transfer syntax packs its pixels."""
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.is_transfer_syntax and uid.is_compressed


def _class_name(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).name


def _sources(dataset: Any) -> frozenset[str]:
    """UIDs of what an instance names as its origin, for each frame too."""
    found: set[str] = set()
    for series in dataset.get("ReferencedSeriesSequence") or ():
        found.add(str(series.get("SeriesInstanceUID") or ""))
        found.update(str(one.get("ReferencedSOPInstanceUID") or "") for one in series.get("ReferencedInstanceSequence") or ())
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or ()), *(dataset.get("PerFrameFunctionalGroupsSequence") or ())]
    derived = [item for group in groups for item in group.get("DerivationImageSequence") or ()]
    for holder in (dataset, *derived):
        found.update(str(one.get("ReferencedSOPInstanceUID") or "") for one in holder.get("SourceImageSequence") or ())
    return frozenset(found - {""})


def text(dataset: Any, keyword: str) -> str:
    """An attribute as one line of text; empty where it is absent."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    words = value if not isinstance(value, str) and hasattr(value, "__iter__") and hasattr(value, "append") else [value]
    return " ".join("\\".join(map(str, words)).replace("\0", " ").split())
