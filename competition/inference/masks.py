"""Convert the probabilities of a case to the masks of its classes.

This module does not import torch. The import would take seconds, and processes that only score stored predictions do
not need torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from competition import large_arrays
from competition.config.competition import Competition


def to_masks(probabilities: np.ndarray, comp: Competition, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Convert probabilities to the masks of the classes.

    With exclusive classes, each voxel gets its most probable class. If several classes are equally probable, the voxel
    gets the first of them, in the order background, then `comp.classes`. With overlapping classes, the mask of a class
    contains the voxels whose probability is above the threshold of this class.

    Args:
        probabilities: (P, *spatial) float, with P = `comp.output_channels`. With exclusive classes, a boundary class
            may follow as one more channel; it is merged into the classes by `merge_boundary_class`.
        comp: the competition; `labels` and `classes` are read.
        thresholds: one threshold per class, used only for overlapping classes; None means 0.5 for all classes.

    Returns:
        (K, *spatial) bool for K classes.
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
    """Distribute the probability of the boundary class over the classes, in proportion to their probabilities.

    Where all classes have the probability 0, each class gets an equal part. Probabilities without a boundary class are
    only converted to float32.

    Args:
        probabilities: (P, *spatial) float, with P = `comp.output_channels`. The boundary class, if there is one,
            follows as the last channel.
        comp: the competition; `labels` and `classes` are read.

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


def class_probabilities(probabilities: np.ndarray, comp: Competition) -> np.ndarray:
    """Return only the probabilities of the K classes, (K, *spatial), without the background.

    A boundary class is merged into the classes, see `merge_boundary_class`.

    Args:
        probabilities: (P, *spatial), with P = `comp.output_channels`; or (P + 1, *spatial), if a boundary class is the
            last channel.
        comp: the competition.
    """
    merged = merge_boundary_class(probabilities, comp) if len(probabilities) > comp.output_channels else probabilities
    return merged[len(merged) - len(comp.classes) :]


def _check_channels(probabilities: np.ndarray, comp: Competition) -> None:
    maximum = comp.output_channels + (comp.labels == "exclusive" and comp.instances)
    if not comp.output_channels <= len(probabilities) <= maximum:
        raise ValueError(f"channels of probabilities: found {len(probabilities)}, expected {comp.output_channels}")
