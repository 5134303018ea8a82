"""Augmentation of batches of volumes (and 2.5D patches) by presets, on the training device.

The parameters of each sample are drawn on the CPU from its own seed, then applied to the whole batch.
"""

# Not MONAI's, torchio's or kornia's transforms: MONAI and torchio take one sample at a time, and none of them draws the
# parameters of each sample of a batch from that sample's own seed, without which a resume would draw others.
# `python benchmarks/augment.py` compares the time with MONAI's.

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from competition.augment.presets import VOLUME_PRESETS, Range, VolumePreset, preset_flips
from competition.config.experiment import AugmentConfig

KNOTS = 7  # control points along each axis of an elastic field, a cubic B-spline of four spans
MIN_DIVISOR = 1e-7


class VolumeAugment:
    """Preset for a whole batch; each sample has its own seed and does not depend on the rest of the batch.

    Args:
        augment: the `augment` section, with a preset.
        dims: spatial axes of a patch, 2 or 3.
        spacing: size of a voxel along each axis, None: isotropic; rotations are rigid in these units.

    Example:
        >>> augment = VolumeAugment(AugmentConfig(preset="medium"), dims=3)
        >>> image, mask = augment(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8), [1, 2])
        >>> image.shape, mask.dtype
        (torch.Size([2, 1, 8, 8, 8]), torch.uint8)
    """

    def __init__(self, augment: AugmentConfig, dims: int, spacing: Sequence[float] | None = None) -> None:
        self.preset = None if augment.preset == "none" else VOLUME_PRESETS[augment.preset]
        self.flips = preset_flips(augment, dims)
        self.dims = dims
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * dims

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augment images and masks together.

        Args:
            image: (B, C, *spatial) float32, normalised.
            mask: (B, M, *spatial) uint8; no new value appears in it.
            seeds: of the samples, 63 bits each.

        Returns:
            New tensors of the same shapes and dtypes on the same device; the arguments are unchanged.
        """
        if self.preset is None:
            return image, mask
        draws = [sample_transform(self.preset, self.flips, image.shape[2:], self.spacing, int(seed)) for seed in seeds]
        with torch.autocast(image.device.type, enabled=False):  # bf16 matrix products would make coordinates inexact
            image, mask = flip(image.clone(), draws), flip(mask.clone(), draws)
            warp(image, mask, draws)
            change_intensities(image, draws)
        return image, mask


# Random parameters of each sample


@dataclass(frozen=True)
class SampledTransform:
    """Augmentation parameters of one sample; the defaults are the identity.

    Attributes:
        flips: spatial axes.
        matrix: (d, d) float64 that maps an offset from the centre of the result to one in the source, voxels; None is
            the identity.
        knots: (d, KNOTS, …, KNOTS) float32, displacement of each control point, voxels.
        blur: standard deviation, voxels.
        resolution: fraction of voxels kept along each axis.
        noise: standard deviation.
        noise_seed: of the generator on the device.
        brightness, contrast: factors.
        gamma: exponent.
        invert_gamma: apply gamma to the negative.
    """

    flips: tuple[int, ...] = ()
    matrix: np.ndarray | None = None
    knots: np.ndarray | None = None
    blur: float = 0.0
    resolution: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    invert_gamma: bool = False

    @property
    def needs_resampling(self) -> bool:
        """Whether the sample has to be interpolated."""
        return self.matrix is not None or self.knots is not None


def sample_transform(
    preset: VolumePreset, flips: tuple[int, ...], shape: Sequence[int], spacing: Sequence[float], seed: int
) -> SampledTransform:
    """Sample the augmentation parameters of one sample.

    Args:
        preset: probabilities and ranges.
        flips: axes that may be flipped.
        shape: of the patch, voxels; 2 or 3 axes.
        spacing: size of a voxel along each axis; rotations are rigid in these units.
        seed: of the sample.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    sampled_flips = tuple(axis for axis in flips if rng.random() < 0.5)
    return SampledTransform(
        flips=sampled_flips,
        matrix=_sample_matrix(preset, spacing, rng),
        knots=_sample_knots(preset, shape, rng),
        blur=_sample(rng, preset.blur, preset.blur_sigma, 0.0),
        resolution=_sample(rng, preset.low_resolution, preset.low_resolution_factor, 1.0),
        noise=_sample(rng, preset.noise, preset.noise_deviation, 0.0),
        noise_seed=int(rng.integers(2**63)),
        brightness=_sample(rng, preset.brightness, preset.brightness_factor, 1.0),
        contrast=_sample(rng, preset.contrast, preset.contrast_factor, 1.0),
        gamma=_sample(rng, preset.gamma, preset.gamma_exponent, 1.0),
        invert_gamma=bool(rng.random() < 0.25),
    )


