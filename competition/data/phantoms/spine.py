"""Phantoms of the lumbar spine in CT: five vertebrae in a row that look alike, their discs, and half a sacrum.

What is phantom: the spine is drawn, and voxels are about twice as large as a scanner's. What is as in real data: Hounsfield
units and their noise, anisotropic spacing, sizes that differ, files in mixed orientations, and that nothing but its
place tells one vertebra from the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from competition.data.demo3d import affine_of, stored
from competition.data.demo_folder import case_ids, write_nifti
from competition.data.phantoms.shapes import Array, Canvas, Points, cover, ellipsoid, grain, grid, waves

CLASSES = ("L1", "L2", "L3", "L4", "L5", "disc")
LEVELS, DISC = 5, 6  # vertebrae are 1 to 5 from the top, all discs are one class
ORIENTATIONS = ("LPI", "RAS", "PIR", "LPS", "RAS", "ASL", "LAS", "PIL")  # of the files, dealt out in turn
FAT, MUSCLE, MARROW, CORTEX, DISC_HU, FLUID = -95.0, 55.0, 190.0, 430.0, 85.0, 15.0
BLUR = 2.6  # mm: the slope at a surface


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    `images/{id}.nii.gz` (int16, Hounsfield units) with `labels/{id}.nii.gz` (uint8: 0 background, 1 to 5 the vertebrae
    L1 to L5, 6 discs), `test_images/{id}.nii.gz`, and their hidden truth in `solution/{id}.nii.gz`.
    """
    for part in ("images", "labels", "test_images", "solution"):
        (folder / part).mkdir()
    for index, case in enumerate(case_ids("spine", cases + test_cases, seed)):
        rng = np.random.default_rng([seed, 5, index])
        image, labels, spacing = volume(rng)
        affine, codes = affine_of(rng, image.shape, spacing), ORIENTATIONS[index % len(ORIENTATIONS)]
        image, file_affine = stored(image, affine, codes)
        labels, _ = stored(labels, affine, codes)
        images, truth = ("images", "labels") if index < cases else ("test_images", "solution")
        write_nifti(folder / images / f"{case}.nii.gz", image, file_affine)
        write_nifti(folder / truth / f"{case}.nii.gz", labels, file_affine)


def volume(rng: np.random.Generator) -> tuple[Array, Array, tuple[float, float, float]]:
    """Draw one volume, axes towards right, anterior and superior.

    Args:
        rng: source of all that is random in it.

    Returns:
        The image (X, Y, Z) int16 in Hounsfield units, its labels (X, Y, Z) uint8 and the spacing in mm.
    """
    column = Column(rng)
    step = float(rng.choice([2.0, 2.2, 2.4]))
    spacing = (float(rng.choice([2.6, 3.0, 3.3])), step, step)
    extent = (rng.uniform(118.0, 142.0), rng.uniform(126.0, 146.0), column.length + rng.uniform(34.0, 44.0))
    shape = tuple(round(length / one) for length, one in zip(extent, spacing, strict=True))
    points = grid(shape, spacing)
    points[2] = points[2] - points[2].max()  # z is 0 at the top, the first vertebra begins a little below
    canvas = Canvas(shape, FAT)
    _trunk(canvas, points, rng)
    _bones(canvas, column, column.coordinates(points), rng)
    values = canvas.values + 10.0 * waves(rng, points, 40.0) + rng.uniform(18.0, 32.0) * grain(rng, shape, axes=(1, 2))
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16), canvas.labels, spacing


@dataclass
class Vertebra:
    """One vertebra's numbers: where its body begins and ends along the column (mm from the top), its tilt and its size."""

    top: float
    bottom: float
    tilt: float
    width: float
    depth: float
    marrow: float


