"""Make phantoms of the male pelvis in MR over several weeks: five classes, two of them small.

Unlike real data, the pelvis is drawn, with voxels of about 5×5×6 mm instead of 1.6 mm. These properties are as in
real data: file names, classes, a coil's bias field and noise, and scans of a patient in several weeks that differ in
the filling of bladder and rectum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from competition.datasets.demo import write_nifti
from competition.datasets.demo_volumes import random_affine, reorient
from competition.datasets.phantoms.shapes import (
    Array,
    Canvas,
    Points,
    bias_field,
    correlated_noise,
    coverage,
    ellipsoid_rho,
    grid_points,
    smooth_field,
)

CLASSES = ("body", "bone", "bladder", "rectum", "prostate")  # label values 1 to 5; 0 is background
ORIENTATION = "LPS"  # orientation of the files
SHAPES = ((64, 52, 24), (64, 56, 24), (60, 52, 26), (68, 56, 24))
WEEKS = 8  # weeks; a patient has scans in one to three of them
AIR, FAT, MUSCLE, MARROW, CORTEX, URINE, GLAND, WALL, GAS = 0.02, 0.78, 0.27, 0.62, 0.1, 0.9, 0.44, 0.36, 0.05
BLUR = 5.0  # width of the slope at a surface, mm


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    The files are `semantic_MRs/Case_{number}_Week{week}_LFOV.nii.gz` (int16) with
    `semantic_labels_only/Case_…_SEMANTIC.nii.gz` (uint8, 0 to 5). `cases` is the number of patients, each of whom has
    scans in one to three weeks. There are no test cases; users can split the data by patient.
    """
    for part in ("semantic_MRs", "semantic_labels_only"):
        (folder / part).mkdir()
    numbers = np.sort(np.random.default_rng([seed, 0]).permutation(max(42, cases))[:cases] + 1)
    for index, number in enumerate(numbers.tolist()):
        patient = np.random.default_rng([seed, 7, index])
        pelvis, shape = Pelvis(patient), SHAPES[int(patient.integers(len(SHAPES)))]
        for week in np.sort(patient.permutation(WEEKS)[: 1 + index % 3]).tolist():
            rng = np.random.default_rng([seed, 8, index, week])
            image, labels, spacing = draw_volume(rng, pelvis, shape)
            affine = random_affine(rng, image.shape, spacing)
            case = f"Case_{number:03d}_Week{week}"
            for part, array, name in (("semantic_MRs", image, "LFOV"), ("semantic_labels_only", labels, "SEMANTIC")):
                array, file_affine = reorient(array, affine, ORIENTATION)
                write_nifti(folder / part / f"{case}_{name}.nii.gz", array, file_affine)


class Pelvis:
    """Hold the anatomy of one patient, which is the same in all weeks."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the parameters of the anatomy at random; `draw_volume` makes the volume of one week."""
        self.texture = int(rng.integers(2**31))
        self.size = rng.uniform(0.92, 1.05)
        self.body = np.array([138.0, rng.uniform(88.0, 100.0)]) * self.size
        self.fat = rng.uniform(10.0, 24.0)
        self.prostate = rng.uniform((20.0, 16.0, 17.0), (27.0, 22.0, 24.0))
        self.bladder = rng.uniform(24.0, 34.0)
        self.rectum = rng.uniform(12.0, 17.0)
        self.hips = rng.uniform(74.0, 82.0)
        self.level = rng.uniform(-8.0, 8.0)  # position of the organs towards the head, mm
        self.gland = GLAND + rng.uniform(-0.06, 0.1)


