"""Define the interface of the transforms of volumes, and the voxel grid of a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from competition.augment.presets import Range


class Patch(NamedTuple):
    """Describe the voxel grid of a sample.

    Attributes:
        shape: number of voxels along each of the 2 or 3 axes.
        spacing: size of a voxel along each axis, e.g. in mm. Rotations use it, so that they do not shear the content.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]


class VolumeTransform(ABC):
    """Define the interface of a transform: a dataclass whose fields are set by a preset.

    If all fields have their default values, the transform must have no effect. A preset that omits a transform uses
    these defaults.
    """

    @abstractmethod
    def sample(self, rng: np.random.Generator, patch: Patch) -> Any:
        """Draw the parameters of one sample; return None if the sample stays unchanged.

        Each call must draw the same number of random numbers. Otherwise, the values of the next transforms would
        depend on whether this transform is applied.
        """


class GeometricTransform(VolumeTransform):
    """Move the voxels of image and mask."""

    @abstractmethod
    def apply(self, image: Tensor, mask: Tensor, drawn: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return the transformed images and masks.

        Args:
            image: (n, C, *spatial) float32, the samples for which parameters were drawn.
            mask: (n, M, *spatial) uint8.
            drawn: the parameters of each sample, as `sample` returned them.
        """


class IntensityTransform(VolumeTransform):
    """Change the values of the image, not of the mask, with the same parameters for all channels of a sample."""

    @abstractmethod
    def apply(self, image: Tensor, drawn: Sequence[Any]) -> Tensor:
        """Return the transformed images.

        Args:
            image: (n, C, *spatial) float32, the samples for which parameters were drawn.
            drawn: the parameters of each sample, as `sample` returned them.
        """


def sample_value(rng: np.random.Generator, probability: float, bounds: Range, identity: float) -> float:
    """Return a random value within `bounds` with the given probability; otherwise, return `identity`.

    Each call draws two random numbers, whichever value it returns.

    Args:
        rng: random generator of the sample.
        probability: probability of a random value.
        bounds: smallest and largest random value.
        identity: value with which the transform has no effect.
    """
    applies, value = rng.random() < probability, rng.uniform(*bounds)
    return value if applies else identity
