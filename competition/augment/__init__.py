"""Augment training data: 2D images one by one in the data loader, volumes as batches on the training device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from competition.augment.presets import explicit_flips, preset_flips
from competition.config.experiment import AugmentConfig, Experiment
from competition.context import Context
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    import numpy as np

    from competition.augment.volumes import PlanesAugment, VolumeAugment


def build_loader_transform(
    exp: Experiment, context: Context = Context()
) -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None:
    """Build the augmentation for the data loader; None if the loader does not augment.

    The loader augments 2D images with albumentations. It augments volumes only with an explicit list of MONAI's
    transforms.

    Raises:
        MaskfoldError (exit status 2): `augment` is invalid.
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


def build_batch_transform(exp: Experiment) -> VolumeAugment | PlanesAugment | None:
    """Build the augmentation of batches on the training device; None unless the experiment sets a preset for volumes.

    Raises:
        MaskfoldError (exit status 2): `augment` is invalid.
    """
    if exp.competition.dimensions == 2 or exp.augment.transforms or exp.augment.preset == "none":
        return None
    from competition.augment.volumes import PlanesAugment, VolumeAugment

    dims, spacing = exp.network_dimensions, exp.prepare.spacing
    if exp.patch.slices is None:
        return VolumeAugment(exp.augment, dims, spacing, exp.first_stage_channels)
    probabilities = exp.first_stage_channels * exp.patch.slices
    planes = [
        VolumeAugment(
            augment_in_plane(exp, axis),
            dims,
            [spacing[other] for other in exp.patch.plane(axis)] if spacing else None,
            probabilities,
        )
        for axis in exp.patch.axes
    ]
    return planes[0] if len(planes) == 1 else PlanesAugment(planes)


def augment_in_plane(exp: Experiment, axis: int) -> AugmentConfig:
    """Return the section `augment` for 2.5D patches whose slices lie along an axis of the volume.

    `augment.flip` names axes of the volume. In the result, it names axes of the patch. Axes of the volume in which only
    patches with slices along another axis lie are left out.

    Raises:
        MaskfoldError (exit status 2): a preset would flip an axis of the volume in which no patch lies.
    """
    flip = exp.augment.flip
    if exp.patch.slices is None or isinstance(flip, bool):
        return exp.augment
    plane = exp.patch.plane(axis)
    if exp.patch.axes == [axis] and axis in flip and exp.augment.preset != "none":
        raise MaskfoldError(
            f"augment.flip: found axis {axis}, along which the slices lie (patch.axes).",
            f"Set augment.flip to axes from {list(plane)}, true or false.",
            status=2,
        )
    positions = [plane.index(other) for other in flip if other in plane]
    return exp.augment.model_copy(update={"flip": positions})


def flip_axes(augment: AugmentConfig, dims: int) -> tuple[int, ...]:
    """Return the spatial axes that training flips independently of each other.

    `inference.tta: auto` flips the same axes.

    Args:
        augment: section `augment` of the experiment.
        dims: number of spatial axes of a patch.
    """
    return explicit_flips(augment, dims) if augment.transforms else preset_flips(augment, dims)
