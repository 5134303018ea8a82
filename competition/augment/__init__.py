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
    """Build the augmentation that the data loader applies to each sample.

    The loader augments 2D images with albumentations. It augments volumes only if `augment.transforms` is set; these
    transforms are from MONAI.

    Returns:
        A callable that maps an image, a mask and a seed to the augmented image and mask. The result is None if the
        loader does not augment.

    Raises:
        MaskfoldError (exit status 2): the section `augment` is invalid.
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
    """Build the augmentation that is applied to batches of volumes on the training device.

    Returns:
        The augmentation with the experiment's preset. The result is None for 2D images, for an explicit list of
        transforms (`augment.transforms`) and for the preset `none`.

    Raises:
        MaskfoldError (exit status 2): the section `augment` is invalid.
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
    """Return the section `augment` for 2.5D patches, in which `flip` contains axes of the patch (0 or 1).

    The slices of these patches are stacked along one axis of the volume, so a patch spans only the other two axes. In
    the YAML, `augment.flip` contains axes of the volume. This function converts them to axes of the patch, and leaves
    out an axis that the patch does not span. If `flip` is true or false, it stays unchanged.

    Args:
        exp: experiment.
        axis: axis of the volume along which the slices are stacked.

    Raises:
        MaskfoldError (exit status 2): a preset would flip an axis of the volume that no patch spans.
    """
    flip = exp.augment.flip
    if exp.patch.slices is None or isinstance(flip, bool):
        return exp.augment
    plane = exp.patch.plane(axis)
    if exp.patch.axes == [axis] and axis in flip and exp.augment.preset != "none":
        raise MaskfoldError(
            f"augment.flip: found axis {axis}, along which the slices lie (patch.axes); expected only the axes "
            "within a slice.",
            f"Set augment.flip to a list of axes from {list(plane)}, or to true or false.",
            status=2,
        )
    positions = [plane.index(other) for other in flip if other in plane]
    return exp.augment.model_copy(update={"flip": positions})


def flip_axes(augment: AugmentConfig, dims: int) -> tuple[int, ...]:
    """Return the spatial axes of a patch that training flips independently of each other.

    Test-time augmentation with `inference.tta: auto` flips the same axes.

    Args:
        augment: section `augment` of the experiment.
        dims: number of spatial axes of a patch.
    """
    return explicit_flips(augment, dims) if augment.transforms else preset_flips(augment, dims)