def draw_volume(
    rng: np.random.Generator, pelvis: Pelvis, shape: tuple[int, int, int]
) -> tuple[Array, Array, tuple[float, float, float]]:
    """Draw a patient's MR volume in one week, and its label map; the axes point to the right, front and head (RAS).

    Args:
        rng: random generator for the differences between weeks: filling, small shifts, bias field, noise.
        pelvis: anatomy of the patient.
        shape: shape of the volume.

    Returns:
        The image (X, Y, Z) int16, its labels (X, Y, Z) uint8 and the spacing in mm.
    """
    spacing = (4.8, 4.8, 6.0)
    patient_rng = np.random.default_rng(pelvis.texture)
    shift = rng.uniform(-5.0, 5.0, 3)
    points = tuple(p - m for p, m in zip(grid_points(shape, spacing), shift, strict=True))
    canvas = Canvas(shape, AIR)
    _draw_body(canvas, points, pelvis, patient_rng)
    scaled_points = tuple(p / pelvis.size for p in points)
    _draw_bones(canvas, scaled_points, pelvis)
    _draw_bowel(canvas, scaled_points, rng)
    _draw_organs(canvas, scaled_points, pelvis, rng, patient_rng)
    bias = bias_field(rng, points, 0.65, 1.3)
    values = canvas.values * bias + 0.035 * correlated_noise(rng, shape, axes=(0, 1))
    return np.clip(np.rint(rng.uniform(600.0, 1000.0) * values), 0, 2000).astype(np.int16), canvas.labels, spacing


def _draw_body(canvas: Canvas, points: Points, pelvis: Pelvis, rng: np.random.Generator) -> None:
    """Draw skin, fat and muscles, all of the class body."""
    x, y, z = points
    half = pelvis.body
    outline = ellipsoid_rho((x, y + 4.0), (0, 0), half, 2.5) + 0.012 * smooth_field(rng, points, 90.0)
    across = float(half.mean())
    canvas.paint(coverage(outline, across, BLUR), FAT, 1)
    reach = across - pelvis.fat
    inner = ellipsoid_rho((x, y + 2.0), (0, 0), half - pelvis.fat, 2.4) + 0.03 * smooth_field(rng, points, 60.0)
    canvas.paint(coverage(inner, reach, BLUR), MUSCLE + 0.03 * smooth_field(rng, points, 25.0), 1)
    narrowing = 0.45 + 0.55 * np.clip((z - pelvis.level + 62.0) / 50.0, 0.0, 1.0)  # towards the floor of the pelvis
    cavity = ellipsoid_rho((x, y), (0, 6), (54.0, 66.0), 2.2) / narrowing
    canvas.paint(coverage(cavity, 60.0, 8.0), FAT - 0.12, 1)
    for side in (-1, 1):  # fat between the muscles of the buttock and around the vessels
        seam = np.abs(np.sqrt((x - side * 62.0) ** 2 + (y + 62.0) ** 2) - 34.0)
        canvas.paint(coverage(seam / 2.5, 2.5, BLUR) * (y < -30.0) * (outline < 0.9), FAT, 1)
        canvas.paint(coverage(ellipsoid_rho(points, (side * 50.0, 46.0), (8.0, 7.0)), 7.0, BLUR), 0.12, 1)
    canvas.paint(coverage(np.abs(x) / 2.0, 2.0, BLUR) * (y < -66.0) * (outline < 1.05), 0.3, None)


def _draw_bones(canvas: Canvas, scaled_points: Points, pelvis: Pelvis) -> None:
    """Draw femurs, hip bones, pubis and sacrum: marrow in a dark shell."""
    x, y, z = scaled_points
    up = z - pelvis.level
    side = np.abs(x)
    ilium = np.abs(np.sqrt(side**2 + (0.85 * (y - 4.0)) ** 2) - (62.0 + 0.42 * np.maximum(up, 0.0)))
    parts = [
        (ellipsoid_rho((side, y, up), (pelvis.hips, 2.0, -6.0), (24.0, 24.0, 25.0)), 24.0),  # head of the femur
        (
            ellipsoid_rho((side, y, up), (pelvis.hips + 22.0, -6.0, -34.0), (17.0, 16.0, 34.0)),
            17.0,
        ),  # shaft of the femur
        (np.maximum(ilium / 9.0, np.maximum((y - 34.0) / 9.0 + 1.0, (14.0 - up) / 14.0 + 0.4)) + (side < 36.0), 9.0),
        (ellipsoid_rho((side, y, up), (36.0, 44.0, -26.0), (25.0, 9.0, 11.0)), 10.0),  # pubis
        (ellipsoid_rho((side, y, up), (46.0, -26.0, -44.0), (12.0, 14.0, 22.0)), 13.0),  # ischium
        (ellipsoid_rho((x, y + 0.35 * (up - 30.0), up), (0.0, -73.0, 40.0), (34.0, 12.0, 42.0), 2.4), 14.0),  # sacrum
    ]
    for rho, radius in parts:
        canvas.paint(coverage(rho, radius, BLUR), CORTEX, 2)
        inner_radius = radius - 3.5
        canvas.paint(coverage(rho * radius / inner_radius, inner_radius, BLUR), MARROW, None)


