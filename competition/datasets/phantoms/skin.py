"""Make phantoms of dermatoscopy: colour images of mixed sizes and aspect ratios with one skin lesion each.

Unlike real data, the images are drawn and small (180 to 420 pixels per side instead of thousands). These properties
are as in real data: JPEG, mixed aspect ratios, skin tones, uneven illumination, dark corners, hairs, ruler marks, and
bubbles. Some spots are not lesions. Lesions are darker or redder than the surrounding skin, or hardly different from
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from competition.datasets.demo import shuffled_case_ids, write_png, write_tables
from competition.datasets.phantoms.shapes import Array, Points, bias_field, blur_along, smooth_field, window_around

CLASSES = ("lesion",)
SIDES = (180, 420)  # shortest and longest side, pixels
# Ratios of width to height of the images, used one after the other.
RATIOS = ((4, 3), (3, 2), (1, 1), (4, 3), (3, 4), (16, 9), (5, 4), (2, 3))
QUALITY = 90  # quality of the JPEG
TONES = np.array(
    [[236, 199, 178], [226, 178, 152], [222, 160, 140], [205, 150, 118], [176, 122, 92], [141, 93, 68], [108, 71, 54]],
    np.float64,
)  # RGB, from light to dark
PIGMENTS = np.array(
    [[0.55, 0.42, 0.36], [0.70, 0.55, 0.46], [0.45, 0.40, 0.42], [0.86, 0.62, 0.60], [0.80, 0.70, 0.62]]
)


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    The files are `Train/Image/{id}.jpg` (RGB) with `Train/Mask/{id}.png` (uint8, 0 and 255), `Test/Image/{id}.jpg`,
    `sample_submission.csv` and `solution.csv` (hidden truth). The tables have the columns id and rle.
    """
    for part in ("Train/Image", "Train/Mask", "Test/Image"):
        (folder / part).mkdir(parents=True)
    truth: dict[str, Array] = {}
    for index, case in enumerate(shuffled_case_ids("skin", cases + test_cases, seed)):
        colours, mask = draw_image(np.random.default_rng([seed, 6, index]), RATIOS[index % len(RATIOS)])
        if index < cases:
            write_png(folder / "Train" / "Mask" / f"{case}.png", mask * np.uint8(255))
        else:
            truth[case] = mask
        _write_jpg(folder / ("Train" if index < cases else "Test") / "Image" / f"{case}.jpg", colours)
    write_tables(folder, truth, CLASSES, seed, columns=("id", "rle"))


def draw_image(rng: np.random.Generator, ratio: tuple[int, int] = (4, 3)) -> tuple[Array, Array]:
    """Draw one photograph of skin, and the mask of its lesion.

    Args:
        rng: source of all randomness.
        ratio: approximate ratio of width to height.

    Returns:
        The image (H, W, 3) uint8, RGB, before JPEG compression, and the mask of its lesion (H, W) uint8, 0 or 1.
    """
    height, width = _draw_size(rng, ratio)
    short = min(height, width)
    # points are in hundredths of the short side, so that the content does not depend on the image size
    y = ((np.arange(height) - (height - 1) / 2) * 100.0 / short)[:, None]
    x = ((np.arange(width) - (width - 1) / 2) * 100.0 / short)[None, :]
    points = (y, x)
    skin = _draw_tone(rng) * (
        1.0 + 0.03 * smooth_field(rng, points, 30.0)[..., None] + 0.05 * _draw_furrows(rng, points)[..., None]
    )
    skin = skin * np.exp(smooth_field(rng, points, 45.0)[..., None] * (0.0, -0.05, -0.05))  # red patches
    _draw_spots(rng, skin, points)
    mask = _draw_lesion(rng, skin, points)
    _draw_hairs(rng, skin, points)
    _draw_bubbles(rng, skin, points)
    illumination = bias_field(rng, points, rng.uniform(0.55, 0.75), 1.05) * _draw_vignette(rng, points)
    colours = skin * illumination[..., None]
    _draw_ruler(rng, colours, points)
    noise = blur_along(rng.normal(size=(height, width, 3)), axes=(0, 1)) * rng.uniform(4.0, 10.0)
    return np.clip(np.rint(colours + noise), 0, 255).astype(np.uint8), mask


