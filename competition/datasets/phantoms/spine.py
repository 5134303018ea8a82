"""Make phantoms of the lumbar spine in CT: five similar vertebrae in a row, the discs, and half a sacrum.

Unlike real data, the spine is drawn, with voxels about twice as large as the voxels of a scanner. These properties are
as in real data: Hounsfield units and noise, anisotropic spacing, different sizes, mixed file orientations, and
vertebrae that differ only in their position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from competition.datasets.demo import shuffled_case_ids, write_nifti
from competition.datasets.demo_volumes import random_affine, reorient
from competition.datasets.phantoms.shapes import (
    Array,
    Canvas,
    Points,
    correlated_noise,
    coverage,
    ellipsoid_rho,
    grid_points,
    smooth_field,
)

CLASSES = ("L1", "L2", "L3", "L4", "L5", "disc")
LEVELS, DISC = 5, 6  # vertebrae have the labels 1 to 5 from the top; all discs are one class
# orientations of the files, used one after the other
ORIENTATIONS = ("LPI", "RAS", "PIR", "LPS", "RAS", "ASL", "LAS", "PIL")
FAT, MUSCLE, MARROW, CORTEX, DISC_HU, FLUID = -95.0, 55.0, 190.0, 430.0, 85.0, 15.0
BLUR = 2.6  # width of the slope at a surface, mm


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    The files are `images/{id}.nii.gz` (int16, Hounsfield units) with `labels/{id}.nii.gz` (uint8: 0 background, 1 to 5
    the vertebrae L1 to L5, 6 discs), `test_images/{id}.nii.gz`, and their hidden truth `solution/{id}.nii.gz`.
    """
    for part in ("images", "labels", "test_images", "solution"):
        (folder / part).mkdir()
    for index, case in enumerate(shuffled_case_ids("spine", cases + test_cases, seed)):
        rng = np.random.default_rng([seed, 5, index])
        image, labels, spacing = draw_volume(rng)
        affine, codes = random_affine(rng, image.shape, spacing), ORIENTATIONS[index % len(ORIENTATIONS)]
        image, file_affine = reorient(image, affine, codes)
        labels, _ = reorient(labels, affine, codes)
        images, truth = ("images", "labels") if index < cases else ("test_images", "solution")
        write_nifti(folder / images / f"{case}.nii.gz", image, file_affine)
        write_nifti(folder / truth / f"{case}.nii.gz", labels, file_affine)


def draw_volume(rng: np.random.Generator) -> tuple[Array, Array, tuple[float, float, float]]:
    """Draw a CT volume and its label map; the axes point to the right, to the front and to the head (RAS).

    Args:
        rng: source of all randomness.

    Returns:
        The image (X, Y, Z) int16 in Hounsfield units, its labels (X, Y, Z) uint8 and the spacing in mm.
    """
    column = Column(rng)
    step = float(rng.choice([2.0, 2.2, 2.4]))
    spacing = (float(rng.choice([2.6, 3.0, 3.3])), step, step)
    extent = (rng.uniform(118.0, 142.0), rng.uniform(126.0, 146.0), column.length + rng.uniform(34.0, 44.0))
    shape = tuple(round(length / voxel) for length, voxel in zip(extent, spacing, strict=True))
    points = grid_points(shape, spacing)
    points[2] = points[2] - points[2].max()  # z is 0 at the top, and the first vertebra starts a little below
    canvas = Canvas(shape, FAT)
    _draw_trunk(canvas, points, rng)
    _draw_bones(canvas, column, column.straighten(points), rng)
    values = (
        canvas.values
        + 10.0 * smooth_field(rng, points, 40.0)
        + rng.uniform(18.0, 32.0) * correlated_noise(rng, shape, axes=(1, 2))
    )
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16), canvas.labels, spacing