class Column:
    """The curve that the vertebrae are threaded on, and where each of them is.

    Attributes:
        vertebrae: L1 to L5.
        sacrum: where it begins, mm from the top.
        length: from the top to the end of half a sacrum, mm.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        """Draws the column's numbers."""
        size = rng.uniform(0.9, 1.08)
        start = rng.uniform(3.0, 9.0)
        width, depth, marrow = size * rng.uniform(42, 47), size * rng.uniform(31, 35), MARROW * rng.uniform(0.75, 1.15)
        self.vertebrae: list[Vertebra] = []
        for level in range(LEVELS):
            height = size * rng.uniform(25.5, 30.0)
            self.vertebrae.append(Vertebra(start, start + height, rng.normal(0.0, 0.05), width * rng.uniform(0.95, 1.05) + level,
                                           depth * rng.uniform(0.95, 1.05) + 0.5 * level, marrow * rng.uniform(0.9, 1.1)))
            start += height + size * rng.uniform(7.0, 11.5)  # a thin disc is a worn one
        self.sacrum, self.length = start, start + 22.0
        self.lordosis = rng.uniform(9.0, 20.0)  # mm that the column's middle lies in front of its ends
        self.kink = rng.uniform(0.2, 0.5)  # how much the sacrum turns back
        self.bend, self.lean = rng.uniform(-7.0, 7.0), rng.uniform(-0.08, 0.08)  # to the side
        self.start = rng.uniform((-5.0, 4.0), (5.0, 16.0))

    def path(self, s: Array) -> tuple[Array, Array]:
        """How far right and anterior the curve lies, `s` mm below the top."""
        share = s / self.length
        right = self.start[0] + self.bend * np.sin(np.pi * share * 1.4) + self.lean * (s - self.length / 2)
        below = np.maximum(s - self.sacrum + 12.0, 0.0)
        ahead = self.start[1] + self.lordosis * np.sin(np.pi * np.clip(share, 0, 1) ** 1.4) - self.kink * below**2 / 40.0
        return right, ahead

    def coordinates(self, points: Points) -> tuple[Array, Array, Array]:
        """Straightened coordinates of each point: right and anterior of the curve, and down along it, in mm."""
        x, y, z = points
        s = np.broadcast_to(-z, np.broadcast_shapes(x.shape, y.shape, z.shape)).astype(np.float64)
        for _ in range(3):  # the foot of the perpendicular on the curve
            right, ahead = self.path(s)
            later = self.path(s + 1.0)
            slope_right, slope_ahead = later[0] - right, later[1] - ahead
            away = (x - right) * slope_right + (y - ahead) * slope_ahead + (-z - s)
            s = np.clip(s + 0.8 * away / (1.0 + slope_right**2 + slope_ahead**2), -40.0, self.length + 60.0)
        right, ahead = self.path(s)
        return x - right, (y - ahead) * np.sqrt(1.0 + slope_ahead**2), s


def _trunk(canvas: Canvas, points: Points, rng: np.random.Generator) -> None:
    """The muscles of the back, psoas, vessels, bowel with gas; air behind the back."""
    x, y, z = points
    back = float(y.min()) + rng.uniform(4.0, 12.0)
    middle = y.max() - 30.0
    for side in (-1, 1):
        outer = 4.0 * waves(rng, (y, z), 60.0)
        muscle = ellipsoid((x - outer, y), (side * 30.0, back + 26.0), (27.0, 19.0), 2.6)
        canvas.paint(cover(muscle, 20.0, BLUR), MUSCLE + 8.0 * waves(rng, points, 12.0))
        swell = np.clip((-z - 20.0) / 100.0, 0.1, 1.0)
        psoas = ellipsoid((x, y), (side * 42.0, 12.0), (17.0, 19.0)) / swell**0.35
        canvas.paint(cover(psoas, 18.0, BLUR), MUSCLE + 5.0)
    vessel = rng.uniform(40.0, 190.0)  # with or without contrast agent
    canvas.paint(cover(ellipsoid(points, (-8.0, middle - 2.0), (9.0, 9.0)), 9.0, BLUR), vessel)
    canvas.paint(cover(ellipsoid(points, (14.0, middle - 4.0), (11.0, 8.0)), 9.0, BLUR), vessel - 10.0)
    for _ in range(9):
        centre, radius = rng.uniform((x.min(), middle, z.min()), (x.max(), y.max() + 10.0, 0.0)), rng.uniform(9.0, 17.0, 3)
        loop = ellipsoid(points, centre, radius)
        canvas.paint(cover(loop, 12.0, BLUR), rng.uniform(10.0, 250.0))
        if rng.random() < 0.5:
            canvas.paint(cover(loop / 0.7, 9.0, BLUR), -800.0)
    skin = y - back + 0.0006 * x * x
    canvas.paint(np.clip(0.5 - (skin + 4.0) / BLUR, 0.0, 1.0), MUSCLE)
    canvas.paint(np.clip(0.5 - (skin + 7.0) / BLUR, 0.0, 1.0), -1000.0)


