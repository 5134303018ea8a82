"""Compute metrics of topology and of partitions: clDice, error of the Betti numbers, variation of information."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.metric import metric
from competition.metrics.distances import crop_to_masks
from competition.metrics.instances import Labels, connected_components

Mask = NDArray[np.bool_]


@metric("cl_dice", higher_is_better=True)
def cl_dice(mask: Mask, truth: Mask) -> float:
    """Return clDice, a Dice for tubes and vessels, from the share of each mask's skeleton inside the other mask.

    The definition is from Shit et al. 2021, https://arxiv.org/abs/2003.07311. The package scikit-image computes the
    skeletons. If the skeleton of a mask is empty, as for some boxes, the mask itself replaces the skeleton.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.

    Returns:
        A score from 0 to 1. If only one mask is empty, the result is 0. If both masks are empty, the result is nan.
    """
    if not mask.any() or not truth.any():
        return float("nan") if mask.any() == truth.any() else 0.0
    mask, truth = crop_to_masks(mask, truth)
    skeletons = _skeleton(mask), _skeleton(truth)
    precision, sensitivity = (
        np.count_nonzero(skeleton & other) / np.count_nonzero(skeleton)
        for skeleton, other in zip(skeletons, (truth, mask), strict=True)
    )
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


@metric("betti_error", higher_is_better=False)
def betti_error(mask: Mask, truth: Mask) -> float:
    """Return the sum of the absolute differences between the Betti numbers of mask and truth; see `betti_numbers`.

    Clough et al. 2020 (https://arxiv.org/abs/1910.01877) and others compute the differences in patches. This function
    computes them over the whole case.

    Args:
        mask: (*spatial) bool, 2D or 3D.
        truth: bool of the same shape.

    Returns:
        A whole number of at least 0. An empty mask has no components, holes or cavities.
    """
    return float(sum(abs(own - true) for own, true in zip(betti_numbers(mask), betti_numbers(truth), strict=True)))


def betti_numbers(mask: Mask) -> tuple[int, ...]:
    """Count the components and holes (2D), or the components, tunnels and cavities (3D) of a mask.

    Foreground is connected by sides, edges and corners, and background by sides. Pixels outside of the image are
    background.

    Args:
        mask: (*spatial) bool, 2D or 3D.
    """
    import cc3d
    from skimage.measure import euler_number

    if not mask.any():
        return (0,) * mask.ndim
    padded = np.pad(crop_to_masks(mask, mask)[0], 1)
    components = int(connected_components(padded).max())
    background = cc3d.connected_components(
        np.ascontiguousarray(~padded).view(np.uint8), connectivity=4 if mask.ndim == 2 else 6
    )
    enclosed = int(background.max()) - 1
    if mask.ndim == 2:
        return components, enclosed
    euler = int(euler_number(padded, connectivity=3))
    return components, components + enclosed - euler, enclosed


@metric("voi", higher_is_better=False)
def variation_of_information(predicted_objects: Labels, true_objects: Labels, background: bool = True) -> float:
    """Return the variation of information of two partitions into objects, in bits; 0 means equal partitions.

    The definition is from Meilă 2003. The package scikit-image returns two conditional entropies, which rise if
    objects are split or merged. This function returns their sum.

    Args:
        predicted_objects: integers of any shape, 0 for background, one label per object.
        true_objects: the true objects, in the same form.
        background: whether the background is a part of both partitions, as in scikit-image. If False, pixels outside
            of all predicted and all true objects are left out. In each partition, the remaining pixels without an
            object form one part.
    """
    from skimage.metrics import variation_of_information as conditional_entropies

    if not background:
        either = (predicted_objects != 0) | (true_objects != 0)
        predicted_objects, true_objects = predicted_objects[either], true_objects[either]
    if not predicted_objects.size:
        return 0.0
    _, predicted = np.unique(predicted_objects, return_inverse=True)  # object numbers may be large
    _, true = np.unique(true_objects, return_inverse=True)
    return max(0.0, float(np.sum(conditional_entropies(true.ravel(), predicted.ravel()))))


@metric("voi_score", higher_is_better=True)
def voi_score(predicted_objects: Labels, true_objects: Labels, alpha: float = 0.3, background: bool = False) -> float:
    """Return 1 / (1 + alpha × variation of information), which can be combined with other scores from 0 to 1.

    Args:
        predicted_objects: integers of any shape, 0 for background, one label per object.
        true_objects: the true objects, in the same form.
        alpha: factor of the variation of information.
        background: whether the background is a part of both partitions; see `variation_of_information`.

    Returns:
        A score from 0 to 1; 1 means equal partitions. The score is 0 only if exactly one of the two arrays contains
        objects.
    """
    if predicted_objects.any() != true_objects.any():
        return 0.0
    return 1 / (1 + alpha * variation_of_information(predicted_objects, true_objects, background))


def _skeleton(mask: Mask) -> NDArray[Any]:
    from skimage.morphology import skeletonize

    skeleton = np.asarray(skeletonize(mask), np.bool_)
    return skeleton if skeleton.any() else mask
