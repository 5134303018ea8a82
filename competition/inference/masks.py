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
        probabilities: (P, *spatial), P = `comp.outputs`.
        comp: read are `labels` and `classes`.
        thresholds: of each class, for overlapping classes; None: 0.5.

    Returns:
        (K, *spatial) bool.
    """
    classes = len(comp.classes)
    if len(probabilities) != comp.outputs:
        raise ValueError(f"{len(probabilities)} channels of probabilities for {comp.outputs} outputs")
    masks = np.empty((classes, *probabilities.shape[1:]), bool)
    if comp.labels == "overlapping":
        for index, threshold in enumerate(thresholds if thresholds is not None else [0.5] * classes):
            masks[index] = probabilities[index] > threshold
        return masks
    for plane in range(probabilities.shape[1]):  # plane by plane: np.argmax of a whole volume takes 8 bytes a voxel
        best = np.argmax(probabilities[:, plane].astype(np.float32), axis=0)
        for index in range(classes):
            masks[index, plane] = best == index + 1
    return masks
