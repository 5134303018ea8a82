"""Augment batches of volumes (and 2.5D patches) with presets, on the training device.

Each transform is a class. It draws the parameters of each sample on the CPU, with the sample's seed. Then it changes
all samples for which it has drawn parameters, at once. `TRANSFORMS` sets the order of the transforms.
"""

# This module does not use the transforms of MONAI, torchio or kornia. MONAI and torchio process one sample at a time.
# None of the three draws the parameters of each sample in a batch from the sample's own seed, which a resume requires.
# `python benchmarks/augment.py` compares the time with MONAI's time.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from competition.augment.presets import TRANSFORMS, VOLUME_PRESETS, preset_flips
from competition.augment.volume_geometry import Flip
from competition.augment.volume_transform import GeometricTransform, IntensityTransform, Patch, VolumeTransform
from competition.config.experiment import AugmentConfig
from competition.seeding import choose_by_seed


class VolumeAugment:
    """Apply a preset to batches; the result of a sample depends only on its own seed, not on the other samples.

    Args:
        augment: section `augment` of the experiment, with a preset.
        dims: number of spatial axes of a patch, 2 or 3.
        spacing: size of a voxel along each axis, so that rotations do not shear the content. None means that all axes
            have the same voxel size.
        probabilities: number of channels, at the end of the image, that contain probabilities of a first-stage model.
            Geometric transforms move these channels with the image. Intensity transforms leave them unchanged.

    Attributes:
        transforms: the transforms, in the order of sampling and application.

    Example:
        >>> augment = VolumeAugment(AugmentConfig(preset="medium"), dims=3)
        >>> image, mask = augment(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8), [1, 2])
        >>> image.shape, mask.dtype
        (torch.Size([2, 1, 8, 8, 8]), torch.uint8)
    """

    def __init__(
        self, augment: AugmentConfig, dims: int, spacing: Sequence[float] | None = None, probabilities: int = 0
    ) -> None:
        self.dims, self.probabilities = dims, probabilities
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * dims
        self.transforms: tuple[VolumeTransform, ...] = ()
        if augment.preset != "none":
            self.transforms = (Flip(preset_flips(augment, dims)), *build_preset(augment.preset))

    def sample(self, shape: Sequence[int], seed: int) -> list[Any]:
        """Draw the parameters of one sample.

        Args:
            shape: shape of the patch in voxels.
            seed: 63-bit seed of the sample.

        Returns:
            One entry per transform: its parameters, or None if the transform is not applied to this sample.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        patch = Patch(tuple(shape), self.spacing)
        return [transform.sample(rng, patch) for transform in self.transforms]

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augment images and masks together.

        Args:
            image: (B, C, *spatial) float32, normalised.
            mask: (B, M, *spatial) uint8. Augmentation never adds a value that the mask does not contain.
            seeds: one 63-bit seed per sample.

        Returns:
            New tensors of the same shapes and dtypes on the same device. The arguments stay unchanged.
        """
        drawn = [self.sample(image.shape[2:], int(seed)) for seed in seeds]
        return apply_to_batch(self.transforms, image, mask, drawn, self.probabilities)


class PlanesAugment:
    """Apply a preset to batches of 2.5D patches whose slices are stacked along different axes of the volume.

    For each of these axes, the patch spans another plane of the volume, with its own spacing and flips. The sample's
    seed chooses the axis. `PatchDataset` makes the same choice from the same seed.

    Args:
        planes: one augmentation for each axis in `patch.axes`, in the same order.
    """

    def __init__(self, planes: Sequence[VolumeAugment]) -> None:
        self.planes = tuple(planes)

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augment images and masks together; see `VolumeAugment.__call__`."""
        drawn = [choose_by_seed(self.planes, int(seed)).sample(image.shape[2:], int(seed)) for seed in seeds]
        first = self.planes[0]
        return apply_to_batch(first.transforms, image, mask, drawn, first.probabilities)


def build_preset(name: str) -> list[VolumeTransform]:
    """Return all 3D transforms with the values of a preset.

    The result includes the transforms that the preset omits. These have no effect on samples, but draw random numbers
    like all other transforms. So a transform draws the same numbers, whichever other transforms the preset contains.
    """
    preset = VOLUME_PRESETS[name]
    return [TRANSFORMS.get(transform)(**preset.get(transform, {})) for transform in TRANSFORMS.names()]


def apply_to_batch(
    transforms: Sequence[VolumeTransform],
    image: Tensor,
    mask: Tensor,
    drawn: Sequence[Sequence[Any]],
    probabilities: int = 0,
) -> tuple[Tensor, Tensor]:
    """Apply transforms to a batch.

    Args:
        transforms: the transforms, in the order of application.
        image: (B, C, *spatial) float32.
        mask: (B, M, *spatial) uint8.
        drawn: for each sample, the parameters of each transform, or None for a transform that is not applied.
        probabilities: number of channels, at the end of the image, that intensity transforms leave unchanged.

    Returns:
        The transformed images and masks as new tensors. If `transforms` is empty, `image` and `mask` themselves.
    """
    if not transforms:
        return image, mask
    image, mask = image.clone(), mask.clone()
    with torch.autocast(image.device.type, enabled=False):  # bf16 matrix products would make coordinates inexact
        for transform, parameters in zip(transforms, zip(*drawn, strict=True), strict=True):
            apply_to_samples(transform, image, mask, parameters, probabilities)
    return image, mask


def apply_to_samples(
    transform: VolumeTransform, image: Tensor, mask: Tensor, drawn: Sequence[Any], probabilities: int = 0
) -> None:
    """Apply one transform in place to each sample that has parameters.

    All other samples stay bit-identical.

    Args:
        transform: a geometric transform or an intensity transform.
        image: (B, C, *spatial) float32.
        mask: (B, M, *spatial) uint8.
        drawn: the parameters of each sample, or None for a sample that stays unchanged.
        probabilities: number of channels, at the end of the image, that intensity transforms leave unchanged.
    """
    indices = [index for index, parameters in enumerate(drawn) if parameters is not None]
    if not indices:
        return
    rows = torch.tensor(indices, device=image.device)
    parameters = [drawn[index] for index in indices]
    if isinstance(transform, GeometricTransform):
        image[rows], mask[rows] = transform.apply(image[rows], mask[rows], parameters)
    elif isinstance(transform, IntensityTransform):
        intensities = image[:, : image.shape[1] - probabilities]  # a view
        intensities[rows] = transform.apply(intensities[rows], parameters)
    else:
        raise TypeError(f"{type(transform).__name__} is neither a GeometricTransform nor an IntensityTransform")
