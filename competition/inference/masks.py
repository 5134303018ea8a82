"""Probabilities to masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from competition.config.competition import Competition


def to_masks(probabilities: np.ndarray, comp: Competition, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Masks of the classes.

    Exclusive classes take each voxel's most probable one (the first of several; the background is before all).
    Overlapping classes take the voxels above the threshold of each.

    Args:
        probabilities: (P, *spatial), P = `comp.outputs`, or one more with the boundary class, which belongs to the
            objects: see `merged`.
        comp: read are `labels` and `classes`.
        thresholds: of each class, for overlapping classes; None: 0.5.

    Returns:
        (K, *spatial) bool.
    """
    classes = len(comp.classes)
    _check(probabilities, comp)
    masks = np.empty((classes, *probabilities.shape[1:]), bool)
    if comp.labels == "overlapping":
        for index, threshold in enumerate(thresholds if thresholds is not None else [0.5] * classes):
            masks[index] = probabilities[index] > threshold
        return masks
    for plane in range(probabilities.shape[1]):  # plane by plane: np.argmax of a whole volume takes 8 bytes a voxel
        best = np.argmax(merged(probabilities[:, plane], comp), axis=0)
        for index in range(classes):
            masks[index, plane] = best == index + 1
    return masks


def merged(probabilities: np.ndarray, comp: Competition) -> np.ndarray:
    """Probabilities of background and classes, the boundary's shared out among the classes in their proportion.

    Args:
        probabilities: (P, *spatial), P = `comp.outputs`, or one more with the boundary class last.
        comp: read are `labels` and `classes`.

    Returns:
        (`comp.outputs`, *spatial) float32.
    """
    _check(probabilities, comp)
    plain = probabilities[: comp.outputs].astype(np.float32)
    if len(probabilities) > comp.outputs:
        edge, objects = probabilities[-1].astype(np.float32), plain[1:].sum(axis=0)
        equal = np.float32(1 / len(comp.classes))
        for channel in plain[1:]:
            share = np.divide(channel, objects, out=np.full_like(channel, equal), where=objects > 0)
            channel += edge * share
    return plain


def _check(probabilities: np.ndarray, comp: Competition) -> None:
    most = comp.outputs + (comp.labels == "exclusive" and comp.instances)
    if not comp.outputs <= len(probabilities) <= most:
        raise ValueError(f"{len(probabilities)} channels of probabilities for {comp.outputs} outputs")
