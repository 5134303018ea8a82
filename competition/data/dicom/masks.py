"""Masks of the images of a folder: from DICOM-SEG files, and from series that hold labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from competition.data.dicom.grid import Grid, onto
from competition.data.dicom.numbering import MOST, Numbering
from competition.data.dicom.pairing import Image, Pairing
from competition.data.dicom.pixels import Pixels
from competition.data.dicom.refused import Refused, refusing
from competition.data.dicom.segmentation import Canvas, Segmentation, misfit, paint, read_segmentation
from competition.data.dicom.series import Series
from competition.data.dicom.stack import Stack, stack, without_copies
from competition.data.dicom.volume import load


@dataclass(eq=False)
class Mask:
    """A mask on its image's grid.

    Attributes:
        array: (X, Y, Z) uint8.
        series: what it was made from.
    """

    image: Image
    array: np.ndarray
    series: list[str]
    notes: list[str] = field(default_factory=list)


class Masks:
    """Collects what labels a folder's images; one bad file never stops the others.

    Attributes:
        refused: SeriesInstanceUID → the reasons.
        ignored: SeriesInstanceUID → files left out.
    """

    def __init__(self, pairing: Pairing, numbering: Numbering) -> None:
        self._pairing = pairing
        self._numbering = numbering
        self._segmentations: dict[str, list[tuple[Image, Segmentation]]] = {}
        self._labels: dict[str, list[tuple[Image, Stack]]] = {}
        self.refused: dict[str, list[str]] = {}
        self.ignored: dict[str, list[str]] = {}

    def add_segmentations(self, series: list[Series]) -> None:
        """Reads the headers of all DICOM-SEG files, numbers their labels, and finds their images."""
        read: list[Segmentation] = []
        for one in series:
            for instance in without_copies(one.instances, self.ignored.setdefault(one.uid, [])):
                try:
                    read.append(read_segmentation(instance))
                except Refused as error:
                    self.refuse([one.uid], str(error))
        # Also of those that are refused below, so that curing a fault does not number the labels anew.
        self._numbering.add((number, label) for one in read for number, label in one.labels.items())
        for part in read:
            try:
                image = self._pairing.image_of(part.instance, partial(misfit, part), strict=True)
            except Refused as error:
                self.refuse([part.instance.series], str(error))
            else:
                self._segmentations.setdefault(image.id, []).append((image, part))

    def add_label_series(self, series: list[Series], pixels: Pixels) -> None:
        """Finds the images of the series that hold labels."""
        for one in series:
            try:
                slices = stack(one, pixels)
                image = self._pairing.image_of(one.first, partial(_stack_misfit, slices), strict=False)
            except Refused as error:
                self.refuse([one.uid], str(error))
            else:
                self.ignored[one.uid] = slices.ignored
                self._labels.setdefault(image.id, []).append((image, slices))

    def make(self, case: str, pixels: Pixels) -> Mask | None:
        """Makes the mask of an image; None where nothing labels it, or what does was refused."""
        mask = None
        if case in self._segmentations:
            mask = self._guarded([one.instance.series for _, one in self._segmentations[case]], partial(self._painted, case))
        labels = self._labels.get(case, [])
        uids = [slices.series.uid for _, slices in labels]
        if mask is not None:
            self.refuse(uids, f"{case} has a mask from a DICOM-SEG already")
        elif len(labels) > 1:
            self.refuse(uids, f"{len(labels)} label series fit {case}; narrow --labels")
        elif labels:
            mask = self._guarded(uids, partial(self._labelled, case, pixels))
        return mask

    def _guarded(self, uids: list[str], make: Callable[[], Mask]) -> Mask | None:
        try:
            with refusing("its labels cannot be read"):
                return make()
        except Refused as error:
            self.refuse(uids, str(error))
            return None

    def _painted(self, case: str) -> Mask:
        parts = self._segmentations[case]
        image = parts[0][0]
        files = {label: {one.instance.name for _, one in parts if label in _values(one, self._numbering)}
                 for _, part in parts for label in _values(part, self._numbering)}
        for value, names in sorted(files.items()):
            if len(names) > 1:
                raise Refused(f"{len(names)} segmentations of {case} hold the label `{self._numbering.labels[value]}` "
                              f"({', '.join(sorted(names))}); keep one of them")
        canvas, notes = Canvas(image.stack.grid), []
        for _, one in parts:
            values = {number: self._numbering.value(label) for number, label in one.labels.items()}
            merged = [self._numbering.labels[value] for value, count in Counter(values.values()).items() if count > 1]
            notes += [f"several segments are called `{label}` and became one" for label in merged]
            paint(one, canvas, values)
        if canvas.shared:
            notes.append(f"{canvas.shared:,} voxels are claimed by more than one segment: the larger fraction, then the "
                         "higher value is kept")
        return _mask(image, canvas.mask, [one.instance.series for _, one in parts], notes)

    def _labelled(self, case: str, pixels: Pixels) -> Mask:
        image, slices = self._labels[case][0]
        values = load(slices, pixels)
        lowest, highest = float(values.min()), float(values.max())
        if lowest < 0 or highest > MOST or not np.array_equal(values, np.rint(values)):
            raise Refused(f"its values are no labels: they run from {lowest:g} to {highest:g}, and labels are whole numbers "
                          f"from 0 to {MOST}")
        labels = values.astype(np.uint8)
        points = np.argwhere(labels)
        voxels = onto(image.stack.grid, slices.grid.affine, points, slices.grid.shape)
        array = np.zeros(image.stack.grid.shape, np.uint8)
        array[tuple(voxels.T)] = labels[tuple(points.T)]
        present = [int(value) for value in np.unique(labels) if value]
        self._numbering.keep(present)
        notes = [f"its values are {', '.join(map(str, present[:8]))}"] if present and present[-1] > len(present) else []
        return _mask(image, array, [slices.series.uid], notes + slices.notes)

    def refuse(self, uids: list[str], reason: str) -> None:
        """Notes why series are not, or not all, in a mask."""
        for uid in uids:
            reasons = self.refused.setdefault(uid, [])
            if reason not in reasons:
                reasons.append(reason)


def _values(one: Segmentation, numbering: Numbering) -> set[int]:
    return {numbering.value(label) for label in one.labels.values()}


def _mask(image: Image, array: np.ndarray, series: list[str], notes: list[str]) -> Mask:
    if not array.any():
        notes = [*notes, "an empty mask"]
    return Mask(image, array, list(dict.fromkeys(series)), notes)


def _stack_misfit(slices: Stack, grid: Grid) -> str:
    """Why a label series is not on a grid; empty where it is."""
    try:
        onto(grid, slices.grid.affine, np.empty((0, 3), np.int64), slices.grid.shape)
    except Refused as error:
        return f"{error} ({slices.grid}; the image has {grid})"
    return ""
