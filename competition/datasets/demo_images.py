"""Draw the images of the 2D demo and of the presence-head demo.

A threshold cannot segment the 2D demo, but a small U-Net can: only texture distinguishes rings and grains from the
background, from debris and from each other. Rings and grains are on average as bright as their surroundings. Debris is
as bright or as dark as parts of rings and grains. The illumination is uneven. In the presence-head demo, only the
brightness of a vessel decides whether spots are lesions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CLASSES = ("ring", "grain")
KINDS = ("full",) * 10 + ("ring", "grain", "empty")  # contents of the images, used one after the other
SIDES = (96, 192)  # shortest and longest side, pixels
RADII = (9.0, 16.0)  # radii of rings and grains, pixels
MIN_VISIBLE = 0.6  # minimum share of an object that is inside the image and not under another object
# Share of a full image that rings and grains cover; with a third, predicting only foreground would reach a Dice of 0.5.
COVERAGE = 0.22


def draw_image(rng: np.random.Generator, kind: str = "full") -> tuple[Array, Array]:
    """Draw one image of the 2D demo (rings and grains), and its label map.

    Args:
        rng: source of all randomness.
        kind: `full` (both classes), `ring` or `grain` (this class only), or `empty` (debris only).

    Returns:
        The image (H, W) uint8 and its labels (H, W) uint8: 0 background, 1 ring, 2 grain.
    """
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    reflectance = 0.5 + 0.05 * plane_waves(rng, height, width, count=6, longest=3.0)
    labels = np.zeros((height, width), np.uint8)
    occupied = np.zeros((height, width), bool)
    if kind != "empty":
        _draw_clusters(rng, reflectance, labels, occupied, kind)
    _draw_debris(rng, reflectance, occupied)
    _draw_fibres(rng, reflectance, occupied)
    illumination = _draw_illumination(rng, height, width)
    values = 255.0 * illumination * reflectance + rng.normal(0.0, 7.0, (height, width))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8), labels


def _draw_clusters(rng: np.random.Generator, reflectance: Array, labels: Array, occupied: Array, kind: str) -> None:
    """Draw clusters of touching rings and grains until they cover the share `COVERAGE` of the image."""
    height, width = labels.shape
    target_pixels = COVERAGE * (1.0 if kind == "full" else 0.6) * labels.size
    classes = {"ring": (1,), "grain": (2,), "full": (1, 2)}[kind]
    drawn = 0
    for _ in range(400):
        if np.count_nonzero(labels) >= target_pixels:
            break
        radius = rng.uniform(*RADII)
        centre = rng.uniform((0, 0), (height, width))
        for _ in range(rng.integers(1, 5)):  # each object touches the previous one
            shape = Blob(rng, centre, radius, labels.shape)
            free = shape.inside & ~occupied[shape.box]
            if np.count_nonzero(free) > MIN_VISIBLE * np.pi * radius**2:
                cls = classes[drawn % len(classes)]
                pattern = _ring(rng, shape) if cls == 1 else _grain(rng, shape)
                reflectance[shape.box][free] += pattern[free]
                labels[shape.box][free] = cls
                occupied[shape.box] |= free
                drawn += 1
            next_radius, angle = rng.uniform(*RADII), rng.uniform(0, 2 * np.pi)
            centre = centre + 0.97 * (radius + next_radius) * np.array([np.sin(angle), np.cos(angle)])
            radius = next_radius


def _draw_debris(rng: np.random.Generator, reflectance: Array, occupied: Array) -> None:
    """Draw discs without texture, about as large as rings and grains, and as bright or as dark as parts of these."""
    height, width = occupied.shape
    for _ in range(int(rng.integers(4, 8) * occupied.size / 144**2) + 1):
        shape = Blob(rng, rng.uniform((0, 0), (height, width)), rng.uniform(4.0, 14.0), occupied.shape)
        free = shape.inside & ~occupied[shape.box]
        level = rng.choice([-1.0, 1.0]) * rng.uniform(0.15, 0.35)
        soft = np.clip((1.0 - shape.rho) * 3.0, 0.0, 1.0)
        reflectance[shape.box][free] += (level * soft)[free]
        occupied[shape.box] |= free


def _draw_fibres(rng: np.random.Generator, reflectance: Array, occupied: Array) -> None:
    """Draw a few thin, straight, bright or dark fibres behind the objects."""
    height, width = occupied.shape
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(0, 4)):
        cy, cx = rng.uniform((0, 0), (height, width))
        angle = rng.uniform(0, np.pi)
        distance = np.abs((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle))
        along = np.abs((y - cy) * np.sin(angle) + (x - cx) * np.cos(angle))
        line = (distance < 1.5) & (along < rng.uniform(15, 50)) & ~occupied
        reflectance[line] += rng.choice([-1.0, 1.0]) * rng.uniform(0.15, 0.35)


class Blob:
    """Hold the pixels of a disc with a random, irregular border.

    Attributes:
        box: slices of the image that contain the disc.
        rho: (h, w) float64, distance from the centre divided by the radius in that direction.
        inside: (h, w) bool, `rho` below 1.
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


def _ring(rng: np.random.Generator, shape: Blob) -> Array:
    """Return the brightness of a ring, a bright rim around a dark core, relative to the background."""
    contrast = rng.uniform(0.16, 0.28)
    return contrast * np.where(shape.rho > 0.7, 1.0, -1.0)