@dataclass
class Vertebra:
    """Hold the parameters of a vertebra.

    Attributes:
        top, bottom: upper and lower end of the vertebral body, mm below the top of the volume.
        tilt: slope of the ends of the body from back to front.
        width, depth: size of the body from side to side and from back to front, mm.
        marrow: brightness inside the body, Hounsfield units.
    """

    top: float
    bottom: float
    tilt: float
    width: float
    depth: float
    marrow: float


class Column:
    """Hold the curve of the spine, and the position of each vertebra on the curve.

    Attributes:
        vertebrae: L1 to L5.
        sacrum: upper end of the sacrum, mm below the top of the volume.
        length: lower end of the half sacrum that is drawn, mm below the top of the volume.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the parameters of the column at random."""
        size = rng.uniform(0.9, 1.08)
        start = rng.uniform(3.0, 9.0)
        width, depth, marrow = size * rng.uniform(42, 47), size * rng.uniform(31, 35), MARROW * rng.uniform(0.75, 1.15)
        self.vertebrae: list[Vertebra] = []
        for level in range(LEVELS):
            height = size * rng.uniform(25.5, 30.0)
            self.vertebrae.append(
                Vertebra(
                    start,
                    start + height,
                    rng.normal(0.0, 0.05),
                    width * rng.uniform(0.95, 1.05) + level,
                    depth * rng.uniform(0.95, 1.05) + 0.5 * level,
                    marrow * rng.uniform(0.9, 1.1),
                )
            )
            start += height + size * rng.uniform(7.0, 11.5)  # worn discs are thin
        self.sacrum, self.length = start, start + 22.0
        self.lordosis = rng.uniform(9.0, 20.0)  # distance from the column's ends forward to its middle, mm
        self.kink = rng.uniform(0.2, 0.5)  # backward bend of the sacrum
        self.bend, self.lean = rng.uniform(-7.0, 7.0), rng.uniform(-0.08, 0.08)  # sideways bend
        self.start = rng.uniform((-5.0, 4.0), (5.0, 16.0))

    def curve_at(self, s: Array) -> tuple[Array, Array]:
        """Return the position of the curve (mm to the right, mm to the front) at `s` mm below the volume's top."""
        share = s / self.length
        right = self.start[0] + self.bend * np.sin(np.pi * share * 1.4) + self.lean * (s - self.length / 2)
        below = np.maximum(s - self.sacrum + 12.0, 0.0)
        ahead = (
            self.start[1] + self.lordosis * np.sin(np.pi * np.clip(share, 0, 1) ** 1.4) - self.kink * below**2 / 40.0
        )
        return right, ahead

    def straighten(self, points: Points) -> tuple[Array, Array, Array]:
        """Return the coordinates of each point relative to the curve.

        The coordinates are mm to the right, to the front, and down along the curve.
        """
        x, y, z = points
        s = np.broadcast_to(-z, np.broadcast_shapes(x.shape, y.shape, z.shape)).astype(np.float64)
        for _ in range(3):  # iterate to the nearest point of the curve
            right, ahead = self.curve_at(s)
            next_point = self.curve_at(s + 1.0)
            slope_right, slope_ahead = next_point[0] - right, next_point[1] - ahead
            distance = (x - right) * slope_right + (y - ahead) * slope_ahead + (-z - s)
            s = np.clip(s + 0.8 * distance / (1.0 + slope_right**2 + slope_ahead**2), -40.0, self.length + 60.0)
        right, ahead = self.curve_at(s)
        return x - right, (y - ahead) * np.sqrt(1.0 + slope_ahead**2), s


