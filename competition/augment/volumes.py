"""Augment batches of volumes (and 2.5D patches) with presets, on the training device.

Each transform is a class. The parameters of each sample are drawn on the CPU from the sample's seed. A transform is
then applied to all samples for which it has parameters. The order of the classes is the order of application: first
geometry, then intensities in the order of a scanner (optics, noise, amplifier).
"""

# This module does not use the transforms of MONAI, torchio or kornia. MONAI and torchio process one sample at a time.
# None of the three draws the parameters of each sample in a batch from the sample's own seed, which a resume requires.
# `python benchmarks/augment.py` compares the time with that of MONAI.

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from competition.augment.presets import TRANSFORMS, VOLUME_PRESETS, Range, preset_flips
from competition.config.experiment import AugmentConfig
from competition.seeding import choose_by_seed

KNOTS = 7  # control points along each axis of an elastic field, a cubic B-spline of four spans
MIN_DIVISOR = 1e-7


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


class VolumeAugment:
    """Apply a preset to whole batches; each sample has its own seed, independent of all other samples.

    Args:
        augment: section `augment` of the experiment, with a preset.
        dims: number of spatial axes of a patch, 2 or 3.
        spacing: size of a voxel along each axis; None: isotropic. Rotations are rigid in these units.
        probabilities: number of the last channels that are probabilities: they move with the image, but no intensity
            transform changes them.

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
        """Draw the parameters of one sample: one entry per transform, or None for a transform that is not applied.

        Args:
            shape: shape of the patch, voxels.
            seed: seed of the sample, 63 bits.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        patch = Patch(tuple(shape), self.spacing)
        return [transform.sample(rng, patch) for transform in self.transforms]

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augment images and masks together.

        Args:
            image: (B, C, *spatial) float32, normalised.
            mask: (B, M, *spatial) uint8; no new value appears in it.
            seeds: seeds of the samples, 63 bits each.

        Returns:
            New tensors of the same shapes and dtypes on the same device; the arguments are unchanged.
        """
        drawn = [self.sample(image.shape[2:], int(seed)) for seed in seeds]
        return apply_to_batch(self.transforms, image, mask, drawn, self.probabilities)


class PlanesAugment:
    """Apply a preset to batches of 2.5D patches whose slices lie along several axes of the volume.

    The planes differ in spacing and flips. The sample's seed chooses the plane, as it does in `PatchDataset`.

    Args:
        planes: the augmentation of each plane, in the order of `patch.axes`.
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
    """Return all transforms with the values of a preset.

    Transforms that the preset omits are included, because they draw random numbers too.
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
    """Apply transforms to a batch, with the parameters of each sample and transform in `drawn`; return new tensors.

    Intensity transforms leave the last `probabilities` channels unchanged.
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
    """Apply a transform in place to the samples that have parameters; all other samples stay bit-identical.

    Args:
        transform: a geometric or an intensity transform.
        image: (B, C, *spatial) float32.
        mask: (B, M, *spatial) uint8.
        drawn: the parameters of each sample; None: unchanged.
        probabilities: number of the last channels that intensity transforms leave unchanged.
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


def sample_value(rng: np.random.Generator, probability: float, bounds: Range, identity: float) -> float:
    """Return a random value within `bounds` with a certain probability, else `identity`.

    Each call draws two random numbers.
    """
    applies, value = rng.random() < probability, rng.uniform(*bounds)
    return value if applies else identity


# Geometry


@dataclass(frozen=True)
class Flip(GeometricTransform):
    """Flip each axis with a probability of one half, without resampling.

    Attributes:
        axes: the axes that may be flipped, from `augment.flip`.
    """

    axes: tuple[int, ...] = ()

    def sample(self, rng: np.random.Generator, patch: Patch) -> tuple[int, ...] | None:
        """Draw the axes to flip."""
        return tuple(axis for axis in self.axes if rng.random() < 0.5) or None

    def apply(self, image: Tensor, mask: Tensor, drawn: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Apply the transform; see `GeometricTransform.apply`."""
        for axes, *tensors in zip(drawn, image, mask, strict=True):
            for sample in tensors:
                sample.copy_(sample.flip([axis + 1 for axis in axes]))
        return image, mask


class Displacement(NamedTuple):
    """Map positions in the result to positions in the sample.

    Attributes:
        matrix: (d, d) float64 that maps an offset from the centre of the result to an offset from the centre of the
            source, in voxels; None: identity.
        knots: (d, KNOTS, …, KNOTS) float32, displacement of each control point in voxels; None: no elastic field.
    """

    matrix: np.ndarray | None = None
    knots: np.ndarray | None = None