def _draw_size(rng: np.random.Generator, ratio: tuple[int, int]) -> tuple[int, int]:
    """Draw height and width in pixels at random, within `SIDES`."""
    share = ratio[0] / ratio[1] * rng.uniform(0.97, 1.03)
    longest = rng.integers(max(280, int(SIDES[0] * max(share, 1 / share)) + 1), SIDES[1] + 1)
    height, width = (longest, longest * share) if share < 1 else (longest / share, longest)
    return int(np.clip(round(height), *SIDES)), int(np.clip(round(width), *SIDES))


def _draw_tone(rng: np.random.Generator) -> Array:
    """Draw a skin colour (3,) at random, interpolated in `TONES`; light skin is more frequent, as in real archives."""
    position = (len(TONES) - 1.001) * rng.random() ** 1.6
    low = int(position)
    return np.asarray(TONES[low] + (position - low) * (TONES[low + 1] - TONES[low])) * rng.uniform(0.93, 1.05, 3)


def _draw_furrows(rng: np.random.Generator, points: Points) -> Array:
    """Return a random field (H, W) whose low values are the fine lines of the skin's surface."""
    return np.abs(smooth_field(rng, points, 3.0, count=4)) - 0.8


def _blob_rho(rng: np.random.Generator, points: Points, centre: Array, radius: float, ragged: float) -> Array:
    """Return `rho` (0 at the centre, 1 at the border) of a stretched disc with an irregular border."""
    y, x = points[0] - centre[0], points[1] - centre[1]
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    a = (np.cos(angle) * y + np.sin(angle) * x) * stretch
    b = (np.cos(angle) * x - np.sin(angle) * y) / stretch
    edge = (
        1.0
        + ragged * smooth_field(rng, points, 0.55 * radius, count=8)
        + 0.4 * ragged * smooth_field(rng, points, 0.2 * radius, count=6)
    )
    return np.sqrt(a * a + b * b) / (radius * np.clip(edge, 0.5, 1.6))


def _draw_spots(rng: np.random.Generator, skin: Array, points: Points) -> None:
    """Draw structures that are background: pigmented spots, and scratches that are as red as some lesions."""
    half = [np.abs(p).max() for p in points]
    for _ in range(rng.integers(0, 9)):
        centre, radius = rng.uniform(-1, 1, 2) * half, rng.uniform(1.2, 3.2)
        crop, crop_points = _crop_around(skin, points, centre, 3.0 * radius)
        rho = _blob_rho(rng, crop_points, centre, radius, 0.1)
        _tint(crop, np.clip(2.0 * (1.15 - rho), 0.0, 1.0), rng.uniform(0.62, 0.85) * np.array([1.06, 0.97, 0.92]))
    for _ in range(rng.integers(0, 3)):
        rho = _blob_rho(rng, points, rng.uniform(-1, 1, 2) * half, rng.uniform(9.0, 20.0), 0.3)
        _tint(skin, 0.6 * np.clip(1.3 - rho, 0.0, 1.0), np.array([1.0, 0.78, 0.76]))


def _draw_lesion(rng: np.random.Generator, skin: Array, points: Points) -> Array:
    """Draw the lesion; return its mask (H, W) uint8, which has one component without holes."""
    half = np.array([np.abs(p).max() for p in points])
    radius = rng.choice([rng.uniform(11.0, 18.0), rng.uniform(17.0, 28.0), rng.uniform(26.0, 40.0)])
    centre = rng.normal(0.0, 0.2, 2) * np.maximum(half - 0.6 * radius, 5.0)
    rho = _blob_rho(rng, points, centre, radius, rng.uniform(0.05, 0.13))
    mask = _largest_component(rho < 1.0)
    sharp = rng.uniform(3.0, 14.0)  # from a blurred to a sharp border
    opacity = np.clip(0.5 + (1.0 - rho) * sharp, 0.0, 1.0)
    pigment = PIGMENTS[rng.integers(len(PIGMENTS))] * rng.uniform(0.92, 1.1)
    strength = rng.uniform(0.55, 1.0) * (1.0 + 0.22 * smooth_field(rng, points, 0.5 * radius))
    network = rng.uniform(0.0, 0.25) * np.abs(smooth_field(rng, points, 2.2, count=5))
    _tint(skin, opacity * np.clip(strength + network, 0.15, 1.2), pigment)
    for _ in range(rng.integers(0, 4)):  # darker, bluish or pale regions in the lesion
        spot = _blob_rho(rng, points, centre + rng.normal(0, 0.4, 2) * radius, radius * rng.uniform(0.15, 0.4), 0.2)
        factor = rng.choice([0.6, 0.72, 1.3]) * np.array([[0.95, 1.0, 1.08], [1.0, 1.0, 1.0]])[rng.integers(2)]
        _tint(skin, opacity * np.clip(2.5 * (1.2 - spot), 0.0, 1.0), factor)
    return mask.astype(np.uint8)


