"""Measure the confidence of a prediction, and make a pseudo-label mask in which uncertain voxels are ignored."""

from __future__ import annotations

import numpy as np

from competition.config.competition import Competition
from competition.config.experiment import ConfidenceConfig
from competition.inference.masks import to_masks
from competition.models.targets import IGNORE_INDEX


def pseudo_mask(probabilities: np.ndarray, comp: Competition, rule: ConfidenceConfig) -> np.ndarray:
    """Return the pseudo-label mask of a prediction, in which uncertain voxels have the value 255.

    With exclusive classes, a voxel is certain if the probability of one class (or of the background) is at least
    `rule.upper`, and all its other probabilities are at most `rule.lower`. With overlapping classes, each class is
    decided separately: a voxel is certain if the probability of the class is at most `rule.lower` or at least
    `rule.upper`.

    Args:
        probabilities: (`comp.output_channels`, *spatial) float, without a boundary class (see `merge_boundary_class`).
        comp: the competition; `labels` and `classes` are read.
        rule: section `pseudo.confidence` of the experiment.

    Returns:
        (M, *spatial) uint8. M is 1 for exclusive classes (label values, 0 is the background), and the number of classes
        for overlapping classes (0 or 1 for each class). `competition.data.masks.load_mask` returns the same form.
    """
    if comp.labels == "overlapping":
        certain = (probabilities <= rule.lower) | (probabilities >= rule.upper)
        return np.where(certain, probabilities >= max(rule.upper, 1e-6), IGNORE_INDEX).astype(np.uint8)
    labels = probabilities.argmax(axis=0)
    highest, second = np.sort(probabilities, axis=0)[-1:-3:-1]
    return np.where((highest >= rule.upper) & (second <= rule.lower), labels, IGNORE_INDEX).astype(np.uint8)[None]


def self_dice(probabilities: np.ndarray, comp: Competition) -> float:
    """Return the soft Dice between a prediction's probabilities p and its own mask m: 2·Σpm / (Σp + Σm).

    The result is the mean over the classes that the mask contains. If the mask is empty, the result is 1 minus the
    largest foreground probability, because an empty prediction is confident if all foreground probabilities are low.

    Args:
        probabilities: (`comp.output_channels`, *spatial) float.
        comp: the competition; `labels` and `classes` are read.
    """
    masks, planes = to_masks(probabilities, comp), probabilities[-len(comp.classes) :].astype(np.float64)
    scores = [
        2 * plane[mask].sum() / (plane.sum() + mask.sum())
        for plane, mask in zip(planes, masks, strict=True)
        if mask.any()
    ]
    return float(np.mean(scores)) if scores else float(1 - planes.max())


def foreground_entropy(probabilities: np.ndarray, comp: Competition) -> float:
    """Return the mean entropy of the predicted foreground, from 0 (certain) to 1 (all outcomes equally probable).

    For exclusive classes, the entropy of a voxel is computed from its probabilities of the background and all classes.
    For overlapping classes, each voxel has one binary entropy per class. If the prediction has no foreground, the
    result is the largest entropy of any voxel.

    Args:
        probabilities: (`comp.output_channels`, *spatial) float.
        comp: the competition; `labels` and `classes` are read.
    """
    masks, p = to_masks(probabilities, comp), np.clip(probabilities.astype(np.float64), 0.0, 1.0)
    if comp.labels == "overlapping":
        entropy, foreground = _bits(p) + _bits(1 - p), masks
    else:
        entropy, foreground = _bits(p).sum(axis=0) / np.log2(len(p)), np.asarray(masks.any(axis=0))
    return float(entropy[foreground].mean()) if foreground.any() else float(entropy.max())


def _bits(p: np.ndarray) -> np.ndarray:
    """Return -p·log2(p), with 0 where p is 0."""
    return -p * np.log2(p, out=np.zeros_like(p), where=p > 0)
