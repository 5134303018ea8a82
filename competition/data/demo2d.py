"""Drawing one picture of the 2D demo competition: a threshold cannot segment it, a small U-Net can.

Rings and grains are told apart from the background, from debris and from each other by their texture: both are on
average as bright as what surrounds them, the light is uneven, and debris is as bright and as dark as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CLASSES = ("ring", "grain")
KINDS = ("full",) * 10 + ("ring", "grain", "empty")  # what a picture holds, dealt out in turn
SIDES = (96, 192)  # shortest and longest side of a picture, pixels
RADII = (9.0, 16.0)  # of rings and grains, pixels
VISIBLE = 0.6  # share of an object that neither the border nor a neighbour may hide
COVERED = 0.22  # share of a full picture under rings and grains; a third would let "all foreground" reach a Dice of 0.5


def picture(rng: np.random.Generator, kind: str = "full") -> tuple[Array, Array]:
    """Draw one picture.

    Args:
        rng: source of all that is random in it.
        kind: `full` (both classes), `ring` or `grain` (one of them), `empty` (debris only).

    Returns:
        The image (H, W) uint8 and its labels (H, W) uint8: 0 background, 1 ring, 2 grain.
    """
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    reflectance = 0.5 + 0.05 * _waves(rng, height, width, count=6, longest=3.0)
    labels = np.zeros((height, width), np.uint8)
    taken = np.zeros((height, width), bool)
    if kind != "empty":
        _draw_clusters(rng, reflectance, labels, taken, kind)
    _draw_debris(rng, reflectance, taken)
    _draw_fibres(rng, reflectance, taken)
    light = _light(rng, height, width)
    values = 255.0 * light * reflectance + rng.normal(0.0, 7.0, (height, width))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8), labels


def _draw_clusters(rng: np.random.Generator, reflectance: Array, labels: Array, taken: Array,
                   kind: str) -> None:
    """Draw clusters of touching rings and grains until `COVERED` of the picture is under them."""
    height, width = labels.shape
    wanted = COVERED * (1.0 if kind == "full" else 0.6) * labels.size
    classes = {"ring": (1,), "grain": (2,), "full": (1, 2)}[kind]
    drawn = 0
    for _ in range(400):
        if np.count_nonzero(labels) >= wanted:
            break
        radius = rng.uniform(*RADII)
        centre = rng.uniform((0, 0), (height, width))
        for _ in range(rng.integers(1, 5)):  # each next one touches the one before
            shape = _Blob(rng, centre, radius, labels.shape)
            free = shape.inside & ~taken[shape.box]
            if np.count_nonzero(free) > VISIBLE * np.pi * radius**2:
                cls = classes[drawn % len(classes)]
                pattern = _ring(rng, shape) if cls == 1 else _grain(rng, shape)
                reflectance[shape.box][free] += pattern[free]
                labels[shape.box][free] = cls
                taken[shape.box] |= free
                drawn += 1
            following, angle = rng.uniform(*RADII), rng.uniform(0, 2 * np.pi)
            centre = centre + 0.97 * (radius + following) * np.array([np.sin(angle), np.cos(angle)])
            radius = following


def _draw_debris(rng: np.random.Generator, reflectance: Array, taken: Array) -> None:
    """Draw plain discs, as large as the objects, some as bright and some as dark as their brightest and darkest parts."""
    height, width = taken.shape
    for _ in range(int(rng.integers(4, 8) * taken.size / 144**2) + 1):
        shape = _Blob(rng, rng.uniform((0, 0), (height, width)), rng.uniform(4.0, 14.0), taken.shape)
        free = shape.inside & ~taken[shape.box]
        level = rng.choice([-1.0, 1.0]) * rng.uniform(0.15, 0.35)
        soft = np.clip((1.0 - shape.rho) * 3.0, 0.0, 1.0)
        reflectance[shape.box][free] += (level * soft)[free]
        taken[shape.box] |= free


def _draw_fibres(rng: np.random.Generator, reflectance: Array, taken: Array) -> None:
    """Draw a few thin, straight, bright or dark fibres behind the objects."""
    height, width = taken.shape
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(0, 4)):
        cy, cx = rng.uniform((0, 0), (height, width))
        angle = rng.uniform(0, np.pi)
        distance = np.abs((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle))
        along = np.abs((y - cy) * np.sin(angle) + (x - cx) * np.cos(angle))
        line = (distance < 1.5) & (along < rng.uniform(15, 50)) & ~taken
        reflectance[line] += rng.choice([-1.0, 1.0]) * rng.uniform(0.15, 0.35)


class _Blob:
    """A wobbly disc on the pixel grid.

    Attributes:
        box: the slices of the picture that it may touch.
        rho: (h, w) float64, the distance from the centre as a share of the radius in that direction.
        inside: (h, w) bool, where `rho` is below 1.
    """

    def __init__(self, rng: np.random.Generator, centre: Array, radius: float, shape: tuple[int, ...]) -> None:
        amplitudes, phases = rng.uniform(0.0, 0.08, size=3), rng.uniform(0, 2 * np.pi, size=3)
        reach = 1.25 * radius
        low = [max(0, int(c - reach)) for c in centre]
        high = [min(side, int(c + reach) + 2) for c, side in zip(centre, shape, strict=True)]
        self.box = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        y, x = np.mgrid[self.box]
        dy, dx = y - centre[0], x - centre[1]
        theta = np.arctan2(dy, dx)
        edge = 1.0 + sum(a * np.cos(k * theta + p) for k, (a, p) in enumerate(zip(amplitudes, phases, strict=True), 2))
        self.rho = np.sqrt(dy * dy + dx * dx) / (radius * edge)
        self.inside = self.rho < 1.0


def _ring(rng: np.random.Generator, shape: _Blob) -> Array:
    """A bright rim around a dark core, on average as bright as the background."""
    contrast = rng.uniform(0.16, 0.28)
    return contrast * np.where(shape.rho > 0.7, 1.0, -1.0)


def _grain(rng: np.random.Generator, shape: _Blob) -> Array:
    """Bright and dark specks of about four pixels, on average as bright as the background."""
    h, w = shape.rho.shape
    coarse = rng.choice([-1.0, 1.0], size=(h // 3 + 3, w // 3 + 3))
    contrast = rng.uniform(0.22, 0.34)
    return contrast * _upsample(coarse, h, w, 3.0)


def _upsample(coarse: Array, height: int, width: int, step: float) -> Array:
    """Bilinear values of a coarse lattice (h, w) at (height, width) pixels, `step` pixels to a cell."""
    y, x = np.arange(height) / step, np.arange(width) / step
    i, j = y.astype(int), x.astype(int)
    fy, fx = (y - i)[:, None], (x - j)[None, :]
    upper = coarse[np.ix_(i, j)] * (1 - fx) + coarse[np.ix_(i, j + 1)] * fx
    lower = coarse[np.ix_(i + 1, j)] * (1 - fx) + coarse[np.ix_(i + 1, j + 1)] * fx
    return upper * (1 - fy) + lower * fy


def _waves(rng: np.random.Generator, height: int, width: int, count: int, longest: float) -> Array:
    """A smooth random field (height, width) of mean 0 and deviation of about 1: `count` plane waves.

    Args:
        longest: periods across the picture of the shortest wave.
    """
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    field = np.zeros((height, width))
    for _ in range(count):
        fy, fx = rng.uniform(-longest, longest, size=2)
        field += np.cos(2 * np.pi * (fy * y + fx * x) + rng.uniform(0, 2 * np.pi))
    return field * np.sqrt(2.0 / count)


def _light(rng: np.random.Generator, height: int, width: int) -> Array:
    """Uneven illumination (height, width): a slope, a bright spot and slow waves, from 0.25 to 1.2."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    angle, (cy, cx) = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8, size=2)
    field = np.sin(angle) * y + np.cos(angle) * x - 0.6 * ((y - cy) ** 2 + (x - cx) ** 2)
    field = field + 0.25 * _waves(rng, height, width, count=4, longest=1.2)
    return 0.25 + 0.95 * (field - field.min()) / (field.max() - field.min())