def _draw_hairs(rng: np.random.Generator, skin: Array, points: Points) -> None:
    """Draw long, bent, dark or light hairs; a third of the images have many hairs."""
    value = 0.3 if rng.random() < 0.8 else 1.35
    factor = np.ones(skin.shape[:2])
    for _ in range(rng.integers(8, 26) if rng.random() < 0.35 else rng.integers(0, 6)):
        start, angle = rng.uniform(-70.0, 70.0, 2), rng.uniform(0, np.pi)
        y, x = points[0] - start[0], points[1] - start[1]
        along = np.cos(angle) * x + np.sin(angle) * y
        across = np.cos(angle) * y - np.sin(angle) * x - rng.uniform(-0.006, 0.006) * along * along
        line = np.clip(1.3 - np.abs(across) / rng.uniform(0.35, 0.7), 0.0, 1.0) * (
            np.abs(along) < rng.uniform(20.0, 90.0)
        )
        factor *= 1.0 + 0.85 * line * (value - 1.0)
    skin *= factor[..., None]


def _draw_bubbles(rng: np.random.Generator, skin: Array, points: Points) -> None:
    """Draw bubbles of the contact gel as bright rims."""
    for _ in range(rng.integers(0, 5) if rng.random() < 0.3 else 0):
        centre, radius = rng.uniform(-60.0, 60.0, 2), rng.uniform(1.5, 6.0)
        crop, (y, x) = _crop_around(skin, points, centre, radius + 1.0)
        rho = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2)
        _tint(crop, np.clip(1.0 - np.abs(rho - radius) / 0.8, 0.0, 1.0), np.full(3, 1.3))


def _draw_vignette(rng: np.random.Generator, points: Points) -> Array:
    """Return the vignette (H, W): a factor in [0, 1] that falls towards the corners.

    Some images are almost black outside the lens.
    """
    half = [np.abs(p).max() for p in points]
    centre = rng.normal(0.0, 3.0, 2)
    distance = np.sqrt((points[0] - centre[0]) ** 2 + (points[1] - centre[1]) ** 2)
    corner = float(np.sqrt(half[0] ** 2 + half[1] ** 2))
    factor = 1.0 - rng.uniform(0.1, 0.5) * (distance / corner) ** 3
    if rng.random() < 0.3:
        lens = corner * rng.uniform(0.84, 0.97)
        factor = factor * np.clip((lens - distance) / 1.5, 0.04, 1.0)
    return np.asarray(factor)


def _draw_ruler(rng: np.random.Generator, colours: Array, points: Points) -> None:
    """Draw ruler marks along one side, in a quarter of the images."""
    if rng.random() > 0.25:
        return
    along, across = points if rng.random() < 0.5 else points[::-1]
    depth = rng.choice([-1.0, 1.0]) * across + np.abs(across).max()
    pitch = rng.uniform(4.0, 7.0)
    number = np.rint(along / pitch)
    mark = (np.abs(along - number * pitch) < 0.45) & (depth > 2.0) & (depth < 2.0 + np.where(number % 5 == 0, 8.0, 4.5))
    colours[mark] = colours[mark] * 0.1 + rng.choice([0.0, 225.0])


def _crop_around(skin: Array, points: Points, centre: Array, reach: float) -> tuple[Array, Points]:
    """Return a view of the skin's colours around a centre, and the points of the view."""
    rows, columns = window_around(points, centre, reach)
    return skin[rows, columns], (points[0][rows], points[1][:, columns])


def _tint(skin: Array, opacity: Array, factor: Array) -> None:
    """Multiply the colours (H, W, 3) by `factor` (3,), weighted by `opacity` (H, W) in [0, 1]."""
    skin *= 1.0 + opacity[..., None] * (factor - 1.0)


def _largest_component(mask: Array) -> Array:
    """Return the largest component of a mask, with its holes filled.

    An irregular border may split off small components.
    """
    from scipy.ndimage import binary_fill_holes, label

    regions, _ = label(mask)
    sizes = np.bincount(regions.reshape(-1))
    sizes[0] = 0
    return np.asarray(binary_fill_holes(regions == sizes.argmax()))


def _write_jpg(path: Path, colours: Array) -> None:
    """Write an RGB array (H, W, 3) uint8 as JPEG."""
    import cv2

    _, data = cv2.imencode(".jpg", colours[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    path.write_bytes(data.tobytes())