def _draw_trunk(canvas: Canvas, points: Points, rng: np.random.Generator) -> None:
    """Draw back muscles, psoas, vessels, bowel with gas, and air behind the back."""
    x, y, z = points
    back = float(y.min()) + rng.uniform(4.0, 12.0)
    middle = y.max() - 30.0
    for side in (-1, 1):
        outer = 4.0 * smooth_field(rng, (y, z), 60.0)
        muscle = ellipsoid_rho((x - outer, y), (side * 30.0, back + 26.0), (27.0, 19.0), 2.6)
        canvas.paint(coverage(muscle, 20.0, BLUR), MUSCLE + 8.0 * smooth_field(rng, points, 12.0))
        swell = np.clip((-z - 20.0) / 100.0, 0.1, 1.0)
        psoas = ellipsoid_rho((x, y), (side * 42.0, 12.0), (17.0, 19.0)) / swell**0.35
        canvas.paint(coverage(psoas, 18.0, BLUR), MUSCLE + 5.0)
    vessel = rng.uniform(40.0, 190.0)  # with or without contrast agent
    canvas.paint(coverage(ellipsoid_rho(points, (-8.0, middle - 2.0), (9.0, 9.0)), 9.0, BLUR), vessel)
    canvas.paint(coverage(ellipsoid_rho(points, (14.0, middle - 4.0), (11.0, 8.0)), 9.0, BLUR), vessel - 10.0)
    for _ in range(9):
        centre, radius = (
            rng.uniform((x.min(), middle, z.min()), (x.max(), y.max() + 10.0, 0.0)),
            rng.uniform(9.0, 17.0, 3),
        )
        loop = ellipsoid_rho(points, centre, radius)
        canvas.paint(coverage(loop, 12.0, BLUR), rng.uniform(10.0, 250.0))
        if rng.random() < 0.5:
            canvas.paint(coverage(loop / 0.7, 9.0, BLUR), -800.0)
    skin = y - back + 0.0006 * x * x
    canvas.paint(np.clip(0.5 - (skin + 4.0) / BLUR, 0.0, 1.0), MUSCLE)
    canvas.paint(np.clip(0.5 - (skin + 7.0) / BLUR, 0.0, 1.0), -1000.0)


def _draw_bones(canvas: Canvas, column: Column, coordinates: Points, rng: np.random.Generator) -> None:
    u, v, s = coordinates
    edges = [*((vertebra.top, vertebra.bottom) for vertebra in column.vertebrae), (column.sacrum, column.length + 40.0)]
    for level, (vertebra, next_edges) in enumerate(zip(column.vertebrae, edges[1:], strict=True)):
        below = column.vertebrae[min(level + 1, LEVELS - 1)]
        reach = s - 0.5 * (vertebra.tilt + below.tilt) * v
        middle, half = (vertebra.bottom + next_edges[0]) / 2, (next_edges[0] - vertebra.bottom) / 2
        shape = _outline_rho(u, v, 1.02 * vertebra.width, 1.02 * vertebra.depth)
        flat = coverage(np.abs(reach - middle) / half, half, BLUR)
        canvas.paint(
            coverage(shape, 19.0, BLUR) * flat, DISC_HU + rng.uniform(-20.0, 20.0) - 25.0 * (shape < 0.6), DISC
        )
    for level, vertebra in enumerate(column.vertebrae, 1):
        near = np.flatnonzero(((s > vertebra.top - 20.0) & (s < vertebra.bottom + 35.0)).any(axis=(0, 1)))
        slab = (slice(None), slice(None), slice(int(near[0]), int(near[-1]) + 1))
        _draw_vertebra(canvas.view(slab), vertebra, level, (u[slab], v[slab], s[slab]), rng)
    sacrum = Vertebra(column.sacrum, column.length + 40.0, -0.1, 52.0, 32.0, MARROW * 0.9)
    narrow = 1.0 + np.maximum(s - column.sacrum, 0.0) / 90.0
    _draw_body(canvas, sacrum, 0, (u, v * narrow, s), rng)
    wing = ellipsoid_rho((np.abs(u), v, s), (34.0, -6.0, column.sacrum + 26.0), (24.0, 15.0, 24.0))
    canvas.paint(coverage(wing, 18.0, BLUR), 240.0)
    arch = ellipsoid_rho((u, v), (0.0, -36.0), (20.0, 8.0)) + (s < column.sacrum)
    canvas.paint(coverage(arch, 9.0, BLUR), 260.0)
    # draw the spinal canal last, over everything else; inside bone it is background
    canal = ellipsoid_rho((u, v), (0.0, -24.0), (10.5, 7.5))
    canvas.paint(coverage(canal, 8.0, BLUR), FLUID + 10.0)


