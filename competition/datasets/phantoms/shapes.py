"""Provide the tools that draw phantoms: shapes with blurred surfaces, smooth random fields, a canvas with labels.

Shapes and fields are computed at points, whose coordinates are in mm. Points are a tuple of arrays, one per axis, that
broadcast to one grid. `rho` describes a shape: it is 0 at the centre and 1 on the surface. Only elementwise arithmetic
of numpy is used, so that a seed gives the same pixels on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Points = Sequence[Array]
Vector = Sequence[float] | Array


class Canvas:
    """Paint shapes on an image and a label map.

    Attributes:
        values: (*spatial) float64, or (*spatial, 3) for colours: brightness.
        labels: (*spatial) uint8, class of the topmost shape.
    """

    def __init__(self, shape: tuple[int, ...], value: float) -> None:
        self.values = np.full(shape, value)
        self.labels = np.zeros(shape, np.uint8)

    def paint(self, share: Array, value: float | Array, label: int | None = 0) -> None:
        """Paint a shape over the existing content.

        Args:
            share: (*spatial) in [0, 1], the share of each voxel inside the shape.
            value: brightness of the shape.
            label: class of the shape, which is assigned to voxels with a share of at least one half. None leaves the
                labels unchanged.
        """
        self.values += share * (value - self.values)
        if label is not None:
            self.labels[np.broadcast_to(share >= 0.5, self.labels.shape)] = label

    def view(self, slices: tuple[slice, ...]) -> Canvas:
        """Return a canvas for a part of this canvas; both share their memory."""
        view = Canvas.__new__(Canvas)
        view.values, view.labels = self.values[slices], self.labels[slices]
        return view


def ellipsoid_rho(points: Points, centre: Vector, radii: Vector, power: float = 2.0) -> Array:
    """Return `rho` (0 at the centre, 1 at the surface) of an ellipsoid; a higher power gives a squarer shape.

    If `centre` and `radii` omit the last axes, the shape is a cylinder along these axes.
    """
    offsets = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=False)]
    if power == 2.0:
        return np.sqrt(np.asarray(sum(offset * offset for offset in offsets)))
    return np.asarray(sum(np.abs(offset) ** power for offset in offsets) ** (1.0 / power))


def coverage(rho: Array, radius: float, blur: float) -> Array:
    """Return the share of each voxel that lies inside a shape.

    `rho` describes the shape (0 at the centre, 1 on the surface), and `radius` is its radius in mm. At the surface, the
    share falls from 1 to 0 within `blur` mm.
    """
    return np.clip(0.5 + (1.0 - rho) * (radius / blur), 0.0, 1.0)


def smooth_field(rng: np.random.Generator, points: Points, shortest: float, count: int = 6) -> Array:
    """Return a smooth random field with mean 0 and deviation about 1: a sum of plane waves with random directions.

    Args:
        rng: source of all randomness.
        points: points in mm at which the field is computed.
        shortest: shortest wavelength in mm; the longest is four times as long.
        count: number of waves.
    """
    shape = np.broadcast_shapes(*(p.shape for p in points))
    sparse = all(p.size == max(p.shape) for p in points)
    field = np.zeros(shape)
    for _ in range(count):
        direction = rng.normal(size=len(points))
        direction *= 2 * np.pi / (np.sqrt((direction**2).sum()) * shortest * rng.uniform(1.0, 4.0))
        phase, last = rng.uniform(0, 2 * np.pi), direction[-1] * points[-1]
        head = np.asarray(sum((d * p for d, p in zip(direction[:-1], points, strict=False)), phase))
        if sparse:  # on a regular grid, axis by axis: the same values as below, but many times faster
            field += np.cos(head) * np.cos(last)
            field -= np.sin(head) * np.sin(last)
        else:
            field += np.cos(head + last)
    return field * np.sqrt(2.0 / count)


def bias_field(rng: np.random.Generator, points: Points, low: float, high: float) -> Array:
    """Return a smooth factor from `low` to `high`, as for a receive coil's bias field or uneven illumination."""
    direction = rng.normal(size=len(points))
    direction /= np.sqrt((direction**2).sum())
    field: Any = 0.0
    for d, p in zip(direction, points, strict=True):
        start, extent = p.min(), np.ptp(p) or 1.0
        share = (p - start) / extent
        field = field + 0.8 * d * share - 0.8 * (share - rng.uniform(0.2, 0.8)) ** 2
    return np.asarray(low + (high - low) * (field - field.min()) / np.ptp(field))


def blur_along(values: Array, axes: Sequence[int], times: int = 1) -> Array:
    """Blur with the kernel ¼ ½ ¼ along each axis; values at the border are repeated beyond it."""
    for axis in axes:
        for _ in range(times):
            padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
            n = values.shape[axis]
            previous, current, following = (padded.take(range(k, k + n), axis) for k in range(3))
            values = 0.25 * previous + 0.5 * current + 0.25 * following
    return values


def correlated_noise(rng: np.random.Generator, shape: tuple[int, ...], axes: Sequence[int]) -> Array:
    """Return noise with mean 0 and deviation 1 that is correlated along `axes`, like the noise of a reconstruction."""
    noise = blur_along(rng.normal(size=shape), axes)
    return noise / np.sqrt(0.375 ** len(axes))  # the sum of the squares of the kernel is 3/8


def grid_points(shape: Sequence[int], spacing: Sequence[float]) -> list[Array]:
    """Return the points of a grid around the origin in mm, as arrays that broadcast to (*shape)."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def window_around(points: Points, centre: Vector, reach: float) -> tuple[slice, ...]:
    """Return the index slices of the part of a grid that lies within `reach` mm of `centre` along every axis."""
    slices = []
    for p, c in zip(points, centre, strict=True):
        near = np.flatnonzero(np.abs(p.reshape(-1) - c) <= reach)
        slices.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
    return tuple(slices)