@TRANSFORMS.register("warp")
@dataclass(frozen=True)
class Warp(GeometricTransform):
    """Rotate, zoom and deform elastically, in one resampling.

    Outside of the patch, the nearest voxel of image and mask is repeated.

    Attributes:
        rotate, zoom, elastic: probabilities of the three transforms.
        degrees: maximum angle about each axis, in both directions.
        zoom_factor: range of the factor.
        elastic_size: maximum standard deviation of a control point's displacement, as a fraction of the patch's extent.
    """

    rotate: float = 0
    degrees: float = 0
    zoom: float = 0
    zoom_factor: Range = (1, 1)
    elastic: float = 0
    elastic_size: float = 0

    def sample(self, rng: np.random.Generator, patch: Patch) -> Displacement | None:
        """Draw the matrix and the control points."""
        drawn = Displacement(self._sample_matrix(rng, patch.spacing), self._sample_knots(rng, patch.shape))
        return None if drawn.matrix is None and drawn.knots is None else drawn

    def _sample_matrix(self, rng: np.random.Generator, spacing: Sequence[float]) -> np.ndarray | None:
        """Sample rotation and zoom as one matrix in voxels: S⁻¹ R S / zoom, where S is the size of a voxel.

        A rotation in voxels (or in the [-1, 1] of `grid_sample`) would shear the content of an anisotropic patch.
        """
        dims = len(spacing)
        planes = list(itertools.combinations(range(dims), 2))  # one angle in 2D, three in 3D
        rotates = rng.random() < self.rotate
        angles = np.radians(rng.uniform(-self.degrees, self.degrees, len(planes)))
        zooms, low, high = rng.random() < self.zoom, *np.log(self.zoom_factor)
        factor = float(np.exp(rng.uniform(low, high)))
        if not rotates and not zooms:
            return None
        matrix = np.eye(dims)
        for (first, second), angle in zip(planes, angles if rotates else (), strict=False):
            plane = np.eye(dims)
            plane[[first, second], [first, second]] = np.cos(angle)
            plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ plane
        size = np.asarray(spacing, np.float64)
        return matrix * size[None, :] / size[:, None] / (factor if zooms else 1.0)

    def _sample_knots(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray | None:
        """Sample displacements of the control points in voxels."""
        applies, strength = rng.random() < self.elastic, rng.uniform(0.2, 1.0) * self.elastic_size
        field = rng.standard_normal((len(shape), *[KNOTS] * len(shape)), np.float32)
        if not applies:
            return None
        extents = np.asarray(shape, np.float32).reshape(-1, *[1] * len(shape))
        return field * np.float32(strength) * extents

    def apply(self, image: Tensor, mask: Tensor, drawn: Sequence[Displacement]) -> tuple[Tensor, Tensor]:
        """Resample the image linearly and the mask by the nearest neighbour."""
        grid = sampling_grid(drawn, image.shape[2:], image.device)
        labels = F.grid_sample(mask.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return image, labels.to(torch.uint8)


def sampling_grid(drawn: Sequence[Displacement], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the sampling grid (B, *spatial, d) float32 for `grid_sample(…, align_corners=False)`.

    The value at offset p from the patch's centre is read at offset M p + u(p), in voxels. Only the resulting offsets
    are normalised by the extent of each axis, so that patches of any extent rotate without shear.
    """
    dims = len(shape)
    matrices = np.stack([np.eye(dims) if one.matrix is None else one.matrix for one in drawn])
    lengths = np.asarray(shape, np.float64)
    # Voxel v = p + (length - 1) / 2 is (2 v + 1) / length - 1 = 2 p / length in grid_sample's coordinates.
    weights = torch.tensor(matrices * 2 / lengths[:, None], dtype=torch.float32, device=device)
    offsets = [torch.arange(length, device=device) - (length - 1) / 2 for length in shape]
    grid = torch.empty((len(drawn), *shape, dims), device=device)
    for row in range(dims):
        target = grid[..., dims - 1 - row]  # grid_sample orders axes from the last to the first
        for column, offset in enumerate(offsets):
            offset_shape = [1] * dims
            offset_shape[column] = -1
            term = weights[:, row, column].view(-1, *[1] * dims) * offset.view(1, *offset_shape)
            if column == 0:
                target.copy_(term.expand_as(target))
            else:
                target += term
    elastic = {index: one.knots for index, one in enumerate(drawn) if one.knots is not None}
    if elastic:
        # Scale and reorder the few control points instead of the dense field.
        knots = np.stack(list(elastic.values())) * (2 / lengths).reshape(-1, *[1] * dims)
        field = elastic_field(torch.tensor(knots[:, ::-1].copy(), dtype=torch.float32, device=device), shape)
        grid[torch.tensor(list(elastic), device=device)] += field
    return grid


def elastic_field(knots: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate the displacement of every voxel (B, *shape, d) from the control points (B, d, KNOTS, …, KNOTS).

    This is a free-form deformation by cubic B-splines (Rueckert et al., IEEE Transactions on Medical Imaging 18(8),
    1999). Each axis is one small matrix product; the last product interleaves the components, as a sampling grid
    requires.
    """
    batch, dims = knots.shape[:2]
    field, rows = knots.movedim(1, -1), batch
    for length in shape[:-1]:
        field = spline_weights(length, knots.device) @ field.reshape(rows, KNOTS, -1)
        rows *= length
    last = torch.kron(spline_weights(shape[-1], knots.device), torch.eye(dims, device=knots.device))
    return (field.reshape(rows, -1) @ last.T).view(batch, *shape, dims)


def spline_weights(length: int, device: torch.device) -> Tensor:
    """Return the cubic B-spline weights of the control points at each voxel of an axis: (length, KNOTS)."""
    spans = KNOTS - 3
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / length * spans
    span = position.floor().clamp_(max=spans - 1).long()
    t = position - span
    basis = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    weights = torch.zeros((length, KNOTS), dtype=torch.float64)
    weights.scatter_(1, span[:, None] + torch.arange(4), basis)
    return weights.float().to(device)


# Intensities


class Softening(NamedTuple):
    """Hold a sample's parameters: standard deviation of the blur in voxels, fraction of voxels kept along each axis."""

    sigma: float = 0.0
    fraction: float = 1.0


@TRANSFORMS.register("blur")
@dataclass(frozen=True)
class Blur(IntensityTransform):
    """Blur the image and lower its resolution; one matrix product per axis does both, because both are separable.

    Attributes:
        blur, low_resolution: probabilities of the two transforms.
        blur_sigma: range of the standard deviation in voxels.
        low_resolution_factor: range of the fraction of voxels that are kept along each axis; the others are
            interpolated.
    """

    blur: float = 0
    blur_sigma: Range = (0, 0)
    low_resolution: float = 0
    low_resolution_factor: Range = (1, 1)

    def sample(self, rng: np.random.Generator, patch: Patch) -> Softening | None:
        """Draw the standard deviation and the fraction of voxels."""
        drawn = Softening(
            sample_value(rng, self.blur, self.blur_sigma, 0.0),
            sample_value(rng, self.low_resolution, self.low_resolution_factor, 1.0),
        )
        return drawn if drawn.sigma > 0 or drawn.fraction < 1 else None

    def apply(self, image: Tensor, drawn: Sequence[Softening]) -> Tensor:
        """Apply the transform; see `IntensityTransform.apply`."""
        matrices = [
            torch.tensor(np.stack([_blur_matrix(length, one) for one in drawn]), device=image.device)
            for length in image.shape[2:]
        ]
        return apply_along_axes(image, matrices)


class NoiseLevel(NamedTuple):
    """Hold a sample's parameters: standard deviation of the noise, and seed of the random generator on the device."""

    deviation: float
    seed: int


@TRANSFORMS.register("noise")
@dataclass(frozen=True)
class Noise(IntensityTransform):
    """Add Gaussian noise.

    Attributes:
        probability: probability of the transform.
        deviation: range of the standard deviation; a normalised image has the standard deviation 1.
    """

    probability: float = 0
    deviation: Range = (0, 0)

    def sample(self, rng: np.random.Generator, patch: Patch) -> NoiseLevel | None:
        """Draw the standard deviation and the seed."""
        drawn = NoiseLevel(sample_value(rng, self.probability, self.deviation, 0.0), int(rng.integers(2**63)))
        return drawn if drawn.deviation else None

    def apply(self, image: Tensor, drawn: Sequence[NoiseLevel]) -> Tensor:
        """Apply the transform; see `IntensityTransform.apply`."""
        for sample, (deviation, seed) in zip(image, drawn, strict=True):
            # The generator is on the device, because copying noise to a GPU would be too slow for a training step. So
            # the noise is the only transform that depends on the type of device.
            generator = torch.Generator(image.device).manual_seed(seed)
            sample.add_(torch.randn(sample.shape, generator=generator, device=image.device), alpha=deviation)
        return image


@dataclass(frozen=True)
class FactorTransform(IntensityTransform):
    """Draw one factor per sample; the subclasses `Brightness` and `Contrast` apply it.

    Attributes:
        probability: probability of the transform.
        factor: range of the factor.
    """

    probability: float = 0
    factor: Range = (1, 1)

    def sample(self, rng: np.random.Generator, patch: Patch) -> float | None:
        """Draw the factor."""
        return _unless_one(sample_value(rng, self.probability, self.factor, 1.0))


@TRANSFORMS.register("brightness")
class Brightness(FactorTransform):
    """Multiply the image by a factor."""

    def apply(self, image: Tensor, drawn: Sequence[float]) -> Tensor:
        """Apply the transform; see `IntensityTransform.apply`."""
        return change_values(image, drawn, lambda values, factor: values * factor)


@TRANSFORMS.register("contrast")
class Contrast(FactorTransform):
    """Scale the values of each channel around the channel's mean, and clip them to the channel's original range."""

    def apply(self, image: Tensor, drawn: Sequence[float]) -> Tensor:
        """Apply the transform; see `IntensityTransform.apply`."""
        return change_values(image, drawn, contrast)


class GammaCurve(NamedTuple):
    """Hold a sample's parameters: the exponent, and whether the power is applied to the negative image."""

    exponent: float
    inverted: bool = False


@TRANSFORMS.register("gamma")
@dataclass(frozen=True)
class Gamma(IntensityTransform):
    """Apply a power to each channel, or to its negative; see `gamma`.

    Attributes:
        probability: probability of the transform.
        exponent: range of the exponent.
        inverted: probability that the power is applied to the negative image.
    """

    probability: float = 0
    exponent: Range = (1, 1)
    inverted: float = 0.25

    def sample(self, rng: np.random.Generator, patch: Patch) -> GammaCurve | None:
        """Draw the exponent, and whether the power is applied to the negative image."""
        drawn = GammaCurve(sample_value(rng, self.probability, self.exponent, 1.0), bool(rng.random() < self.inverted))
        return drawn if drawn.exponent != 1.0 else None

    def apply(self, image: Tensor, drawn: Sequence[GammaCurve]) -> Tensor:
        """Apply the transform; see `IntensityTransform.apply`."""
        for inverted, change in ((False, gamma), (True, lambda values, exponent: -gamma(-values, exponent))):
            indices = [index for index, curve in enumerate(drawn) if curve.inverted == inverted]
            if indices:
                rows = torch.tensor(indices, device=image.device)
                image[rows] = change_values(image[rows], [drawn[index].exponent for index in indices], change)
        return image


def change_values(image: Tensor, strengths: Sequence[float], change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply `change` to samples with a strength each, and return the result in the shape of the image (n, C, *spatial).

    `change` gets the samples as (n, C, voxels) and the strengths as (n, 1, 1).
    """
    strength = torch.tensor(strengths, dtype=torch.float32, device=image.device)
    return change(image.flatten(2), strength.view(-1, 1, 1)).view_as(image)


def _unless_one(value: float) -> float | None:
    return value if value != 1.0 else None


def contrast(values: Tensor, factor: Tensor) -> Tensor:
    """Change the contrast: scale (B, C, n) about each channel's mean, and clip to the channel's range."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.lerp(values.mean(-1, keepdim=True), values, factor).clamp_(low, high)


def gamma(values: Tensor, exponent: Tensor) -> Tensor:
    """Apply a power to each channel of (B, C, n), after scaling it to [0, 1].

    Mean and standard deviation are then restored, as batchgenerators' `retain_stats` does.
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
    """Return one matrix (length, length) float32 that blurs an axis and then lowers its resolution."""
    if drawn.fraction == 1.0:
        return gaussian_matrix(length, drawn.sigma).astype(np.float32)
    downsampling = downsampling_matrix(length, drawn.fraction)
    return (downsampling @ gaussian_matrix(length, drawn.sigma) if drawn.sigma else downsampling).astype(np.float32)


def gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """Return the matrix of a Gaussian blur, (length, length) float64; each row has the sum 1, even at borders."""
    if sigma <= 0 or length == 1:
        return np.eye(length)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(1, keepdims=True)


def downsampling_matrix(length: int, resolution: float) -> np.ndarray:
    """Return a matrix (length, length) float64 that samples an axis on a coarser grid and interpolates it back."""
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

    Blur, low resolution and spline interpolation are all matrix products, so they share this code. Borders need no
    padding, and each sample can have a different strength.

    Args:
        batch: (B, C, *spatial).
        matrices: one stack of matrices per spatial axis, (B, length of the result, length of the input).

    Returns:
        (B, C, *lengths of the result).
    """
    for axis, matrix in enumerate(matrices, start=2):
        moved = batch.movedim(axis, 1)
        product = torch.bmm(matrix, moved.reshape(len(batch), moved.shape[1], -1))
        batch = product.view(len(batch), -1, *moved.shape[2:]).movedim(1, axis)
    return batch