def _bones(canvas: Canvas, column: Column, straight: Points, rng: np.random.Generator) -> None:
    u, v, s = straight
    edges = [*((one.top, one.bottom) for one in column.vertebrae), (column.sacrum, column.length + 40.0)]
    for level, (one, following) in enumerate(zip(column.vertebrae, edges[1:], strict=True)):
        below = column.vertebrae[min(level + 1, LEVELS - 1)]
        reach = s - 0.5 * (one.tilt + below.tilt) * v
        middle, half = (one.bottom + following[0]) / 2, (following[0] - one.bottom) / 2
        shape = _outline(u, v, 1.02 * one.width, 1.02 * one.depth)
        flat = cover(np.abs(reach - middle) / half, half, BLUR)
        canvas.paint(cover(shape, 19.0, BLUR) * flat, DISC_HU + rng.uniform(-20.0, 20.0) - 25.0 * (shape < 0.6), DISC)
    for level, one in enumerate(column.vertebrae, 1):
        near = np.flatnonzero(((s > one.top - 20.0) & (s < one.bottom + 35.0)).any(axis=(0, 1)))
        slab = (slice(None), slice(None), slice(int(near[0]), int(near[-1]) + 1))
        _vertebra(canvas.part(slab), one, level, (u[slab], v[slab], s[slab]), rng)
    sacrum = Vertebra(column.sacrum, column.length + 40.0, -0.1, 52.0, 32.0, MARROW * 0.9)
    narrow = 1.0 + np.maximum(s - column.sacrum, 0.0) / 90.0
    _body(canvas, sacrum, 0, (u, v * narrow, s), rng)
    wing = ellipsoid((np.abs(u), v, s), (34.0, -6.0, column.sacrum + 26.0), (24.0, 15.0, 24.0))
    canvas.paint(cover(wing, 18.0, BLUR), 240.0)
    arch = ellipsoid((u, v), (0.0, -36.0), (20.0, 8.0)) + (s < column.sacrum)
    canvas.paint(cover(arch, 9.0, BLUR), 260.0)
    # The canal with the nerves, over all that was drawn; in bone it belongs to no class.
    canal = ellipsoid((u, v), (0.0, -24.0), (10.5, 7.5))
    canvas.paint(cover(canal, 8.0, BLUR), FLUID + 10.0)


def _vertebra(canvas: Canvas, one: Vertebra, level: int, straight: Points, rng: np.random.Generator) -> None:
    """Arch and processes, then the body over them."""
    u, v, s = straight
    middle, height = (one.top + one.bottom) / 2, one.bottom - one.top
    side = np.abs(u)
    long = rng.uniform(0.9, 1.1)
    parts = [
        ellipsoid((side, v, s), (14.0, -20.0, middle - 0.15 * height), (5.0, 9.0, 7.0), 2.6),  # pedicle
        ellipsoid((side, v, s), (10.0, -33.0, middle + 0.1 * height), (9.5, 5.5, 10.0)),  # lamina
        ellipsoid((side, v, s), (17.0, -31.0, middle + 0.45 * height), (6.0, 6.5, 9.5)),  # lower joint
        ellipsoid((side, v, s), (18.0, -29.0, middle - 0.45 * height), (5.5, 6.0, 8.0)),  # upper joint
        ellipsoid((side, v, s), (29.0, -24.0, middle - 0.1 * height), (16.0 * long, 4.6, 5.5)),  # transverse process
        ellipsoid((u, v, s - 0.25 * (-v - 46.0)), (0.0, -48.0, middle + 0.3 * height), (4.4, 17.0 * long, 9.5), 2.6),
    ]
    for part in parts:
        canvas.paint(cover(part, 6.0, BLUR), one.marrow + 90.0, level)
    _body(canvas, one, level, straight, rng)


def _body(canvas: Canvas, one: Vertebra, level: int, straight: Points, rng: np.random.Generator) -> None:
    """A waisted cylinder with a hard shell and hard ends, hollow behind where the canal is."""
    u, v, s = straight
    reach = s - one.tilt * v
    middle, half = (one.top + one.bottom) / 2, (one.bottom - one.top) / 2
    along = (reach - middle) / half
    waist = 1.0 - 0.1 * (1.0 - np.clip(along, -1.0, 1.0) ** 2)
    shape = _outline(u, v, one.width, one.depth) / waist
    concave = half - 1.6 * np.clip(1.0 - shape, 0.0, 1.0)  # ends are a little hollow
    flat = np.abs(reach - middle) / concave
    canvas.paint(cover(shape, 18.0, BLUR) * cover(flat, half, BLUR), CORTEX, level)
    inner = cover(shape * 18.0 / 15.5, 15.5, BLUR) * cover(flat * half / (half - 2.2), half - 2.2, BLUR)
    canvas.paint(inner, one.marrow + 25.0 * waves(rng, straight, 9.0), None)


def _outline(u: Array, v: Array, width: float, depth: float) -> Array:
    """`rho` of a kidney-like outline, its hollow behind."""
    bent = v - 2.5 * np.cos(np.pi * np.clip(u / width, -0.5, 0.5)) * (v < 0)
    return ellipsoid((u, bent), (0.0, 0.0), (width / 2, depth / 2), 2.5)
