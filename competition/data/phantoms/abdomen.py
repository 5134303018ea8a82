"""A drawn upper abdomen in Hounsfield units: the spleen among neighbours that are as bright as it is.

Coordinates are DICOM's: x towards the patient's left, y towards the back, z towards the head, in mm around the middle of
the body. The same anatomy can be seen on any grid, so that two reconstructions of one patient agree.
"""

from __future__ import annotations

import numpy as np

from competition.data.phantoms.shapes import Array, Canvas, Points, cover, ellipsoid, waves

AIR, FAT, FOAM = -1000.0, -100.0, -900.0
BLUR = 4.0  # mm: the slope at an organ's surface


class Abdomen:
    """One patient: where the organs lie and how bright they are."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draws the anatomy's numbers; `at` draws its voxels."""
        self.texture = int(rng.integers(2**31))  # of the fields at points: the same for every grid
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
        self.shift = {name: rng.uniform(-6.0, 6.0, 3) for name in
                      ("spleen", "hilum", "liver", "lobe", "stomach", "left", "right", "dome")}
        self.shift["spleen"] += rng.uniform((-4.0, -8.0, -14.0), (2.0, 4.0, 14.0))
        self.loops = [(rng.uniform((-75.0, -60.0, -110.0), (75.0, 5.0, -15.0)), rng.uniform(13.0, 24.0, 3), rng.uniform(10.0, 80.0),
                       bool(rng.random() < 0.4)) for _ in range(14)]

    def at(self, points: Points) -> tuple[Array, Array]:
        """Draw the anatomy on a grid, without noise.

        Args:
            points: x, y, z of each voxel in mm, three arrays that broadcast to (*spatial).

        Returns:
            Hounsfield units (*spatial) float64, and the spleen (*spatial) uint8, 0 or 1.
        """
        rng = np.random.default_rng(self.texture)
        x, y, z = points
        canvas = Canvas(np.broadcast_shapes(x.shape, y.shape, z.shape), AIR)
        self._table(canvas, points)
        room = self._trunk(canvas, points, rng)
        places = tuple(p / self.size for p in points)
        self._bowel(canvas, places, room)
        self._liver(canvas, places, room, rng)
        self._stomach(canvas, places, room, rng)
        self._spleen(canvas, places, room, rng)
        self._kidneys(canvas, places, room, rng)
        self._lungs(canvas, places, room)
        self._spine(canvas, places)
        return canvas.values + 5.0 * waves(rng, points, 25.0) * (canvas.values > -300.0), canvas.labels

    def _table(self, canvas: Canvas, points: Points) -> None:
        x, y, _ = points
        below = y - self.body[1] - 3.0 - 10.0 * (x / 160.0) ** 2
        canvas.paint(cover(np.abs(below - 9.0) / 9.0, 9.0, BLUR) * (np.abs(x) < 145.0), FOAM)
        canvas.paint(cover(np.abs(below - 18.0) / 3.0, 3.0, BLUR) * (np.abs(x) < 145.0), 60.0)

    def _trunk(self, canvas: Canvas, points: Points, rng: np.random.Generator) -> Array:
        """Skin, fat, muscle, ribs and the fat within; gives the share of each voxel that is room for organs."""
        x, y, z = points
        outline = ellipsoid(points, (0, 0), self.body, 2.4) + 0.012 * waves(rng, points, 90.0)
        across = float(self.body.mean())
        canvas.paint(cover(outline, across, BLUR), 20.0)
        canvas.paint(cover(outline * across / (across - 4.0), across - 4.0, BLUR), FAT)
        wall = ellipsoid(points, (0, 2), self.body - self.fat, 2.3) + 0.012 * waves(rng, points, 70.0)
        reach = across - self.fat
        canvas.paint(cover(wall, reach, BLUR), self.muscle_hu)
        angle = np.arctan2(y, x)
        phase = 9.0 * np.abs(angle) / np.pi - z / 28.0  # ribs go down and forward
        rib = np.sqrt(((wall - 0.95) * reach / 4.0) ** 2 + ((phase - np.rint(phase)) * 28.0 / 5.5) ** 2)
        canvas.paint(cover(rib, 4.0, BLUR) * (np.abs(x) > 25.0) * (z > -70.0), 330.0)
        room = cover(wall * reach / (reach - 11.0), reach - 11.0, BLUR)
        canvas.paint(room, FAT)
        return room

    def _bowel(self, canvas: Canvas, places: Points, room: Array) -> None:
        for centre, radii, value, gas in self.loops:
            rho = ellipsoid(places, centre, radii)
            canvas.paint(room * cover(rho, radii.min(), BLUR), value)
            if gas:
                canvas.paint(room * cover(ellipsoid(places, centre - (0, radii[1] * 0.4, 0), radii * 0.55), 9.0, BLUR), -850.0)

    def _liver(self, canvas: Canvas, places: Points, room: Array, rng: np.random.Generator) -> None:
        wobble = 0.05 * waves(rng, places, 50.0)
        right = ellipsoid(places, self.shift["liver"] + (-62, -2, 18), (64.0, 66.0, 80.0)) + wobble
        left = ellipsoid(places, self.shift["lobe"] + (-4, -42, 38), (66.0, 30.0, 40.0)) + wobble
        canvas.paint(room * np.maximum(cover(right, 64.0, BLUR), cover(left, 30.0, BLUR)), self.liver_hu)
        for _ in range(5):  # its veins
            x0, y0, slope = rng.uniform(-90, -30), rng.uniform(-35, 25), rng.uniform(-0.6, 0.6, 2)
            x, y, z = places
            vein = np.sqrt((x - x0 - slope[0] * z) ** 2 + (y - y0 - slope[1] * z) ** 2) / 4.0
            canvas.paint(cover(vein, 4.0, BLUR) * (right < 0.85), self.vessel_hu)

    def _stomach(self, canvas: Canvas, places: Points, room: Array, rng: np.random.Generator) -> None:
        centre, radii = self.shift["stomach"] + (44, -24, 30), np.array([36.0, 36.0, 46.0])
        rho = ellipsoid(places, centre, radii) + 0.07 * waves(rng, places, 45.0)
        canvas.paint(room * cover(rho, 36.0, BLUR), self.spleen_hu - 25.0)
        inner = cover(rho * 36.0 / 31.0, 31.0, BLUR) * room
        canvas.paint(inner, self.stomach_hu)
        level = centre[1] - rng.uniform(2.0, 26.0)  # air lies in front, with a flat level
        canvas.paint(inner * np.clip(0.5 + (level - places[1]) / BLUR, 0.0, 1.0), -900.0)

    def _spleen(self, canvas: Canvas, places: Points, room: Array, rng: np.random.Generator) -> None:
        centre = self.shift["spleen"] + (86, 26, 26)
        rho = ellipsoid(places, centre, self.spleen_size, 2.2) + 0.07 * waves(rng, places, 55.0)
        hollow = ellipsoid(places, centre + self.shift["hilum"] * 0.6 - (33, 26, 2), self.spleen_size * (1.0, 0.85, 0.95))
        inside = cover(rho, 32.0, BLUR) * (1.0 - cover(hollow, 32.0, BLUR)) * room
        texture = 6.0 * waves(rng, places, 14.0)
        canvas.paint(inside, self.spleen_hu + texture, 1)
        x, y, z = places  # the splenic vein, from the hilum to the middle
        path = np.sqrt((y - 12.0 - 12.0 * np.sin(x / 25.0)) ** 2 + (z - centre[2] + 4.0) ** 2) / 4.5
        canvas.paint(cover(path, 4.5, BLUR) * (x > 0) * (x < centre[0] - 22.0) * (canvas.labels == 0), self.vessel_hu)

    def _kidneys(self, canvas: Canvas, places: Points, room: Array, rng: np.random.Generator) -> None:
        for name, middle in (("left", (54, 42, -36)), ("right", (-52, 42, -46))):
            centre = self.shift[name] + middle
            rho = ellipsoid(places, centre, (25.0, 22.0, 50.0)) + 0.05 * waves(rng, places, 40.0)
            cortex = cover(rho, 24.0, BLUR) * room
            canvas.paint(cortex, self.kidney_hu)
            inward = centre + ((-9.0 if name == "left" else 9.0), -3.0, 0.0)
            canvas.paint(cover(ellipsoid(places, inward, (11.0, 8.0, 26.0)), 10.0, BLUR) * cortex, -60.0)

    def _spine(self, canvas: Canvas, places: Points) -> None:
        x, y, z = places
        for side in (-1, 1):  # psoas and the muscles of the back
            psoas = ellipsoid((x, y), (side * 34, 40), (12.0, 14.0)) * np.where(z < -20, 1.0, 1.4)
            canvas.paint(cover(psoas, 12.0, BLUR) * (z < 20), self.muscle_hu)
            canvas.paint(cover(ellipsoid(places, (side * 26, 76), (22.0, 15.0)), 17.0, BLUR), self.muscle_hu)
        disc = np.abs((z / 32.0) - np.rint(z / 32.0)) * 32.0 < 4.0
        body = ellipsoid(places, (0, 46), (22.0, 17.0), 2.4)
        canvas.paint(cover(body, 19.0, BLUR), np.where(disc, 90.0, 420.0))
        canvas.paint(cover(body * 1.2, 16.0, BLUR) * ~disc, 190.0)
        arch = ellipsoid(places, (0, 74), (19.0, 13.0))
        canvas.paint(cover(arch, 15.0, BLUR) * ~disc, 380.0)
        canvas.paint(cover(ellipsoid(places, (0, 88), (4.5, 13.0)), 5.0, BLUR) * ~disc, 350.0)
        canvas.paint(cover(ellipsoid(places, (0, 71), (10.0, 8.0)), 9.0, BLUR), 25.0)
        canvas.paint(cover(ellipsoid(places, (10, 20), (10.5, 10.5)), 10.5, BLUR), self.vessel_hu)
        canvas.paint(cover(ellipsoid(places, (-17, 18), (12.0, 9.0)), 10.0, BLUR), self.vessel_hu - 20.0)

    def _lungs(self, canvas: Canvas, places: Points, room: Array) -> None:
        x, y, z = places
        for side in (-1, 1):
            top = 84.0 + self.shift["dome"][side] - ((x - side * 52.0) / 10.0) ** 2 - ((y - 4.0) / 10.0) ** 2
            above = np.clip(0.5 + (z - np.maximum(top, 30.0)) / BLUR, 0.0, 1.0) * (side * x > 6.0) * (y < 62.0)
            canvas.paint(above * room, -860.0)
        canvas.paint(cover(ellipsoid(places, (16, -28, 104), (46.0, 36.0, 40.0)), 40.0, BLUR) * room, self.vessel_hu - 40.0)
