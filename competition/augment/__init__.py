"""Augment training data: 2D images one by one in the data loader, volumes as batches on the training device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from competition.augment.presets import explicit_flips, preset_flips
from competition.config.experiment import AugmentConfig, Experiment
from competition.context import Context

if TYPE_CHECKING:
    import numpy as np

    from competition.augment.volumes import VolumeAugment


def build_loader_transform(
    exp: Experiment, context: Context = Context()
) -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None:
    """Build the augmentation for the data loader (`augment` of `PatchDataset`); None if the loader must not augment.

    The loader augments 2D images with albumentations, and volumes only with an explicit list of MONAI's transforms.

    Raises:
        MaskfoldError: status 2; `augment` is invalid.
    """
    if exp.augment.preset == "none" and not exp.augment.transforms:
        return None
    if exp.competition.dimensions == 2:
        from competition.augment.images import ImageAugment

        return ImageAugment(exp.augment, context)
    if exp.augment.transforms:
        from competition.augment.custom import MonaiTransforms

        return MonaiTransforms(exp.augment, context)
    return None


def build_batch_transform(exp: Experiment) -> VolumeAugment | None:
    """Build the augmentation of batches on the training device; None except for a preset for volumes.

    Raises:
        MaskfoldError: status 2; `augment` is invalid.
    """
    if exp.competition.dimensions == 2 or exp.augment.transforms or exp.augment.preset == "none":
        return None
    from competition.augment.volumes import VolumeAugment

    dims, spacing = exp.network_dimensions, exp.prepare.spacing
    probabilities = exp.first_stage_channels * (exp.patch.slices or 1)
    return VolumeAugment(exp.augment, dims, spacing[:dims] if spacing else None, probabilities)


def flip_axes(augment: AugmentConfig, dims: int) -> tuple[int, ...]:
    """Return the spatial axes that training flips independently of each other.

    `inference.tta: auto` flips the same axes.

    Args:
        augment: section `augment` of the experiment.
        dims: number of spatial axes of a patch.
    """
    return explicit_flips(augment, dims) if augment.transforms else preset_flips(augment, dims)
