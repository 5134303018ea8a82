"""Find suspect objects in one slice: objects that are missing, extra, shifted, or of another class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.review.findings import EXTRA, MISSING, SHIFTED, WRONG_CLASS
from competition.review.voxels import Labels

# Evidence is a number per pixel: the probability of the suggested label, minus the probability of the given label
# (see `Rule.suspects`).
MIN_SHARE = 0.3  # minimum evidence per pixel of an object
MIN_SHIFTED_SHARE = 0.12  # minimum evidence per pixel of a shifted object, which still overlaps its prediction
MIN_ALIGNED_IOU = 0.6  # minimum IoU after the shift
MIN_IOU_GAIN = 0.25  # minimum gain of the IoU by the shift


@dataclass(frozen=True)
class SliceFinding:
    """Hold a possible fault of an object's label in one slice.

    Attributes:
        kind: kind of the finding.
        label: label of the object in the truth or, if the truth lacks the object, in the prediction.
        suggested: label that the network suggests.
        object: number of the object among the connected components of its label, from 1.
        centre: (row, column) of the object's centre.
        area: number of pixels of the object. For a shifted object, number of pixels of the union of its true and its
            predicted object.
        pixels: number of suspect pixels.
        evidence: sum of the evidence over the suspect pixels; see `competition.review.voxels.Rule.suspects`.
        move: translation of a shifted object (rows, columns).
    """

    kind: str
    label: int
    suggested: int
    object: int
    centre: tuple[int, int]
    area: int
    pixels: int
    evidence: float
    move: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Objects:
    """Hold the connected components (objects) of all labels of a slice.

    The evidence in an object is summed separately for each label of a second label image (the argument `by` of `find`).

    Attributes:
        components: (H, W) number of the component at each pixel, from 1 to N; 0 for background.
        labels: (N + 1,) label of each component. In this and the following arrays, index 0 is the background.
        numbers: (N + 1,) number of each component among the components of its label, from 1.
        sizes: (N + 1,) number of pixels of each component.
        evidence: (N + 1, labels) sum of the evidence, by component and by label of the second label image.
        pixels: (N + 1, labels) number of suspect pixels, by component and by label of the second label image.
    """

    components: NDArray[Any]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    evidence: NDArray[np.float64]
    pixels: NDArray[np.int64]

    @classmethod
    def find(
        cls,
        labels: Labels,
        by: NDArray[np.int64],
        suspect: NDArray[np.bool_],
        evidence: NDArray[np.floating[Any]],
        count: int,
    ) -> _Objects:
        """Find the connected components of a label image, and sum the evidence of the suspect pixels in each component.

        Args:
            labels: (H, W) label image whose components are found.
            by: (H, W) second label image; the sums are computed separately for each of its labels.
            suspect: (H, W) whether the label of a pixel is suspect.
            evidence: (H, W) evidence of each pixel.
            count: number of labels, including the background.
        """
        import cc3d

        components = cc3d.connected_components(np.ascontiguousarray(labels), connectivity=8)
        flat, total = components.ravel().astype(np.int64), int(components.max()) + 1
        own = np.zeros(total, np.int64)
        own[flat] = labels.ravel()
        numbers = np.zeros(total, np.int64)
        for label in range(1, count):
            where = np.flatnonzero(own == label)
            numbers[where] = np.arange(1, len(where) + 1)
        chosen = suspect.ravel()
        keys = flat[chosen] * count + by.ravel()[chosen]
        shape = (total, count)
        return cls(
            components,
            own,
            numbers,
            np.bincount(flat, minlength=total),
            np.asarray(
                np.bincount(keys, weights=evidence.ravel()[chosen], minlength=total * count), np.float64
            ).reshape(shape),
            np.bincount(keys, minlength=total * count).reshape(shape),
        )

    def share(self, index: int) -> float:
        """Return the evidence per pixel of the object number `index`."""
        return float(self.evidence[index].sum() / self.sizes[index])

    def finding(self, kind: str, index: int, suggested: int, **changes: Any) -> SliceFinding:
        """Return a finding about the object number `index`; `changes` replace attributes of the finding."""
        rows, columns = np.nonzero(self.components == index)
        found = SliceFinding(
            kind,
            int(self.labels[index]),
            suggested,
            int(self.numbers[index]),
            (int(rows.mean()), int(columns.mean())),
            int(self.sizes[index]),
            int(self.pixels[index].sum()),
            float(self.evidence[index].sum()),
        )
        return replace(found, **changes)


def find_in_slice(
    truth: Labels, predicted: Labels, suggested: Labels, evidence: NDArray[np.floating[Any]], count: int
) -> list[SliceFinding]:
    """Return the findings about suspect objects of a slice.

    Args:
        truth: (H, W) true label of each pixel; 0 if the pixel is ignored.
        predicted: (H, W) predicted label of each pixel; 0 if the pixel is ignored.
        suggested: (H, W) suggested label of each suspect pixel, plus 1; 0 for other pixels. See `Rule.suspects`.
        evidence: (H, W) evidence of each pixel, see `Rule.suspects`.
        count: number of labels, including the background.
    """
    suspect = suggested > 0
    if not suspect.any():
        return []
    by_suggestion = np.maximum(suggested.astype(np.int64) - 1, 0)
    true = _Objects.find(truth, by_suggestion, suspect, evidence, count)
    # A suspect pixel is evidence for a predicted object if the object's label is the suggested one.
    agrees = suspect & (by_suggestion == predicted)
    seen = _Objects.find(predicted, truth.astype(np.int64), agrees, evidence, count)
    shifted, used_true, used_seen = _find_shifted(true, seen)
    findings = shifted
    contradicted = set()
    for index in range(1, len(true.sizes)):
        if index in used_true or true.share(index) < MIN_SHARE:
            continue
        best = int(true.evidence[index].argmax())
        findings.append(true.finding(WRONG_CLASS if best else EXTRA, index, best))
        contradicted.add(index)
    for index in range(1, len(seen.sizes)):
        if index in used_seen or seen.share(index) < MIN_SHARE:
            continue
        below = np.unique(true.components[seen.components == index])
        if contradicted & set(below.tolist()):
            continue  # the finding about the true object already covers it
        label = int(seen.evidence[index].argmax())
        own = int(seen.labels[index])
        if label == 0:
            findings.append(seen.finding(MISSING, index, own))
        else:
            # The finding is about the object of the truth that covers most of the predicted object.
            under = true.components[(seen.components == index) & (truth == label)]
            number = int(true.numbers[np.bincount(under).argmax()])
            findings.append(seen.finding(WRONG_CLASS, index, own, label=label, object=number))
    return findings


def _find_shifted(true: _Objects, seen: _Objects) -> tuple[list[SliceFinding], set[int], set[int]]:
    """Return the findings about shifted objects, and the numbers of the true and of the predicted objects in them."""
    findings: list[SliceFinding] = []
    used_true: set[int] = set()
    used_seen: set[int] = set()
    for index in range(1, len(true.sizes)):
        if true.share(index) < MIN_SHIFTED_SHARE:
            continue
        points = np.argwhere(true.components == index)
        for other in range(1, len(seen.sizes)):
            if (
                other in used_seen
                or seen.labels[other] != true.labels[index]
                or seen.share(other) < MIN_SHIFTED_SHARE
                or not 0.5 < true.sizes[index] / seen.sizes[other] < 2
            ):
                continue
            targets = np.argwhere(seen.components == other)
            move = np.rint(targets.mean(axis=0) - points.mean(axis=0)).astype(int)
            if np.hypot(*move) > 1.5 * np.sqrt(true.sizes[index]):
                continue
            before, after = (_iou(points, by, seen.components == other) for by in (np.zeros(2, int), move))
            if after < MIN_ALIGNED_IOU or after - before < MIN_IOU_GAIN:
                continue
            area = true.sizes[index] + seen.sizes[other]
            findings.append(
                true.finding(
                    SHIFTED,
                    index,
                    int(true.labels[index]),
                    area=round(float(area) / (1 + before)),  # number of pixels of the union
                    pixels=int(true.pixels[index].sum() + seen.pixels[other].sum()),
                    evidence=float(true.evidence[index].sum() + seen.evidence[other].sum()),
                    move=tuple(move.tolist()),
                )
            )
            used_true.add(index)
            used_seen.add(other)
            break
    return findings, used_true, used_seen


def _iou(points: NDArray[np.int64], move: NDArray[np.int64], mask: NDArray[np.bool_]) -> float:
    """Return the IoU of a mask and a set of points (N, 2), after the points are moved by `move`."""
    moved = points + move
    inside = ((moved >= 0) & (moved < mask.shape)).all(axis=1)
    hits = int(mask[tuple(moved[inside].T)].sum())
    return hits / (len(points) + int(mask.sum()) - hits)
