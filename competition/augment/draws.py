"""What one sample of a batch shall suffer: drawn on the CPU from the sample's own seed, so that no batch mate matters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from competition.augment.presets import Range, VolumeLevel

KNOTS = 7  # control points along each axis of an elastic field: a cubic B-spline of four spans


@dataclass(frozen=True)
class Draw:
    """The changes of one sample; the default of each field changes nothing.

    Attributes:
        flips: spatial axes.
        matrix: (d, d) float64 from an offset to the centre in the result to the offset in the source, voxels; None is 1.
        knots: (d, KNOTS, …, KNOTS) float32, displacement of each control point, voxels.
        blur: standard deviation, voxels.
        coarse: share of voxels kept along each axis.
        noise: standard deviation.
        noise_seed: for the generator on the device.
        brightness, contrast: factors.
        gamma: exponent.
        inverted: gamma works on the negative.
    """

    flips: tuple[int, ...] = ()
    matrix: np.ndarray | None = None
    knots: np.ndarray | None = None
    blur: float = 0.0
    coarse: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    inverted: bool = False

    @property
    def warps(self) -> bool:
        """Whether the sample has to be interpolated."""
        return self.matrix is not None or self.knots is not None


def draw(level: VolumeLevel, flips: tuple[int, ...], shape: Sequence[int], spacing: Sequence[float], seed: int) -> Draw:
    """Draws the changes of one sample.

    Args:
        level: the preset's numbers.
        flips: axes that may be flipped.
        shape: of the patch, voxels; 2 or 3 axes.
        spacing: size of a voxel along each axis. Rotations turn the body, not the grid.
        seed: of the sample.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    flipped = tuple(axis for axis in flips if rng.random() < 0.5)
    return Draw(
        flips=flipped,
        matrix=_matrix(level, spacing, rng),
        knots=_knots(level, shape, rng),
        blur=_value(rng, level.blur, level.blur_sigma, 0.0),
        coarse=_value(rng, level.coarse, level.coarse_factor, 1.0),
        noise=_value(rng, level.noise, level.noise_deviation, 0.0),
        noise_seed=int(rng.integers(2**63)),
        brightness=_value(rng, level.brightness, level.brightness_factor, 1.0),
        contrast=_value(rng, level.contrast, level.contrast_factor, 1.0),
        gamma=_value(rng, level.gamma, level.gamma_exponent, 1.0),
        inverted=bool(rng.random() < 0.25),
    )


def _value(rng: np.random.Generator, probability: float, bounds: Range, nothing: float) -> float:
    """A value within bounds, or the one that changes nothing; two numbers are drawn either way."""
    happens, value = rng.random() < probability, rng.uniform(*bounds)
    return value if happens else nothing


def _matrix(level: VolumeLevel, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray | None:
    """Rotation and zoom as one matrix in voxels: S⁻¹ R S / zoom, with S the voxel's size.

    In voxels (or in the [-1, 1] of `grid_sample`) a rotation of an anisotropic patch would shear what it shows.
    """
    dims = len(spacing)
    planes = list(itertools.combinations(range(dims), 2))  # one in 2D, three in 3D
    turns, angles = rng.random() < level.rotate, np.radians(rng.uniform(-level.degrees, level.degrees, len(planes)))
    zooms, low, high = rng.random() < level.zoom, *np.log(level.zoom_factor)
    factor = float(np.exp(rng.uniform(low, high)))
    if not turns and not zooms:
        return None
    matrix = np.eye(dims)
    for (first, second), angle in zip(planes, angles if turns else (), strict=False):
        plane = np.eye(dims)
        plane[[first, second], [first, second]] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ plane
    size = np.asarray(spacing, np.float64)
    return matrix * size[None, :] / size[:, None] / (factor if zooms else 1.0)


def _knots(level: VolumeLevel, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray | None:
    """Displacements of the control points, voxels: at most `elastic_size` of the extent of each axis, typically."""
    happens, strength = rng.random() < level.elastic, rng.uniform(0.2, 1.0) * level.elastic_size
    field = rng.standard_normal((len(shape), *[KNOTS] * len(shape)), np.float32)
    if not happens:
        return None
    extents = np.asarray(shape, np.float32).reshape(-1, *[1] * len(shape))
    return field * np.float32(strength) * extents