def _grain(rng: np.random.Generator, shape: Blob) -> Array:
    """Return the brightness of a grain (bright and dark specks of about four pixels) relative to the background."""
    h, w = shape.rho.shape
    coarse = rng.choice([-1.0, 1.0], size=(h // 3 + 3, w // 3 + 3))
    contrast = rng.uniform(0.22, 0.34)
    return contrast * interpolate_lattice(coarse, h, w, 3.0)


def interpolate_lattice(coarse: Array, height: int, width: int, step: float) -> Array:
    """Interpolate a coarse lattice (h, w) bilinearly to (height, width), with `step` pixels per cell."""
    y, x = np.arange(height) / step, np.arange(width) / step
    i, j = y.astype(int), x.astype(int)
    fy, fx = (y - i)[:, None], (x - j)[None, :]
    upper = coarse[np.ix_(i, j)] * (1 - fx) + coarse[np.ix_(i, j + 1)] * fx
    lower = coarse[np.ix_(i + 1, j)] * (1 - fx) + coarse[np.ix_(i + 1, j + 1)] * fx
    return upper * (1 - fy) + lower * fy


def plane_waves(rng: np.random.Generator, height: int, width: int, count: int, longest: float) -> Array:
    """Return a smooth random field (height, width), mean 0, deviation about 1: a sum of plane waves.

    Args:
        rng: source of all randomness.
        height: height in pixels.
        width: width in pixels.
        count: number of waves.
        longest: maximum number of periods of a wave along each side of the image.
    """
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    field = np.zeros((height, width))
    for _ in range(count):
        fy, fx = rng.uniform(-longest, longest, size=2)
        field += np.cos(2 * np.pi * (fy * y + fx * x) + rng.uniform(0, 2 * np.pi))
    return field * np.sqrt(2.0 / count)


def _draw_illumination(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return uneven illumination (height, width), from 0.25 to 1.2: a slope, a bright spot and slow waves."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    angle, (cy, cx) = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8, size=2)
    field = np.sin(angle) * y + np.cos(angle) * x - 0.6 * ((y - cy) ** 2 + (x - cx) ** 2)
    field = field + 0.25 * plane_waves(rng, height, width, count=4, longest=1.2)
    return 0.25 + 0.95 * (field - field.min()) / (field.max() - field.min())


# Presence-head demo

GATE_CLASSES = ("lesion",)
GATE_KINDS = ("contrast", "contrast", "plain")  # kind of the cases, used in turn
SIDE = 96  # pixels
VESSEL_RADIUS = 7.0  # pixels
VESSEL_CONTRAST = {"contrast": (0.10, 0.34), "plain": (-0.16, 0.02)}  # range of brightness above tissue


def draw_gate_image(rng: np.random.Generator, kind: str = "contrast") -> tuple[Array, Array]:
    """Draw one image of the presence-head demo, and its label map.

    Args:
        rng: source of all randomness.
        kind: `contrast` (the vessel is bright, and the mottled spots are lesions), or `plain` (the vessel is not
            bright, and no spot is a lesion).

    Returns:
        The image (96, 96) uint8 and its labels (96, 96) uint8: 0 background, 1 lesion.
    """
    values = 0.45 + 0.05 * plane_waves(rng, SIDE, SIDE, count=6, longest=3.0)
    labels, occupied = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), bool)
    centre = np.array([rng.uniform(SIDE - 13, SIDE - 9), rng.uniform(0.2, 0.8) * SIDE])
    vessel = Blob(rng, centre, VESSEL_RADIUS, labels.shape)
    opacity = np.clip((1.0 - vessel.rho) * 4.0, 0.0, 1.0)
    values[vessel.box] += opacity * rng.uniform(*VESSEL_CONTRAST[kind])
    occupied[vessel.box] |= vessel.inside
    _draw_spots(rng, values, occupied, count=int(rng.integers(2, 5)), labels=labels if kind == "contrast" else None)
    _draw_spots(rng, values, occupied, count=int(rng.integers(1, 4)), labels=None, mottled=False)
    image = np.clip(np.rint(255.0 * values + rng.normal(0.0, 8.0, values.shape)), 0, 255)
    return image.astype(np.uint8), labels


def _draw_spots(
    rng: np.random.Generator, values: Array, occupied: Array, count: int, labels: Array | None, mottled: bool = True
) -> None:
    """Draw spots that touch no other structure; only mottled spots look like lesions.

    Args:
        rng: source of all randomness.
        values: (SIDE, SIDE) brightness, changed in place.
        occupied: (SIDE, SIDE) bool, pixels of other structures, changed in place.
        count: maximum number of spots.
        labels: label map in which the spots become lesions; None if they are background.
        mottled: whether the spots are mottled.
    """
    for _ in range(60):
        if count == 0:
            return
        spot = Blob(rng, rng.uniform(10, SIDE - 10, size=2), rng.uniform(6.0, 10.0), values.shape)
        if occupied[spot.box].any():
            continue
        opacity = np.clip((1.0 - spot.rho) * 4.0, 0.0, 1.0)
        height, width = spot.rho.shape
        speckle: Array | float = 0.0
        if mottled:
            speckle = interpolate_lattice(rng.choice([-1.0, 1.0], size=(SIDE // 3 + 3,) * 2), height, width, 3.0)
        values[spot.box] += opacity * (0.12 + 0.2 * speckle)
        occupied[spot.box] |= spot.rho < 1.15
        if labels is not None:
            labels[spot.box][spot.inside] = 1
        count -= 1
