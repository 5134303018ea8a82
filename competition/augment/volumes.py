"""Volumes (and 2.5D patches) as batches on the training device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from competition.augment.draws import draw
from competition.augment.intensities import change_intensities
from competition.augment.presets import VOLUMES, preset_flips
from competition.augment.warp import flip, warp
from competition.config.experiment import Augment


class VolumeAugment:
    """A preset on a whole batch, each sample by its own seed and whatever its batch mates are.

    Args:
        augment: the experiment's section, with a preset.
        dims: spatial axes of a patch, 2 or 3.
        spacing: size of a voxel along each of them; None is a cube. Rotations turn the body, not the grid.

    Example:
        >>> augment = VolumeAugment(Augment(preset="medium"), dims=3)
        >>> image, mask = augment(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8), [1, 2])
        >>> image.shape, mask.dtype
        (torch.Size([2, 1, 8, 8, 8]), torch.uint8)
    """

    def __init__(self, augment: Augment, dims: int, spacing: Sequence[float] | None = None) -> None:
        self.level = None if augment.preset == "none" else VOLUMES[augment.preset]
        self.flips = preset_flips(augment, dims)
        self.dims = dims
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * dims

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Changes images and masks together.

        Args:
            image: (B, C, *spatial) float32, normalised.
            mask: (B, M, *spatial) uint8; no new value appears in it.
            seeds: of the samples, 63 bits each.

        Returns:
            New tensors of the same shapes and dtypes on the same device; the arguments are left as they are.
        """
        if self.level is None:
            return image, mask
        draws = [draw(self.level, self.flips, image.shape[2:], self.spacing, int(seed)) for seed in seeds]
        with torch.autocast(image.device.type, enabled=False):  # bf16 matrix products would blur coordinates
            image, mask = flip(image.clone(), draws), flip(mask.clone(), draws)
            warp(image, mask, draws)
            change_intensities(image, draws)
        return image, mask
