"""Write 2D pictures without a position in the patient, such as X-rays, as PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from competition.dicom.headers import Frame, SeriesRejected, contains_private
from competition.dicom.scan import Instance, Series
from competition.dicom.volume import PixelReader, check_decoders
from competition.io import atomic_write, remove_stale_temp
from competition.text import fold_name, name_problem

MAX_UINT8, MAX_UINT16 = 255, 65535
MAX_STEM_BYTES = 128
INVERTED = "MONOCHROME1"  # photometric interpretation in which the lowest value is white


def name_pictures(series: Sequence[Series], ids: Mapping[str, str], taken: Set[str]) -> dict[tuple[str, str], str]:
    """Return the case id of each 2D picture.

    The id of a picture is the name of its file, because hosts' tables use this name. The file name is not used if it
    contains a private text, is not a valid id, or is also the name of another picture or the id of a series. The
    picture then gets the id of its series. If the series has several pictures, the SOPInstanceUID is appended.

    Args:
        series: all series of the kind picture.
        ids: id of each series by SeriesInstanceUID.
        taken: ids that other series got in earlier conversions.

    Returns:
        The id of each picture, by (SeriesInstanceUID, name of the file).
    """
    stems = {
        (item.uid, instance.name): _stem(instance, item.private_patterns)
        for item in series
        for instance in item.instances
    }
    uses = Counter(map(fold_name, [*stems.values(), *ids.values(), *taken]))
    names = {}
    for item in series:
        for instance in item.instances:
            stem, case_id = stems[item.uid, instance.name], ids[item.uid]
            several = f"{case_id}_{instance.instance_uid}" if len(item.instances) > 1 else case_id
            names[item.uid, instance.name] = stem if stem and uses[fold_name(stem)] == 1 else several
    return names


def _stem(instance: Instance, private_patterns: Iterable[str]) -> str:
    """Return the name of an instance's file without extension; an empty text if this name cannot be an id."""
    stem = instance.name.rpartition("/")[2]
    stem = stem[: -len(".dcm")] if stem.lower().endswith(".dcm") else stem.removesuffix(".dicom")
    is_valid = name_problem(stem) is None and len(stem.encode()) <= MAX_STEM_BYTES and not stem.startswith(".")
    return stem if is_valid and not contains_private(stem, private_patterns) else ""


def read_picture(instance: Instance, pixels: PixelReader) -> np.ndarray:
    """Read the pixels of a 2D DICOM image as uint8 or uint16, so that higher values are brighter.

    Args:
        instance: the picture's file, with the headers of its frames.
        pixels: reader that decodes the file.

    Returns:
        (rows, columns) uint8, or uint16 if a value is above 255.

    Raises:
        SeriesRejected: the file is damaged, cannot be decoded, or has values that are negative, fractions or too
            large.
    """
    if instance.fault or not instance.frame_headers:
        raise SeriesRejected(instance.fault or f"{instance.name} contains no image")
    check_decoders([instance])
    frame: Frame = instance.frame_headers[0]
    values = pixels.read(frame).astype(np.float64) * frame.slope + frame.intercept
    if instance.photometric == INVERTED:
        values = _bits_maximum(instance.path) * frame.slope + 2 * frame.intercept - values
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= MAX_UINT16) or (values != np.rint(values)).any():
        raise SeriesRejected(
            f"{instance.name} has values that cannot be stored in a PNG: found {low:g} to {high:g}, "
            f"expected whole numbers from 0 to {MAX_UINT16:,}"
        )
    return values.astype(np.uint8 if high <= MAX_UINT8 else np.uint16)


def write_picture(path: Path, array: np.ndarray) -> None:
    """Write (rows, columns) uint8 or uint16 as PNG, atomically."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temp(path.parent, path.name)
    content = cv2.imencode(".png", array)[1].tobytes()
    atomic_write(path, lambda file: file.write(content), len(content))


def _bits_maximum(path: Path) -> int:
    """Return the highest value that a file can store, by its attribute BitsStored."""
    import pydicom

    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["BitsStored"], force=True)
    return int(2 ** int(dataset.get("BitsStored") or 8) - 1)
