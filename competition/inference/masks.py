"""Convert the probabilities of a case to the masks of its classes.

This module does not import torch, which takes seconds, because processes that score stored predictions need only these
functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from competition import large_arrays
from competition.config.competition import Competition


def to_masks(probabilities: np.ndarray, comp: Competition, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Convert probabilities to the masks of the classes.

    If classes are exclusive, each voxel gets its most probable class (in a tie the first; the background comes before
    all classes). If classes overlap, each mask contains the voxels above the threshold of its class.

    Args:
        probabilities: (P, *spatial), P = `comp.output_channels`, plus one with a boundary class, which is merged into
            the classes; see `merge_boundary_class`.
        comp: `labels` and `classes` are read.
        thresholds: one threshold per class, for overlapping classes; None: 0.5 for all classes.

    Returns:
        (K, *spatial) bool.
    """
    classes = len(comp.classes)
    _check_channels(probabilities, comp)
    masks = large_arrays.empty((classes, *probabilities.shape[1:]), bool)
    if comp.labels == "overlapping":
        for index, threshold in enumerate(thresholds if thresholds is not None else [0.5] * classes):
            np.greater(probabilities[index], threshold, out=masks[index])
        return masks
    # Slice by slice, because np.argmax of a whole volume takes 8 bytes per voxel.
    for plane in range(probabilities.shape[1]):
        labels = np.argmax(merge_boundary_class(probabilities[:, plane], comp), axis=0)
        for index in range(classes):
            masks[index, plane] = labels == index + 1
    return masks


def merge_boundary_class(probabilities: np.ndarray, comp: Competition) -> np.ndarray:
    """Add the probability of the boundary class to the classes, in proportion to the probabilities of the classes.

    Args:
        probabilities: (P, *spatial), P = `comp.output_channels`, plus one if the boundary class is present; it is last.
        comp: `labels` and `classes` are read.

    Returns:
        (`comp.output_channels`, *spatial) float32.
    """
    _check_channels(probabilities, comp)
    result = probabilities[: comp.output_channels].astype(np.float32)
    if len(probabilities) > comp.output_channels:
        boundary, foreground = probabilities[-1].astype(np.float32), result[1:].sum(axis=0)
        equal = np.float32(1 / len(comp.classes))
        for channel in result[1:]:
            share = np.divide(channel, foreground, out=np.full_like(channel, equal), where=foreground > 0)
            channel += boundary * share
    return result


def _check_channels(probabilities: np.ndarray, comp: Competition) -> None:
    maximum = comp.output_channels + (comp.labels == "exclusive" and comp.instances)
    if not comp.output_channels <= len(probabilities) <= maximum:
        raise ValueError(f"channels of probabilities: found {len(probabilities)}, expected {comp.output_channels}")
