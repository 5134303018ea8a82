"""Make phantoms of the upper abdomen in CT, as DICOM: the spleen, and neighbouring organs of equal brightness.

Coordinates follow DICOM: x towards the patient's left, y towards the back, z towards the head, in mm around the
middle of the body. An anatomy can be rendered on any grid, so that two reconstructions of one patient agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from competition.datasets.demo import shuffled_case_ids, write_nifti
from competition.datasets.phantoms.dicom import SliceGrid, Study, write_segmentation, write_series
from competition.datasets.phantoms.shapes import (
    Array,
    Canvas,
    Points,
    correlated_noise,
    coverage,
    ellipsoid_rho,
    smooth_field,
)

AIR, FAT, FOAM = -1000.0, -100.0, -900.0
BLUR = 4.0  # width of the slope at an organ's surface, mm


class Abdomen:
    """Hold the position and brightness of one patient's organs."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the parameters of the anatomy at random; `render` computes the voxels."""
        self.texture = int(rng.integers(2**31))  # seed of the smooth fields, which is the same for every grid
        self.size = rng.uniform(0.86, 1.0)
        self.body = np.array([152.0, rng.uniform(98.0, 112.0)]) * self.size
        self.fat = rng.uniform(9.0, 24.0)
        self.spleen_hu = rng.uniform(95.0, 135.0)
        self.liver_hu = self.spleen_hu - rng.uniform(-8.0, 14.0)
        self.kidney_hu = self.spleen_hu + rng.uniform(10.0, 45.0)
        self.stomach_hu = rng.choice([rng.uniform(15.0, 50.0), self.spleen_hu + rng.uniform(-15.0, 15.0)])
        self.vessel_hu = self.spleen_hu + rng.uniform(5.0, 50.0)
        self.muscle_hu = rng.uniform(52.0, 66.0)
        self.spleen_size = rng.uniform(0.8, 1.25) * np.array([30.0, 43.0, 44.0]) * rng.uniform(0.92, 1.08, 3)
        self.shift = {
            name: rng.uniform(-6.0, 6.0, 3)
            for name in ("spleen", "hilum", "liver", "lobe", "stomach", "left", "right", "dome")
        }
        self.shift["spleen"] += rng.uniform((-4.0, -8.0, -14.0), (2.0, 4.0, 14.0))
        self.loops = [
            (
                rng.uniform((-75.0, -60.0, -110.0), (75.0, 5.0, -15.0)),
                rng.uniform(13.0, 24.0, 3),
                rng.uniform(10.0, 80.0),
                bool(rng.random() < 0.4),
            )
            for _ in range(14)
        ]

    def render(self, points: Points) -> tuple[Array, Array]:
        """Compute the CT values of the anatomy, without noise, and the mask of the spleen at the given points.

        Args:
            points: x, y, z of each voxel in mm, three arrays that broadcast to (*spatial).

        Returns:
            Hounsfield units (*spatial) float64, and the spleen (*spatial) uint8, 0 or 1.
        """
        rng = np.random.default_rng(self.texture)
        x, y, z = points
        canvas = Canvas(np.broadcast_shapes(x.shape, y.shape, z.shape), AIR)
        self._draw_table(canvas, points)
        cavity = self._draw_trunk(canvas, points, rng)
        scaled_points = tuple(p / self.size for p in points)
        self._draw_bowel(canvas, scaled_points, cavity)
        self._draw_liver(canvas, scaled_points, cavity, rng)
        self._draw_stomach(canvas, scaled_points, cavity, rng)
        self._draw_spleen(canvas, scaled_points, cavity, rng)
        self._draw_kidneys(canvas, scaled_points, cavity, rng)
        self._draw_lungs(canvas, scaled_points, cavity)
        self._draw_spine(canvas, scaled_points)
        return canvas.values + 5.0 * smooth_field(rng, points, 25.0) * (canvas.values > -300.0), canvas.labels

    def _draw_table(self, canvas: Canvas, points: Points) -> None:
        x, y, _ = points
        below = y - self.body[1] - 3.0 - 10.0 * (x / 160.0) ** 2
        canvas.paint(coverage(np.abs(below - 9.0) / 9.0, 9.0, BLUR) * (np.abs(x) < 145.0), FOAM)
        canvas.paint(coverage(np.abs(below - 18.0) / 3.0, 3.0, BLUR) * (np.abs(x) < 145.0), 60.0)

    def _draw_trunk(self, canvas: Canvas, points: Points, rng: np.random.Generator) -> Array:
        """Draw skin, fat, muscle, ribs and inner fat.

        Return the share of each voxel that lies inside the abdominal cavity.
        """
        x, y, z = points
        outline = ellipsoid_rho(points, (0, 0), self.body, 2.4) + 0.012 * smooth_field(rng, points, 90.0)
        across = float(self.body.mean())
        canvas.paint(coverage(outline, across, BLUR), 20.0)
        canvas.paint(coverage(outline * across / (across - 4.0), across - 4.0, BLUR), FAT)
        wall = ellipsoid_rho(points, (0, 2), self.body - self.fat, 2.3) + 0.012 * smooth_field(rng, points, 70.0)
        reach = across - self.fat
        canvas.paint(coverage(wall, reach, BLUR), self.muscle_hu)
        angle = np.arctan2(y, x)
        phase = 9.0 * np.abs(angle) / np.pi - z / 28.0  # ribs go down and forward
        rib = np.sqrt(((wall - 0.95) * reach / 4.0) ** 2 + ((phase - np.rint(phase)) * 28.0 / 5.5) ** 2)
        canvas.paint(coverage(rib, 4.0, BLUR) * (np.abs(x) > 25.0) * (z > -70.0), 330.0)
        cavity = coverage(wall * reach / (reach - 11.0), reach - 11.0, BLUR)
        canvas.paint(cavity, FAT)
        return cavity

    def _draw_bowel(self, canvas: Canvas, scaled_points: Points, cavity: Array) -> None:
        for centre, radii, value, gas in self.loops:
            rho = ellipsoid_rho(scaled_points, centre, radii)
            canvas.paint(cavity * coverage(rho, radii.min(), BLUR), value)
            if gas:
                canvas.paint(
                    cavity
                    * coverage(ellipsoid_rho(scaled_points, centre - (0, radii[1] * 0.4, 0), radii * 0.55), 9.0, BLUR),
                    -850.0,
                )

    def _draw_liver(self, canvas: Canvas, scaled_points: Points, cavity: Array, rng: np.random.Generator) -> None:
        wobble = 0.05 * smooth_field(rng, scaled_points, 50.0)
        right = ellipsoid_rho(scaled_points, self.shift["liver"] + (-62, -2, 18), (64.0, 66.0, 80.0)) + wobble
        left = ellipsoid_rho(scaled_points, self.shift["lobe"] + (-4, -42, 38), (66.0, 30.0, 40.0)) + wobble
        canvas.paint(cavity * np.maximum(coverage(right, 64.0, BLUR), coverage(left, 30.0, BLUR)), self.liver_hu)
        for _ in range(5):  # veins of the liver
            x0, y0, slope = rng.uniform(-90, -30), rng.uniform(-35, 25), rng.uniform(-0.6, 0.6, 2)
            x, y, z = scaled_points
            vein = np.sqrt((x - x0 - slope[0] * z) ** 2 + (y - y0 - slope[1] * z) ** 2) / 4.0
            canvas.paint(coverage(vein, 4.0, BLUR) * (right < 0.85), self.vessel_hu)

    def _draw_stomach(self, canvas: Canvas, scaled_points: Points, cavity: Array, rng: np.random.Generator) -> None:
        centre, radii = self.shift["stomach"] + (44, -24, 30), np.array([36.0, 36.0, 46.0])
        rho = ellipsoid_rho(scaled_points, centre, radii) + 0.07 * smooth_field(rng, scaled_points, 45.0)
        canvas.paint(cavity * coverage(rho, 36.0, BLUR), self.spleen_hu - 25.0)
        inner = coverage(rho * 36.0 / 31.0, 31.0, BLUR) * cavity
        canvas.paint(inner, self.stomach_hu)
        level = centre[1] - rng.uniform(2.0, 26.0)  # air in front, with a flat level
        canvas.paint(inner * np.clip(0.5 + (level - scaled_points[1]) / BLUR, 0.0, 1.0), -900.0)

    def _draw_spleen(self, canvas: Canvas, scaled_points: Points, cavity: Array, rng: np.random.Generator) -> None:
        centre = self.shift["spleen"] + (86, 26, 26)
        rho = ellipsoid_rho(scaled_points, centre, self.spleen_size, 2.2) + 0.07 * smooth_field(
            rng, scaled_points, 55.0
        )
        hollow = ellipsoid_rho(
            scaled_points, centre + self.shift["hilum"] * 0.6 - (33, 26, 2), self.spleen_size * (1.0, 0.85, 0.95)
        )
        inside = coverage(rho, 32.0, BLUR) * (1.0 - coverage(hollow, 32.0, BLUR)) * cavity
        texture = 6.0 * smooth_field(rng, scaled_points, 14.0)
        canvas.paint(inside, self.spleen_hu + texture, 1)
        x, y, z = scaled_points  # the splenic vein, from the hilum to the middle
        path = np.sqrt((y - 12.0 - 12.0 * np.sin(x / 25.0)) ** 2 + (z - centre[2] + 4.0) ** 2) / 4.5
        canvas.paint(
            coverage(path, 4.5, BLUR) * (x > 0) * (x < centre[0] - 22.0) * (canvas.labels == 0), self.vessel_hu
        )

    def _draw_kidneys(self, canvas: Canvas, scaled_points: Points, cavity: Array, rng: np.random.Generator) -> None:
        for name, middle in (("left", (54, 42, -36)), ("right", (-52, 42, -46))):
            centre = self.shift[name] + middle
            rho = ellipsoid_rho(scaled_points, centre, (25.0, 22.0, 50.0)) + 0.05 * smooth_field(
                rng, scaled_points, 40.0
            )
            cortex = coverage(rho, 24.0, BLUR) * cavity
            canvas.paint(cortex, self.kidney_hu)
            inward = centre + ((-9.0 if name == "left" else 9.0), -3.0, 0.0)
            canvas.paint(coverage(ellipsoid_rho(scaled_points, inward, (11.0, 8.0, 26.0)), 10.0, BLUR) * cortex, -60.0)

    def _draw_spine(self, canvas: Canvas, scaled_points: Points) -> None:
        x, y, z = scaled_points
        for side in (-1, 1):  # psoas and back muscles
            psoas = ellipsoid_rho((x, y), (side * 34, 40), (12.0, 14.0)) * np.where(z < -20, 1.0, 1.4)
            canvas.paint(coverage(psoas, 12.0, BLUR) * (z < 20), self.muscle_hu)
            canvas.paint(
                coverage(ellipsoid_rho(scaled_points, (side * 26, 76), (22.0, 15.0)), 17.0, BLUR), self.muscle_hu
            )
        disc = np.abs((z / 32.0) - np.rint(z / 32.0)) * 32.0 < 4.0
        body = ellipsoid_rho(scaled_points, (0, 46), (22.0, 17.0), 2.4)
        canvas.paint(coverage(body, 19.0, BLUR), np.where(disc, 90.0, 420.0))
        canvas.paint(coverage(body * 1.2, 16.0, BLUR) * ~disc, 190.0)
        arch = ellipsoid_rho(scaled_points, (0, 74), (19.0, 13.0))
        canvas.paint(coverage(arch, 15.0, BLUR) * ~disc, 380.0)
        canvas.paint(coverage(ellipsoid_rho(scaled_points, (0, 88), (4.5, 13.0)), 5.0, BLUR) * ~disc, 350.0)
        canvas.paint(coverage(ellipsoid_rho(scaled_points, (0, 71), (10.0, 8.0)), 9.0, BLUR), 25.0)
        canvas.paint(coverage(ellipsoid_rho(scaled_points, (10, 20), (10.5, 10.5)), 10.5, BLUR), self.vessel_hu)
        canvas.paint(coverage(ellipsoid_rho(scaled_points, (-17, 18), (12.0, 9.0)), 10.0, BLUR), self.vessel_hu - 20.0)

    def _draw_lungs(self, canvas: Canvas, scaled_points: Points, cavity: Array) -> None:
        x, y, z = scaled_points
        for side in (-1, 1):
            top = 84.0 + self.shift["dome"][side] - ((x - side * 52.0) / 10.0) ** 2 - ((y - 4.0) / 10.0) ** 2
            above = np.clip(0.5 + (z - np.maximum(top, 30.0)) / BLUR, 0.0, 1.0) * (side * x > 6.0) * (y < 62.0)
            canvas.paint(above * cavity, -860.0)
        canvas.paint(
            coverage(ellipsoid_rho(scaled_points, (16, -28, 104), (46.0, 36.0, 40.0)), 40.0, BLUR) * cavity,
            self.vessel_hu - 40.0,
        )