def _draw_bowel(canvas: Canvas, scaled_points: Points, rng: np.random.Generator) -> None:
    for _ in range(7):
        centre = rng.uniform((-40.0, -20.0, 38.0), (40.0, 58.0, 75.0))
        radii = rng.uniform(10.0, 20.0, 3)
        rho = ellipsoid_rho(scaled_points, centre, radii)
        canvas.paint(coverage(rho, 14.0, BLUR), WALL, 1)
        canvas.paint(coverage(rho / 0.75, 10.0, BLUR), rng.choice([GAS, 0.5, 0.75, 0.88]), 1)


def _draw_organs(
    canvas: Canvas, scaled_points: Points, pelvis: Pelvis, rng: np.random.Generator, patient_rng: np.random.Generator
) -> None:
    """Draw the bladder above the prostate, and the rectum behind both."""
    x, y, z = scaled_points
    filling = rng.uniform(0.75, 1.3)  # filling of the bladder
    gland = np.array([0.0, 2.0, pelvis.level - 24.0]) + rng.uniform(-3.0, 3.0, 3)
    bladder_radius = pelvis.bladder * filling
    bladder_centre = gland + (rng.uniform(-4.0, 4.0), 14.0, pelvis.prostate[2] + 0.7 * bladder_radius - 2.0)
    rho = ellipsoid_rho(
        scaled_points, bladder_centre, (bladder_radius * 1.2, bladder_radius, 0.8 * bladder_radius)
    ) + 0.06 * smooth_field(rng, scaled_points, 45.0)
    canvas.paint(coverage(rho * bladder_radius / (bladder_radius + 4.0), bladder_radius + 4.0, BLUR), WALL, 1)
    canvas.paint(coverage(rho, bladder_radius, BLUR), URINE, 3)
    radius = pelvis.rectum * rng.uniform(0.85, 1.25) * (1.0 + 0.22 * np.sin(z / 14.0 + rng.uniform(0, 2 * np.pi)))
    path_y = gland[1] - pelvis.prostate[1] - pelvis.rectum - 5.0 - 0.004 * np.maximum(z - gland[2], 0.0) ** 2
    path_x = 7.0 * np.sin(z / 26.0 + rng.uniform(0, 2 * np.pi))
    tube = np.sqrt((x - path_x) ** 2 + (y - path_y) ** 2) / radius
    ends = np.clip((56.0 + pelvis.level - z) / 6.0, 0.0, 1.0)  # the colon continues above
    canvas.paint(coverage(tube, pelvis.rectum, BLUR) * ends, WALL + 0.06, 4)
    content = np.where(np.sin(z / 11.0 + rng.uniform(0, 2 * np.pi)) > rng.uniform(-0.6, 0.9), GAS, 0.55)
    canvas.paint(coverage(tube / 0.7, 0.7 * pelvis.rectum, BLUR) * ends, content, None)
    rho = ellipsoid_rho(scaled_points, gland, pelvis.prostate, 2.2) + 0.06 * smooth_field(
        patient_rng, scaled_points, 30.0
    )
    canvas.paint(coverage(rho * 20.0 / 22.0, 22.0, BLUR), WALL - 0.08, None)
    zone = (
        pelvis.gland
        + 0.06 * smooth_field(patient_rng, scaled_points, 12.0)
        + 0.2 * np.clip((gland[1] - y) / 10.0, 0.0, 1.0)
    )
    canvas.paint(coverage(rho, 20.0, BLUR), zone, 5)  # its outer zone, at the back, is brighter
