"""A competition folder with one fault of each kind in otherwise valid images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.host import write_png

SOUND = tuple(f"{patient}_{slide}" for patient in "pqrs" for slide in range(3))  # p_0 … s_2
SIZE = (48, 64)


def picture(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy grey image with two bright discs, and its mask (1 in the discs)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    image = 90 + 400 * gaussian_filter(rng.normal(size=size), 4) + rng.normal(0, 4, size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for centre in (rng.uniform((8, 8), (size[0] - 8, 24)), rng.uniform((8, 40), (size[0] - 8, size[1] - 8))):
        mask[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= 36] = 1
    return np.clip(image + 80 * mask, 0, 255).astype(np.uint8), mask


def sound(root: Path, ids: tuple[str, ...] = SOUND, test: tuple[str, ...] = ("t_0", "t_1", "t_2")) -> Path:
    """Write `images/ID.png`, `masks/ID.png` and `test/ID.png` without faults; return the root."""
    for number, case_id in enumerate(ids):
        write(root, case_id, *picture(number))
    for number, case_id in enumerate(test):
        write_png(root / "test" / f"{case_id}.png", picture(500 + number)[0])
    return root


def write(root: Path, case_id: str, image: np.ndarray, mask: np.ndarray | None) -> None:
    """Write the image of a training case, and its mask unless it is None."""
    write_png(root / "images" / f"{case_id}.png", image)
    if mask is not None:
        write_png(root / "masks" / f"{case_id}.png", mask)


def plant(root: Path) -> Path:
    """Write a competition folder with one fault of each kind; the name of a faulty case says what is wrong with it."""
    sound(root)
    image, mask = picture(0)
    shutil.copy(root / "images" / "p_0.png", root / "images" / "copy_1.png")  # the same image under another id
    shutil.copy(root / "masks" / "p_0.png", root / "masks" / "copy_1.png")
    shutil.copy(root / "images" / "q_0.png", root / "images" / "torn_1.png")  # the same image, another mask
    write_png(root / "masks" / "torn_1.png", mask)
    near, near_mask = picture(7)  # r_1, brighter and re-encoded
    write(root, "near_1", np.clip(near.astype(float) * 1.06 + 6, 0, 255).astype(np.uint8), near_mask)
    write(root, "size_1", picture(20)[0], picture(20, (40, 64))[1])
    seven = picture(21)[1]
    seven[:3, :5] = 7
    write(root, "seven_1", picture(21)[0], seven)
    write(root, "cut_1", *picture(22))
    path = root / "images" / "cut_1.png"
    path.write_bytes(path.read_bytes()[:400])
    write(root, "empty_1", picture(23)[0], np.zeros(SIZE, np.uint8))
    write(root, "nomask_1", picture(24)[0], None)
    write_png(root / "masks" / "noimage_1.png", mask)
    write_png(root / "test" / "s_7.png", picture(30)[0])  # the patient s is in train too
    shutil.copy(root / "images" / "s_1.png", root / "test" / "t_9.png")  # a training image in the test set
    return root
