"""Change the values of batches of volumes (and 2.5D patches): blur, noise, brightness, contrast and gamma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from competition.augment.presets import TRANSFORMS, Range
from competition.augment.volume_transform import IntensityTransform, Patch, sample_value

MIN_DIVISOR = 1e-7


class Softening(NamedTuple):
    """Hold one sample's parameters of `Blur`.

    Attributes:
        sigma: standard deviation of the blur in voxels; 0 does not blur.
        fraction: number of voxels along each axis after downsampling, divided by the number before. 1 does not
            downsample.
    """

    sigma: float = 0.0
    fraction: float = 1.0


@TRANSFORMS.register("blur")
@dataclass(frozen=True)
class Blur(IntensityTransform):
    """Blur the image and lower its resolution.

    Both operations are separable, so one matrix product per axis does both.

    Attributes:
        blur: probability of the blur.
        blur_sigma: smallest and largest standard deviation, in voxels.
        low_resolution: probability of the lower resolution.
        low_resolution_factor: smallest and largest fraction of voxels that are sampled along each axis. The values
            between the sampled voxels are interpolated.
    """

    blur: float = 0
    blur_sigma: Range = (0, 0)
    low_resolution: float = 0
    low_resolution_factor: Range = (1, 1)

    def sample(self, rng: np.random.Generator, patch: Patch) -> Softening | None:
        """Draw the standard deviation and the fraction of voxels; return None if the image stays unchanged."""
        drawn = Softening(
            sample_value(rng, self.blur, self.blur_sigma, 0.0),
            sample_value(rng, self.low_resolution, self.low_resolution_factor, 1.0),
        )
        return drawn if drawn.sigma > 0 or drawn.fraction < 1 else None

    def apply(self, image: Tensor, drawn: Sequence[Softening]) -> Tensor:
        """Blur and downsample the images; see `IntensityTransform.apply` for the arguments."""
        matrices = [
            torch.tensor(np.stack([_blur_matrix(length, one) for one in drawn]), device=image.device)
            for length in image.shape[2:]
        ]
        return apply_along_axes(image, matrices)


class NoiseLevel(NamedTuple):
    """Hold one sample's parameters of `Noise`.

    Attributes:
        deviation: standard deviation of the noise.
        seed: seed of the random generator on the training device.
    """

    deviation: float
    seed: int


@TRANSFORMS.register("noise")
@dataclass(frozen=True)
class Noise(IntensityTransform):
    """Add Gaussian noise.

    Attributes:
        probability: probability that noise is added to a sample.
        deviation: smallest and largest standard deviation. A normalised image has the standard deviation 1.
    """

    probability: float = 0
    deviation: Range = (0, 0)

    def sample(self, rng: np.random.Generator, patch: Patch) -> NoiseLevel | None:
        """Draw the standard deviation and the seed; return None if the image stays unchanged."""
        drawn = NoiseLevel(sample_value(rng, self.probability, self.deviation, 0.0), int(rng.integers(2**63)))
        return drawn if drawn.deviation else None

    def apply(self, image: Tensor, drawn: Sequence[NoiseLevel]) -> Tensor:
        """Add noise to the images in place, and return them; see `IntensityTransform.apply` for the arguments."""
        for sample, (deviation, seed) in zip(image, drawn, strict=True):
            # The generator is on the device, because copying noise to a GPU would be too slow for a training step.
            # Therefore, noise is the only transform whose result depends on the type of device.
            generator = torch.Generator(image.device).manual_seed(seed)
            sample.add_(torch.randn(sample.shape, generator=generator, device=image.device), alpha=deviation)
        return image


@dataclass(frozen=True)
class FactorTransform(IntensityTransform):
    """Draw one factor per sample; the subclasses `Brightness` and `Contrast` apply the factor.

    Attributes:
        probability: probability that a sample is changed.
        factor: smallest and largest factor.
    """

    probability: float = 0
    factor: Range = (1, 1)

    def sample(self, rng: np.random.Generator, patch: Patch) -> float | None:
        """Draw the factor; return None if the image stays unchanged."""
        return _unless_one(sample_value(rng, self.probability, self.factor, 1.0))


@TRANSFORMS.register("brightness")
class Brightness(FactorTransform):
    """Multiply the image by a factor."""

    def apply(self, image: Tensor, drawn: Sequence[float]) -> Tensor:
        """Multiply each image by its factor; see `IntensityTransform.apply` for the arguments."""
        return change_values(image, drawn, lambda values, factor: values * factor)


@TRANSFORMS.register("contrast")
class Contrast(FactorTransform):
    """Scale the values of each channel around the channel's mean, and clip them to the channel's original range."""

    def apply(self, image: Tensor, drawn: Sequence[float]) -> Tensor:
        """Change each image's contrast by its factor; see `IntensityTransform.apply` for the arguments."""
        return change_values(image, drawn, contrast)


class GammaCurve(NamedTuple):
    """Hold one sample's parameters of `Gamma`.

    Attributes:
        exponent: exponent of the power.
        inverted: whether the power is applied to the negative image.
    """

    exponent: float
    inverted: bool = False


