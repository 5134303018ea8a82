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
        shape: voxels along each axis; 2 or 3 axes.
        spacing: size of a voxel along each axis; rotations are rigid in these units.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]


class VolumeTransform(ABC):
    """Define the interface of a transform, a dataclass whose fields are the values of a preset.

    With the default values of its fields, a transform must have no effect, because a preset that omits the transform
    uses the defaults.
    """

    @abstractmethod
    def sample(self, rng: np.random.Generator, patch: Patch) -> Any:
        """Draw the parameters of one sample; return None if the sample stays unchanged.

        Each call must draw the same number of random numbers, so that later transforms draw the same values.
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
    """Change the values of the image only, with the same parameters for all channels of a sample."""

    @abstractmethod
    def apply(self, image: Tensor, drawn: Sequence[Any]) -> Tensor:
        """Return the transformed images.

        Args:
            image: (n, C, *spatial) float32, the samples for which parameters were drawn.
            drawn: the parameters of each sample, as `sample` returned them.
        """


def sample_value(rng: np.random.Generator, probability: float, bounds: Range, identity: float) -> float:
    """Return a random value within `bounds` with a certain probability, else `identity`.

    Each call draws two random numbers.
    """
    applies, value = rng.random() < probability, rng.uniform(*bounds)
    return value if applies else identity