def _draw_vertebra(
    canvas: Canvas, vertebra: Vertebra, level: int, coordinates: Points, rng: np.random.Generator
) -> None:
    """Draw a vertebra: first the arch and the processes, then the body over them."""
    u, v, s = coordinates
    middle, height = (vertebra.top + vertebra.bottom) / 2, vertebra.bottom - vertebra.top
    side = np.abs(u)
    long = rng.uniform(0.9, 1.1)
    parts = [
        ellipsoid_rho((side, v, s), (14.0, -20.0, middle - 0.15 * height), (5.0, 9.0, 7.0), 2.6),  # pedicle
        ellipsoid_rho((side, v, s), (10.0, -33.0, middle + 0.1 * height), (9.5, 5.5, 10.0)),  # lamina
        ellipsoid_rho((side, v, s), (17.0, -31.0, middle + 0.45 * height), (6.0, 6.5, 9.5)),  # lower joint
        ellipsoid_rho((side, v, s), (18.0, -29.0, middle - 0.45 * height), (5.5, 6.0, 8.0)),  # upper joint
        ellipsoid_rho(
            (side, v, s), (29.0, -24.0, middle - 0.1 * height), (16.0 * long, 4.6, 5.5)
        ),  # transverse process
        ellipsoid_rho(
            (u, v, s - 0.25 * (-v - 46.0)), (0.0, -48.0, middle + 0.3 * height), (4.4, 17.0 * long, 9.5), 2.6
        ),
    ]
    for part in parts:
        canvas.paint(coverage(part, 6.0, BLUR), vertebra.marrow + 90.0, level)
    _draw_body(canvas, vertebra, level, coordinates, rng)


def _draw_body(canvas: Canvas, vertebra: Vertebra, level: int, coordinates: Points, rng: np.random.Generator) -> None:
    """Draw the vertebral body.

    The body is a cylinder that is narrow in the middle, with a hard shell and hard ends; its back is hollow for the
    spinal canal.
    """
    u, v, s = coordinates
    reach = s - vertebra.tilt * v
    middle, half = (vertebra.top + vertebra.bottom) / 2, (vertebra.bottom - vertebra.top) / 2
    along = (reach - middle) / half
    waist = 1.0 - 0.1 * (1.0 - np.clip(along, -1.0, 1.0) ** 2)
    shape = _outline_rho(u, v, vertebra.width, vertebra.depth) / waist
    concave = half - 1.6 * np.clip(1.0 - shape, 0.0, 1.0)  # the ends are slightly concave
    flat = np.abs(reach - middle) / concave
    canvas.paint(coverage(shape, 18.0, BLUR) * coverage(flat, half, BLUR), CORTEX, level)
    inner = coverage(shape * 18.0 / 15.5, 15.5, BLUR) * coverage(flat * half / (half - 2.2), half - 2.2, BLUR)
    canvas.paint(inner, vertebra.marrow + 25.0 * smooth_field(rng, coordinates, 9.0), None)


def _outline_rho(u: Array, v: Array, width: float, depth: float) -> Array:
    """Return `rho` (0 at the centre, 1 at the border) of a kidney-shaped outline, which is hollow at the back."""
    bent = v - 2.5 * np.cos(np.pi * np.clip(u / width, -0.5, 0.5)) * (v < 0)
    return ellipsoid_rho((u, bent), (0.0, 0.0), (width / 2, depth / 2), 2.5)
