"""What phantoms are drawn with: soft shapes at points in mm, smooth random fields, and a canvas that keeps the labels.

Points are arrays that broadcast to one grid, one array per axis. A shape is given by its `rho`: 0 at the centre, 1 on the
surface. Only elementwise arithmetic of numpy is used, so that a seed gives the same pixels on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Points = Sequence[Array]
Numbers = Sequence[float] | Array


class Canvas:
    """A picture in the making.

    Attributes:
        values: (*spatial) float64, or (*spatial, 3) for colours: brightness.
        labels: (*spatial) uint8, the class of what is on top.
    """

    def __init__(self, shape: tuple[int, ...], value: float) -> None:
        self.values = np.full(shape, value)
        self.labels = np.zeros(shape, np.uint8)

    def paint(self, cover: Array, value: float | Array, label: int | None = 0) -> None:
        """Paint over what is there.

        Args:
            cover: (*spatial) in [0, 1], the share of each voxel that the shape covers.
            value: its brightness.
            label: its class where it covers half of a voxel or more; None leaves the labels as they are.
        """
        self.values += cover * (value - self.values)
        if label is not None:
            self.labels[np.broadcast_to(cover >= 0.5, self.labels.shape)] = label

    def part(self, where: tuple[slice, ...]) -> Canvas:
        """A window of this picture: what is painted there is painted here."""
        window = Canvas.__new__(Canvas)
        window.values, window.labels = self.values[where], self.labels[where]
        return window


def ellipsoid(points: Points, centre: Numbers, radii: Numbers, power: float = 2.0) -> Array:
    """`rho` of an ellipsoid, or of a cylinder along the axes that are left out at the end; a higher power is more square."""
    parts = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=False)]
    if power == 2.0:
        return np.sqrt(np.asarray(sum(part * part for part in parts)))
    return np.asarray(sum(np.abs(part) ** power for part in parts) ** (1.0 / power))


def cover(rho: Array, radius: float, blur: float) -> Array:
    """The share of a voxel inside a shape: 1 within, 0 outside, a slope of `blur` mm at the surface `radius` mm away."""
    return np.clip(0.5 + (1.0 - rho) * (radius / blur), 0.0, 1.0)


def waves(rng: np.random.Generator, points: Points, shortest: float, count: int = 6) -> Array:
    """A smooth random field at points, of mean 0 and deviation of about 1: plane waves of random directions.

    Args:
        shortest: length of the shortest wave, in mm; the longest is four times as long.
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
        if sparse:  # an axis at a time; the same as below, and many times as fast
            field += np.cos(head) * np.cos(last)
            field -= np.sin(head) * np.sin(last)
        else:
            field += np.cos(head + last)
    return field * np.sqrt(2.0 / count)


def coil(rng: np.random.Generator, points: Points, low: float, high: float) -> Array:
    """A smooth factor from `low` to `high`: a receive coil's bias, or a lamp's uneven light."""
    direction = rng.normal(size=len(points))
    direction /= np.sqrt((direction**2).sum())
    field: Any = 0.0
    for d, p in zip(direction, points, strict=True):
        start, extent = p.min(), np.ptp(p) or 1.0
        share = (p - start) / extent
        field = field + 0.8 * d * share - 0.8 * (share - rng.uniform(0.2, 0.8)) ** 2
    return np.asarray(low + (high - low) * (field - field.min()) / np.ptp(field))


def soften(values: Array, axes: Sequence[int], times: int = 1) -> Array:
    """Blur with the kernel ¼ ½ ¼ along each of the axes; the border repeats."""
    for axis in axes:
        for _ in range(times):
            wide = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
            n = values.shape[axis]
            before, here, after = (wide.take(range(k, k + n), axis) for k in range(3))
            values = 0.25 * before + 0.5 * here + 0.25 * after
    return values


def grain(rng: np.random.Generator, shape: tuple[int, ...], axes: Sequence[int]) -> Array:
    """Noise of mean 0 and deviation 1 whose neighbours along `axes` are alike, as reconstruction leaves it."""
    noise = soften(rng.normal(size=shape), axes)
    return noise / np.sqrt(0.375 ** len(axes))  # the kernel's squares add up to 3/8


def grid(shape: Sequence[int], spacing: Sequence[float]) -> list[Array]:
    """Points of a grid around the origin, as open arrays that broadcast to (*shape), in mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def window(points: Points, centre: Numbers, reach: float) -> tuple[slice, ...]:
    """The part of an open grid that lies within `reach` of a centre along every axis; drawing there alone saves time."""
    cuts = []
    for p, c in zip(points, centre, strict=True):
        near = np.flatnonzero(np.abs(p.reshape(-1) - c) <= reach)
        cuts.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
    return tuple(cuts)