def _sample(rng: np.random.Generator, probability: float, bounds: Range, identity: float) -> float:
    """Return a value within bounds, or the identity; two random numbers are consumed in both cases."""
    applies, value = rng.random() < probability, rng.uniform(*bounds)
    return value if applies else identity


def _sample_matrix(preset: VolumePreset, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray | None:
    """Sample rotation and zoom as one matrix in voxels: S⁻¹ R S / zoom, with S the size of a voxel.

    A rotation in voxels (or in the [-1, 1] of `grid_sample`) would shear the content of an anisotropic patch.
    """
    dims = len(spacing)
    planes = list(itertools.combinations(range(dims), 2))  # one in 2D, three in 3D
    rotates = rng.random() < preset.rotate
    angles = np.radians(rng.uniform(-preset.degrees, preset.degrees, len(planes)))
    zooms, low, high = rng.random() < preset.zoom, *np.log(preset.zoom_factor)
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


def _sample_knots(preset: VolumePreset, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray | None:
    """Sample displacements of the control points, voxels; their deviation is at most `elastic_size` of the extent."""
    applies, strength = rng.random() < preset.elastic, rng.uniform(0.2, 1.0) * preset.elastic_size
    field = rng.standard_normal((len(shape), *[KNOTS] * len(shape)), np.float32)
    if not applies:
        return None
    extents = np.asarray(shape, np.float32).reshape(-1, *[1] * len(shape))
    return field * np.float32(strength) * extents


# Geometry: flips, and rotation, zoom and elastic displacement in one sampling grid


def flip(batch: Tensor, draws: Sequence[SampledTransform]) -> Tensor:
    """Flip each sample of (B, C, *spatial) along its own axes, in place.

    Flips are not part of the sampling grid, so they are exact.
    """
    for sample, drawn in zip(batch, draws, strict=True):
        if drawn.flips:
            sample.copy_(sample.flip([axis + 1 for axis in drawn.flips]))
    return batch


def warp(image: Tensor, mask: Tensor, draws: Sequence[SampledTransform]) -> None:
    """Resample image and mask in place; samples without rotation, zoom and elastic field stay bit-identical.

    Outside of the patch the nearest voxel is repeated, also in the mask.

    Args:
        image: (B, C, *spatial) float32, sampled linearly.
        mask: (B, M, *spatial) uint8, nearest neighbour.
        draws: one per sample.
    """
    indices = [index for index, drawn in enumerate(draws) if drawn.needs_resampling]
    if not indices:
        return
    grid = sampling_grid([draws[index] for index in indices], image.shape[2:], image.device)
    rows = torch.tensor(indices, device=image.device)
    image[rows] = F.grid_sample(image[rows], grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(mask[rows].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    mask[rows] = labels.to(torch.uint8)


def sampling_grid(draws: Sequence[SampledTransform], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the grid for `grid_sample(…, align_corners=False)`: (B, *spatial, d) float32.

    The voxel at offset p from the patch's centre is read at offset M p + u(p), in voxels. Only the final offsets are
    normalised by the extent of each axis, so patches of any extent rotate without shear.
    """
    dims = len(shape)
    matrices = np.stack([np.eye(dims) if drawn.matrix is None else drawn.matrix for drawn in draws])
    lengths = np.asarray(shape, np.float64)
    # Voxel v = p + (length - 1) / 2 is (2 v + 1) / length - 1 = 2 p / length in grid_sample's coordinates.
    weights = torch.tensor(matrices * 2 / lengths[:, None], dtype=torch.float32, device=device)
    offsets = [torch.arange(length, device=device) - (length - 1) / 2 for length in shape]
    grid = torch.empty((len(draws), *shape, dims), device=device)
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
    elastic = {index: drawn.knots for index, drawn in enumerate(draws) if drawn.knots is not None}
    if elastic:
        # Scale and reorder the few control points instead of the dense field.
        knots = np.stack(list(elastic.values())) * (2 / lengths).reshape(-1, *[1] * dims)
        field = elastic_field(torch.tensor(knots[:, ::-1].copy(), dtype=torch.float32, device=device), shape)
        grid[torch.tensor(list(elastic), device=device)] += field
    return grid


def elastic_field(knots: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate the displacement at every voxel, (B, *shape, d), from control points (B, d, KNOTS, …, KNOTS).

    Free-form deformation by cubic B-splines: Rueckert et al., IEEE Transactions on Medical Imaging 18(8), 1999. Each
    axis is one small matrix product; the last one interleaves the components, as a sampling grid requires.
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


def change_intensities(image: Tensor, draws: Sequence[SampledTransform]) -> None:
    """Change (B, C, *spatial) float32 in place, in the order of a scanner: optics, noise, amplifier.

    Channels of a sample share their parameters; except for brightness, each channel keeps its own range or moments.
    """
    _blur(image, draws)
    for sample, drawn in zip(image, draws, strict=True):
        if drawn.noise:
            # The generator is on the device, since copying noise to a GPU would be too slow for a training step. So
            # noise, and nothing else, depends on the type of device.
            generator = torch.Generator(image.device).manual_seed(drawn.noise_seed)
            noise = torch.randn(sample.shape, generator=generator, device=image.device)
            sample.add_(noise, alpha=drawn.noise)
    _apply_to_samples(image, [drawn.brightness for drawn in draws], lambda values, factor: values * factor)
    _apply_to_samples(image, [drawn.contrast for drawn in draws], contrast)
    _apply_to_samples(image, [1.0 if drawn.invert_gamma else drawn.gamma for drawn in draws], gamma)
    inverted_gammas = [drawn.gamma if drawn.invert_gamma else 1.0 for drawn in draws]
    _apply_to_samples(image, inverted_gammas, lambda values, exponent: -gamma(-values, exponent))


def contrast(values: Tensor, factor: Tensor) -> Tensor:
    """Change contrast: scale (B, C, n) about each channel's mean, clipped to the channel's range."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.lerp(values.mean(-1, keepdim=True), values, factor).clamp_(low, high)


def gamma(values: Tensor, exponent: Tensor) -> Tensor:
    """Apply gamma: a power of each channel of (B, C, n) scaled to [0, 1].

    Mean and standard deviation are then restored, as batchgenerators' `retain_stats` does.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    mean = values.mean(-1, keepdim=True)
    curved = values.sub(low).div_((high - low).clamp_min_(MIN_DIVISOR)).pow_(exponent)
    curved.sub_(curved.mean(-1, keepdim=True))
    # Norms of centred values, because torch.std takes 50 times as long on a CPU.
    norm_before = torch.linalg.vector_norm(values - mean, dim=-1, keepdim=True)
    norm_after = torch.linalg.vector_norm(curved, dim=-1, keepdim=True)
    return curved.mul_(norm_before / norm_after.clamp_min(MIN_DIVISOR)).add_(mean)


def _apply_to_samples(image: Tensor, values: list[float], change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Apply `change(samples, values)` to the samples whose value is not 1."""
    indices = [index for index, value in enumerate(values) if value != 1.0]
    if not indices:
        return
    rows = torch.tensor(indices, device=image.device)
    strength = torch.tensor([values[index] for index in indices], dtype=torch.float32, device=image.device)
    samples = image[rows]
    image[rows] = change(samples.flatten(2), strength.view(-1, 1, 1)).view_as(samples)


def _blur(image: Tensor, draws: Sequence[SampledTransform]) -> None:
    """Apply blur and low resolution as one matrix product per axis, since both are linear and separable."""
    indices = [index for index, drawn in enumerate(draws) if drawn.blur > 0 or drawn.resolution < 1]
    if not indices:
        return
    rows = torch.tensor(indices, device=image.device)
    matrices = [
        torch.tensor(np.stack([_blur_matrix(length, draws[index]) for index in indices]), device=image.device)
        for length in image.shape[2:]
    ]
    image[rows] = apply_along_axes(image[rows], matrices)


def _blur_matrix(length: int, drawn: SampledTransform) -> np.ndarray:
    """Return blur, then low resolution, as one matrix (length, length) float32."""
    if drawn.resolution == 1.0:
        return gaussian_matrix(length, drawn.blur).astype(np.float32)
    downsampling = downsampling_matrix(length, drawn.resolution)
    return (downsampling @ gaussian_matrix(length, drawn.blur) if drawn.blur else downsampling).astype(np.float32)


def gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """Return a Gaussian blur as a matrix (length, length), float64; rows sum to 1, also at borders."""
    if sigma <= 0 or length == 1:
        return np.eye(length)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(1, keepdims=True)


def downsampling_matrix(length: int, resolution: float) -> np.ndarray:
    """Return low resolution as a matrix (length, length), float64: nearest voxels of a coarser grid, interpolated."""
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

    As matrix products, blur, low resolution and spline interpolation share this code, borders need no padding, and each
    sample can have its own strength.

    Args:
        batch: (B, C, *spatial).
        matrices: for each spatial axis (B, length of the result, length).

    Returns:
        (B, C, *lengths of the result).
    """
    for axis, matrix in enumerate(matrices, start=2):
        moved = batch.movedim(axis, 1)
        product = torch.bmm(matrix, moved.reshape(len(batch), moved.shape[1], -1))
        batch = product.view(len(batch), -1, *moved.shape[2:]).movedim(1, axis)
    return batch
