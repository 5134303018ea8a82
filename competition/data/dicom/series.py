"""Files to series, by SeriesInstanceUID, and what kind of thing each series is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from competition.data.dicom.scan import SEGMENTATIONS, Instance

SAME_DIRECTION = 1e-3  # largest difference of direction cosines within one series
CONTOURS = {"RTSTRUCT": "contours; export them as DICOM-SEG or as a label series"}


@dataclass(eq=False)
class Series:
    """The files of one SeriesInstanceUID.

    Attributes:
        instances: sorted by name, at least one.
        kind: image, label (an image series that holds labels), segmentation (DICOM-SEG) or other.
        reason: why it can be no volume at all, whatever is cured; empty for volumes, faulty ones too.
    """

    uid: str
    instances: list[Instance]
    kind: str
    reason: str

    @property
    def first(self) -> Instance:
        """The instance that speaks for the series: the first one with a whole header."""
        return next((one for one in self.instances if not one.fault), self.instances[0])

    @property
    def private(self) -> frozenset[str]:
        """See `private_words`."""
        return frozenset().union(*(one.private for one in self.instances))


def group(instances: list[Instance], labels: re.Pattern[str] | None) -> list[Series]:
    """Groups files whatever their folders say.

    Args:
        instances: of a scan.
        labels: a series whose description it is found in holds labels.

    Returns:
        Series, by patient, SeriesNumber and UID.
    """
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        found.setdefault(instance.series, []).append(instance)
    series = [_series(uid, found[uid], labels) for uid in sorted(found)]
    return sorted(series, key=lambda one: (one.first.patient, int("0" + re.sub(r"\D", "", one.first.series_number)), one.uid))


def _series(uid: str, instances: list[Instance], labels: re.Pattern[str] | None) -> Series:
    series = Series(uid, instances, "image", "")
    first = series.first
    if first.sop_class in SEGMENTATIONS:
        series.kind = "segmentation"
    elif not any(one.holds_pixels or one.fault for one in instances):
        series.kind = "other"
        series.reason = f"{first.modality or 'it'} holds {CONTOURS.get(first.modality, 'no images')}"
    elif labels is not None and labels.search(first.description):
        series.kind = "label"
    if series.kind in ("image", "label"):
        series.reason = _no_volume(series)
        if series.reason:
            series.kind = "other"
    return series


def _no_volume(series: Series) -> str:
    """Why its pictures are no slices of one volume; empty where they are."""
    for instance in series.instances:
        if "LOCALIZER" in instance.image_type:
            return f"a localiser ({instance.name})"
        if "MOSAIC" in instance.image_type:
            return f"mosaics: each picture holds a whole volume ({instance.name})"
        if instance.photometric and not instance.photometric.startswith("MONOCHROME"):
            return f"colours ({instance.photometric}), not intensities ({instance.name})"
    frames = [frame for instance in series.instances for frame in instance.frames]
    if frames and all(frame.position is None or frame.orientation is None for frame in frames):
        return "its pictures have no position in the patient"
    directions = different([frame.orientation for frame in frames if frame.orientation is not None])
    if directions > 1:
        return f"slices of {directions} orientations: a localiser, or planes cut from a volume"
    return ""


def different(orientations: list[np.ndarray]) -> int:
    """How many directions there are among direction cosines."""
    known: list[np.ndarray] = []
    for one in orientations:
        if not any(np.abs(one - other).max() <= SAME_DIRECTION for other in known):
            known.append(one)
        if len(known) > 99:  # a rotating view: enough is known
            break
    return len(known)


def counted(things: list[str]) -> str:
    """`20 of 512×512, 1 of 256×256`, the most frequent first."""
    return ", ".join(f"{count} of {thing}" for thing, count in Counter(things).most_common())
