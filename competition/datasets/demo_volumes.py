"""Draw the volumes of the 3D demo: two organs of equal brightness that differ in side and texture.

Voxels are anisotropic (about 1×1×2.5 mm), and the brightness drifts across the volume. Files have mixed orientations,
so that only preprocessing that reads the affine distinguishes left from right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CLASSES = ("liver", "spleen")
KINDS = ("both",) * 7 + ("liver", "both", "both", "both", "spleen")  # organs of the volumes, used one after the other
# orientations of the files, used one after the other
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RAS", "LPI", "ASL", "LPS")
BODY, ORGAN = 0.45, 0.62  # brightness of soft tissue and of both organs


def draw_volume(rng: np.random.Generator, kind: str = "both") -> tuple[Array, Array, tuple[float, float, float]]:
    """Draw one volume and its label map; the axes point to the right, to the front and to the head (RAS).

    Args:
        rng: source of all randomness.
        kind: `both`, or the name of the only organ in the volume: `liver` or `spleen`.

    Returns:
        The image (X, Y, Z) int16, its labels (X, Y, Z) uint8 (0 background, 1 liver, 2 spleen) and the spacing in mm.
    """
    shape = (*(int(n) for n in rng.integers(44, 53, size=2)), int(rng.integers(18, 23)))
    spacing = (float(rng.choice([0.9, 1.0, 1.1])),) * 2 + (float(rng.choice([2.2, 2.5, 2.8])),)
    size = np.array(shape) * np.array(spacing)
    grid = list(np.meshgrid(*(np.arange(n) * step for n, step in zip(shape, spacing, strict=True)), indexing="ij"))
    middle = size / 2 + rng.uniform(-2.0, 2.0, size=3)
    image = np.where(_ellipsoid(grid, middle, size * (0.45, 0.42, 0.7)) < 1.0, BODY, 0.05)
    labels = np.zeros(shape, np.uint8)
    offsets_and_radii = {
        "liver": ((10.0, 2.0, 0.0), (9.0, 11.0, 13.0)),
        "spleen": ((-11.0, -3.0, 1.0), (7.0, 9.0, 11.0)),
    }
    for number, name in enumerate(CLASSES, 1):
        offset, radii = (np.array(values) for values in offsets_and_radii[name])
        centre, reach = middle + offset + rng.uniform(-2.5, 2.5, size=3), radii * rng.uniform(0.85, 1.15, size=3)
        inside = (_ellipsoid(grid, centre, reach) < 1.0) & (labels == 0)
        if kind in ("both", name):
            image[inside] = ORGAN
            labels[inside] = number
    image[labels == 2] += 0.06 * rng.choice([-1.0, 1.0], size=int(np.count_nonzero(labels == 2)))
    _draw_distractors(rng, image, labels, grid, middle)
    bias = _bias_field(rng, grid, size)
    values = 1000.0 * (image * bias + rng.normal(0.0, 0.035, shape))
    return np.clip(np.rint(values), 0, 2000).astype(np.int16), labels, spacing


def random_affine(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    """Return an affine (4, 4) float64 from voxels with RAS axes to mm; only the position of the volume is random.

    Along each axis, the centre of the volume is at most about 20 mm away from the origin.
    """
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = np.rint(rng.uniform(-20.0, 20.0, size=3)) - np.array(shape) * np.array(spacing) / 2
    return affine


def reorient(array: Array, affine: Array, codes: str) -> tuple[Array, Array]:
    """Permute and flip the axes of an array to the directions `codes`, and adapt the affine.

    Args:
        array: (X, Y, Z), axes towards right, anterior and superior.
        affine: (4, 4) matrix from voxels to mm.
        codes: directions of the new axes, e.g. `PIR`.

    Returns:
        The array with permuted and flipped axes, and the affine that keeps the position of every voxel in mm.
    """
    directions = {"R": (0, False), "L": (0, True), "A": (1, False), "P": (1, True), "S": (2, False), "I": (2, True)}
    axes, flips = zip(*(directions[code] for code in codes), strict=True)
    new_to_old = np.zeros((4, 4))
    new_to_old[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        new_to_old[old, new] = -1.0 if flip else 1.0
        new_to_old[old, 3] = array.shape[old] - 1.0 if flip else 0.0
    reoriented = array.transpose(axes)
    reoriented = reoriented[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return np.ascontiguousarray(reoriented), affine @ new_to_old


def _draw_distractors(rng: np.random.Generator, image: Array, labels: Array, grid: list[Array], middle: Array) -> None:
    """Draw background structures as bright as the organs: a rod behind the organs and a ball in front of them."""
    rod = ((grid[0] - middle[0]) / 5.0) ** 2 + ((grid[1] - middle[1] + 14.0) / 5.0) ** 2 < 1.0
    ball = _ellipsoid(grid, middle + (rng.uniform(-4, 4), 13.0, rng.uniform(-12, 12)), np.full(3, 5.0)) < 1.0
    image[(rod | ball) & (labels == 0)] = ORGAN


def _ellipsoid(grid: list[Array], centre: Array, radii: Array) -> Array:
    """Return each point's distance from the centre of an ellipsoid, scaled so that the surface is at 1.

    Points, centre and radii are in mm.
    """
    return np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)))


def _bias_field(rng: np.random.Generator, grid: list[Array], size: Array) -> Array:
    """Return the bias field of a receive coil, a smooth factor from 0.7 to 1.3."""
    direction = rng.normal(size=3)
    direction /= np.sqrt((direction**2).sum())
    field = sum(d * (g / s - 0.5) for d, g, s in zip(direction, grid, size, strict=True))
    centre = rng.uniform(0.2, 0.8, size=3)
    field = field - 0.8 * sum((g / s - c) ** 2 for g, s, c in zip(grid, size, centre, strict=True))
    low, high = field.min(), field.max()
    return np.asarray(0.7 + 0.6 * (field - low) / (high - low))