@TRANSFORMS.register("gamma")
@dataclass(frozen=True)
class Gamma(IntensityTransform):
    """Raise each channel of the image, or of the negative image, to a power; see the function `gamma`.

    Attributes:
        probability: probability that a sample is changed.
        exponent: smallest and largest exponent.
        inverted: probability that the power is applied to the negative image.
    """

    probability: float = 0
    exponent: Range = (1, 1)
    inverted: float = 0.25

    def sample(self, rng: np.random.Generator, patch: Patch) -> GammaCurve | None:
        """Draw the exponent and whether to use the negative image; return None if the image stays unchanged."""
        drawn = GammaCurve(sample_value(rng, self.probability, self.exponent, 1.0), bool(rng.random() < self.inverted))
        return drawn if drawn.exponent != 1.0 else None

    def apply(self, image: Tensor, drawn: Sequence[GammaCurve]) -> Tensor:
        """Apply each sample's power to its image; see `IntensityTransform.apply` for the arguments."""
        for inverted, change in ((False, gamma), (True, lambda values, exponent: -gamma(-values, exponent))):
            indices = [index for index, curve in enumerate(drawn) if curve.inverted == inverted]
            if indices:
                rows = torch.tensor(indices, device=image.device)
                image[rows] = change_values(image[rows], [drawn[index].exponent for index in indices], change)
        return image


def change_values(image: Tensor, strengths: Sequence[float], change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply a function to the values of each sample, with one strength per sample.

    Args:
        image: (n, C, *spatial).
        strengths: one strength per sample.
        change: function of the values (n, C, voxels) and the strengths (n, 1, 1). It returns the changed values.

    Returns:
        The changed values in the shape of the image.
    """
    strength = torch.tensor(strengths, dtype=torch.float32, device=image.device)
    return change(image.flatten(2), strength.view(-1, 1, 1)).view_as(image)


def _unless_one(value: float) -> float | None:
    return value if value != 1.0 else None


def contrast(values: Tensor, factor: Tensor) -> Tensor:
    """Scale values around each channel's mean, and clip them to the channel's original range.

    Args:
        values: (B, C, n), values of n voxels.
        factor: (B, 1, 1), factor of each sample.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.lerp(values.mean(-1, keepdim=True), values, factor).clamp_(low, high)


def gamma(values: Tensor, exponent: Tensor) -> Tensor:
    """Scale each channel to [0, 1], raise it to a power, and restore the channel's mean and standard deviation.

    The option `retain_stats` of batchgenerators does the same.

    Args:
        values: (B, C, n), values of n voxels.
        exponent: (B, 1, 1), exponent of each sample.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    mean = values.mean(-1, keepdim=True)
    curved = values.sub(low).div_((high - low).clamp_min_(MIN_DIVISOR)).pow_(exponent)
    curved.sub_(curved.mean(-1, keepdim=True))
    # Use norms of centred values, because torch.std takes 50 times as long on a CPU.
    norm_before = torch.linalg.vector_norm(values - mean, dim=-1, keepdim=True)
    norm_after = torch.linalg.vector_norm(curved, dim=-1, keepdim=True)
    return curved.mul_(norm_before / norm_after.clamp_min(MIN_DIVISOR)).add_(mean)


def _blur_matrix(length: int, drawn: Softening) -> np.ndarray:
    """Return the matrix (length, length) float32 that blurs an axis and then lowers its resolution."""
    if drawn.fraction == 1.0:
        return gaussian_matrix(length, drawn.sigma).astype(np.float32)
    downsampling = downsampling_matrix(length, drawn.fraction)
    return (downsampling @ gaussian_matrix(length, drawn.sigma) if drawn.sigma else downsampling).astype(np.float32)


def gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """Return the matrix of a Gaussian blur, (length, length) float64.

    The sum of each row is 1, also at the borders of the axis.
    """
    if sigma <= 0 or length == 1:
        return np.eye(length)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(1, keepdims=True)


def downsampling_matrix(length: int, resolution: float) -> np.ndarray:
    """Return a matrix (length, length) float64 that samples an axis on a coarser grid and interpolates back.

    Args:
        length: number of voxels along the axis.
        resolution: number of voxels on the coarser grid, as a fraction of `length`.
    """
    coarse_length = max(1, round(length * resolution))
    if coarse_length >= length:
        return np.eye(length)
    kept = ((np.arange(coarse_length) + 0.5) * length / coarse_length).astype(np.int64)
    position = np.clip((np.arange(length) + 0.5) * coarse_length / length - 0.5, 0, coarse_length - 1)
    low = np.floor(position).astype(np.int64)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length), kept[low]), 1 - (position - low))
    np.add.at(matrix, (np.arange(length), kept[np.minimum(low + 1, coarse_length - 1)]), position - low)
    return matrix


def apply_along_axes(batch: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a separate matrix to each spatial axis of each sample.

    `Blur` uses such matrices to blur samples and to lower their resolution. The matrices also handle the borders, so no
    padding is needed.

    Args:
        batch: (B, C, *spatial).
        matrices: one stack of matrices per spatial axis, each (B, length of the result, length of the input).

    Returns:
        (B, C, *lengths of the result).
    """
    for axis, matrix in enumerate(matrices, start=2):
        moved = batch.movedim(axis, 1)
        product = torch.bmm(matrix, moved.reshape(len(batch), moved.shape[1], -1))
        batch = product.view(len(batch), -1, *moved.shape[2:]).movedim(1, axis)
    return batch