# Files

CLASSES = ("spleen",)
LABEL_DESCRIPTION = "spleen labels"  # description of series that contain labels instead of a DICOM-SEG
ORIGINAL, LABEL_TYPE = ("ORIGINAL", "PRIMARY", "AXIAL"), ("DERIVED", "SECONDARY", "AXIAL")
OBLIQUE, TURN = 3, (6.0, 14.0)  # every eighth patient is rotated by these degrees about the z and the x axis
LABEL_SERIES = 2  # the labels of every fourth patient are stored as a second series


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    - `dicom/train/{patient}/{study}/{8 digits}`: a CT series (int16, RescaleIntercept -1024) of each patient. Three of
      four patients have a DICOM-SEG of the spleen; the fourth has a second series `spleen labels` with values 0 and 1.
      Some studies also have a localiser or a second reconstruction without labels;
    - `dicom/test/{patient}/{study}/{8 digits}`: CT series (some with a localiser), no labels;
    - `solution/{patient}.nii.gz`: the hidden truth of the test patients (uint8), on the grid of their CT.
    """
    (folder / "solution").mkdir()
    for index, patient in enumerate(shuffled_case_ids("PAT", cases + test_cases, seed)):
        write_patient(folder, patient.replace("_", "-"), index, index if index < cases else None, seed)


def write_patient(folder: Path, patient: str, index: int, train_index: int | None, seed: int) -> None:
    """Write the scan and the labels of one patient.

    Args:
        folder: folder of the phantoms.
        patient: id of the patient.
        index: index among all patients, which determines the anatomy.
        train_index: index among the training patients, which determines the kind of labels; None for a test patient.
        seed: seed of the phantoms.
    """
    rng = np.random.default_rng([seed, 4, index])
    anatomy = Abdomen(rng)
    grid = _draw_grid(rng, index)
    image, mask = simulate_ct(rng, anatomy, grid)
    part = "test" if train_index is None else "train"
    study = Study(folder / "dicom" / part / patient / f"{rng.integers(10**7, 10**8)}", patient, rng, seed)
    backwards = bool(index % 2)
    if index % 3 == 0:
        projection, localiser_grid = _project_localiser(grid, image)
        write_series(
            study, "localiser", "Topogram 0.6 T20s", localiser_grid, projection, ("ORIGINAL", "PRIMARY", "LOCALIZER")
        )
    write_series(study, "ct", f"ABD {grid.spacing[0]:g} B30f", grid, image, ORIGINAL, backwards)
    if train_index is None:
        write_nifti(folder / "solution" / f"{patient}.nii.gz", *grid.to_nifti(mask))
        return
    if train_index % 4 == LABEL_SERIES:
        write_series(study, "labels", LABEL_DESCRIPTION, grid, mask, LABEL_TYPE, not backwards, intercept=0)
    else:
        write_segmentation(study, "ct", grid, mask, backwards, all_frames=train_index % 3 == 1)
    if train_index % 5 == 1:  # a reconstruction with another kernel and field of view, without labels
        sharp_grid = SliceGrid.centred_at(
            np.array([20.0, 5.0, 0.0]), (grid.shape[0], 80, 80), (grid.spacing[0], 3.0, 3.0)
        )
        sharp, _ = simulate_ct(rng, anatomy, sharp_grid, noise=45.0)
        write_series(study, "sharp", f"ABD {grid.spacing[0]:g} B70f", sharp_grid, sharp, ORIGINAL, backwards)


def simulate_ct(
    rng: np.random.Generator, anatomy: Abdomen, grid: SliceGrid, noise: float | None = None
) -> tuple[Array, Array]:
    """Simulate a CT scan of an anatomy, and return the CT values and the mask of the spleen.

    Args:
        rng: random generator for the noise.
        anatomy: anatomy of the patient.
        grid: grid of the scan.
        noise: standard deviation of the noise in HU; None draws it from `rng`.

    Returns:
        Hounsfield units (slices, rows, columns) float64, and the spleen (slices, rows, columns) uint8.
    """
    values, mask = anatomy.render(grid.points())
    level = rng.uniform(14.0, 28.0) if noise is None else noise
    values = values + level * correlated_noise(rng, grid.shape, axes=(1, 2))
    return np.clip(np.rint(values), -1024, 3071), mask


def _draw_grid(rng: np.random.Generator, index: int) -> SliceGrid:
    """Draw the grid of a CT at random: 24 to 40 slices, in most cases 5 mm apart."""
    thick = float(rng.choice([5.0, 5.0, 5.0, 4.0, 6.0]))
    pixel = float(rng.choice([3.3, 3.5, 3.6, 3.8]))
    count = int(np.clip(rng.integers(140, 190) // thick, 24, 40))
    centre = rng.uniform((-8.0, -4.0, 4.0), (8.0, 14.0, 20.0))
    return SliceGrid.centred_at(
        centre, (count, 96, 96), (thick, pixel, pixel), TURN if index % 8 == OBLIQUE else (0.0, 0.0)
    )


def _project_localiser(grid: SliceGrid, image: Array) -> tuple[Array, SliceGrid]:
    """Return the frontal localiser of a scan, which is one image (1, rows, columns), and its grid."""
    axes = np.stack([grid.axes[1], -grid.axes[0], grid.axes[2]])  # slices go to the back, rows to the feet
    first = grid.position(grid.shape[0] - 1) + grid.axes[1] * grid.spacing[1] * (grid.shape[1] - 1) / 2
    projection = np.maximum(image, -1000.0).mean(axis=1)[None, ::-1]
    return projection, SliceGrid(
        (1, grid.shape[0], grid.shape[2]), (grid.spacing[1], grid.spacing[0], grid.spacing[2]), np.round(first, 4), axes
    )
