"""How sure a prediction is, and the mask that it teaches: voxels in doubt are ignored."""

from __future__ import annotations

import numpy as np

from competition.config.competition import Competition
from competition.config.pseudo import Confidence
from competition.inference.masks import to_masks

IGNORED = 255


def pseudo_mask(probabilities: np.ndarray, comp: Competition, rule: Confidence) -> np.ndarray:
    """The mask to learn from.

    Exclusive classes: a voxel is sure if its most probable class (or the background) reaches `rule.upper` and all others
    are at or below `rule.lower`. Overlapping classes: each class by itself is sure at or below `rule.lower` and at or
    above `rule.upper`.

    Args:
        probabilities: (`comp.outputs`, *spatial) float; see `competition.inference.masks.merged`.
        comp: read are `labels` and `classes`.
        rule: the experiment's `pseudo.confidence`.

    Returns:
        (M, *spatial) uint8 as `competition.data.masks.load_mask` gives it; 255 where the prediction is in doubt.
    """
    if comp.labels == "overlapping":
        sure = (probabilities <= rule.lower) | (probabilities >= rule.upper)
        return np.where(sure, probabilities >= max(rule.upper, 1e-6), IGNORED).astype(np.uint8)
    best = probabilities.argmax(axis=0)
    first, second = np.sort(probabilities, axis=0)[-1:-3:-1]
    return np.where((first >= rule.upper) & (second <= rule.lower), best, IGNORED).astype(np.uint8)[None]


def self_dice(probabilities: np.ndarray, comp: Competition) -> float:
    """The Dice that a prediction expects of itself: its probabilities p against its own mask m, 2·Σpm / (Σp + Σm).

    The mean over the classes that the mask has. Where it has none, 1 less the largest probability of any class: an image
    without foreground is sure where nothing comes near to being any.

    Args:
        probabilities: (`comp.outputs`, *spatial) float.
        comp: read are `labels` and `classes`.
    """
    masks, planes = to_masks(probabilities, comp), probabilities[-len(comp.classes) :].astype(np.float64)
    found = [
        2 * plane[mask].sum() / (plane.sum() + mask.sum())
        for plane, mask in zip(planes, masks, strict=True)
        if mask.any()
    ]
    return float(np.mean(found)) if found else float(1 - planes.max())


def foreground_entropy(probabilities: np.ndarray, comp: Competition) -> float:
    """Mean entropy of the predicted foreground, 0 (certain) to 1 (all outcomes equally probable).

    Of exclusive classes the entropy of a voxel's distribution over background and classes; of overlapping ones the mean
    over (class, voxel) pairs of the entropy of yes and no. Without foreground the largest of any voxel.

    Args:
        probabilities: (`comp.outputs`, *spatial) float.
        comp: read are `labels` and `classes`.
    """
    masks, p = to_masks(probabilities, comp), np.clip(probabilities.astype(np.float64), 0.0, 1.0)
    if comp.labels == "overlapping":
        entropy, there = _bits(p) + _bits(1 - p), masks
    else:
        entropy, there = _bits(p).sum(axis=0) / np.log2(len(p)), np.asarray(masks.any(axis=0))
    return float(entropy[there].mean()) if there.any() else float(entropy.max())


def _bits(p: np.ndarray) -> np.ndarray:
    """-p·log2(p), 0 where p is 0."""
    return -p * np.log2(p, out=np.zeros_like(p), where=p > 0)
