"""Find suspect voxels by confident learning, with a threshold and a calibration for each class.

In confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), the threshold of a class is its mean
probability over the voxels that are labelled as this class. At each voxel, the most probable of the classes that reach
their thresholds is compared with the label. The label is suspect if that class differs from it, and the calibrated
probability of that class is higher than the calibrated probability of the label. All probabilities are out of fold.
Thresholds and calibration for the cases of a fold come from the other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.masks import IGNORED
from competition.inference.masks import merge_boundary_class

STEPS = 60  # steps of the histograms of probabilities
VOXELS_PER_CHUNK = 2**21
Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
ReadRows = Callable[[slice], NDArray[np.float32]]


@dataclass
class ClassCounts:
    """Count voxels by the probability of one class.

    Attributes:
        voxels: (61,) numbers of voxels. Index 0 counts probabilities of 0. Index k counts probabilities above (k -
            1)/60 and up to k/60.
        labelled: (61,) number of these voxels whose label is the class.
        confidence: sum of the probabilities over the voxels whose label is the class.
    """

    voxels: Floats = field(default_factory=lambda: np.zeros(STEPS + 1))
    labelled: Floats = field(default_factory=lambda: np.zeros(STEPS + 1))
    confidence: float = 0.0

    def add(self, probability: NDArray[np.float32], has_label: NDArray[np.bool_]) -> None:
        """Add voxels to the counts.

        Args:
            probability: (N,) probability of the class.
            has_label: (N,) whether the label of the voxel is the class.
        """
        codes = _codes(probability)
        self.voxels += np.bincount(codes, minlength=STEPS + 1)
        self.labelled += np.bincount(codes[has_label], minlength=STEPS + 1)
        self.confidence += float(probability[has_label].sum(dtype=np.float64))

    @classmethod
    def total(cls, counts: Iterable[ClassCounts]) -> ClassCounts:
        """Return the sum of several counts."""
        result = cls()
        for each in counts:
            result.voxels = result.voxels + each.voxels
            result.labelled = result.labelled + each.labelled
            result.confidence += each.confidence
        return result

    @property
    def threshold(self) -> float:
        """The mean probability of the class over the voxels with its label; 1 if no voxel has the label."""
        total = float(self.labelled.sum())
        return self.confidence / total if total else 1.0

    def calibration(self) -> NDArray[np.float32]:
        """Return the calibrated probability of the class at each of 61 steps of the predicted probability.

        This is the share of voxels with the label, made non-decreasing by isotonic regression: (61,) float32.
        """
        from scipy.optimize import isotonic_regression

        filled = np.flatnonzero(self.voxels)
        if not filled.size:
            return np.linspace(0, 1, STEPS + 1, dtype=np.float32)
        shares = self.labelled[filled] / self.voxels[filled]
        fitted = isotonic_regression(shares, weights=self.voxels[filled]).x
        return np.interp(np.arange(STEPS + 1), filled, fitted).astype(np.float32)


@dataclass(frozen=True)
class Rule:
    """Hold thresholds and calibration for one set of exclusive labels.

    Attributes:
        thresholds: threshold of each label, background first.
        shares: calibrated probability of each label at each step of the predicted probability, (labels, 61).
    """

    thresholds: tuple[float, ...]
    shares: NDArray[np.float32]

    @classmethod
    def fit(cls, counts: list[ClassCounts]) -> Rule:
        """Compute thresholds and calibration from the counts of each label."""
        return cls(tuple(each.threshold for each in counts), np.stack([each.calibration() for each in counts]))

    def suspects(self, read: ReadRows, labels: Labels) -> tuple[Labels, Labels, NDArray[np.float16]]:
        """Find the voxels whose label is suspect.

        Args:
            read: function that takes a slice of the first spatial axis, and returns the probabilities (labels, rows,
                …) float32 of these rows.
            labels: (*spatial) uint8; 255 is ignored.

        Returns:
            Three arrays (*spatial). The predicted label, uint8 (0 where ignored). The suggested label plus 1, uint8 (0
            where the label is not suspect). The evidence, float16: the calibrated probability of the suggested label
            minus the calibrated probability of the given label (0 where the label is not suspect).
        """
        predicted = np.zeros(labels.shape, np.uint8)
        suggested = np.zeros(labels.shape, np.uint8)
        evidence = np.zeros(labels.shape, np.float16)
        rows = max(1, VOXELS_PER_CHUNK // max(1, int(np.prod(labels.shape[1:]))))
        thresholds = np.array(self.thresholds, np.float32).reshape(-1, *[1] * labels.ndim)
        for first in range(0, labels.shape[0], rows):
            part = slice(first, first + rows)
            given, values = labels[part], read(part)
            is_valid = given != IGNORED
            predicted[part] = np.argmax(values, axis=0) * is_valid
            confident = np.where(values >= thresholds, values, -1.0)
            best = np.argmax(confident, axis=0)
            is_suspect = is_valid & (best != given) & (confident.max(axis=0) >= 0)
            where = np.nonzero(is_suspect)
            new, old = best[where], given[where].astype(np.int64)
            shares_new = self.shares[new, _codes(values[(new, *where)])]
            shares_old = self.shares[old, _codes(values[(old, *where)])]
            gain = np.maximum(shares_new - shares_old, 0)
            evidence[part][where] = gain
            suggested[part][where] = np.where(gain > 0, new + 1, 0)
        return predicted, suggested, evidence


def label_problems(
    probabilities: np.ndarray, truth: np.ndarray, comp: Competition
) -> Iterator[tuple[tuple[str, ...], ReadRows, Labels]]:
    """Yield the label names, probabilities and labels of a case, once for each set of exclusive labels.

    If the classes exclude each other, there is one set: the background and all classes. Otherwise there is one set for
    each class: the background and this class.

    Args:
        probabilities: (P, *spatial) as the out-of-fold store has them.
        truth: (M, *spatial) uint8 from `competition.data.masks.load_mask`.
        comp: the competition.

    Yields:
        Three items: the names of the labels, background first; a function that returns the probabilities of some rows;
            and the labels (*spatial) uint8, where 255 is ignored. A whole case as float32 may need too much memory, so
            the function reads a part of it.
    """
    if comp.labels == "exclusive":
        yield (("background", *comp.classes), lambda part: merge_boundary_class(probabilities[:, part], comp), truth[0])
        return
    for index, name in enumerate(comp.classes):
        yield ("background", name), partial(_with_complement, probabilities[index]), truth[index]


def _with_complement(probability: np.ndarray, part: slice) -> NDArray[np.float32]:
    """Return the probabilities of the background and of one class in some rows, (2, rows, …)."""
    values = probability[part].astype(np.float32)
    return np.stack([1 - values, values])


def count_labels(read: ReadRows, labels: Labels, count: int) -> list[ClassCounts]:
    """Count the voxels of one case for each of `count` labels.

    Args:
        read: function that returns the probabilities of some rows, as for `Rule.suspects`.
        labels: (*spatial) uint8; 255 is ignored.
        count: number of labels, including the background.
    """
    counts = [ClassCounts() for _ in range(count)]
    rows = max(1, VOXELS_PER_CHUNK // max(1, int(np.prod(labels.shape[1:]))))
    for first in range(0, labels.shape[0], rows):
        part = slice(first, first + rows)
        given, values = labels[part], read(part)
        is_valid = given != IGNORED
        for index, each in enumerate(counts):
            each.add(values[index][is_valid], given[is_valid] == index)
    return counts


def _codes(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.clip(np.ceil(np.nan_to_num(probability) * np.float32(STEPS)), 0, STEPS).astype(np.int64)
