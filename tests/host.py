"""Functions that write small data sets for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition


def competition(root: Path, **changes: Any) -> Competition:
    """Return a 2D competition with one class; keyword arguments override its keys."""
    defaults: dict[str, Any] = {
        "name": "host",
        "root": str(root),
        "dimensions": 2,
        "classes": ["cell"],
        "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
    }
    return Competition.model_validate(defaults | changes)


def write_png(path: Path, array: np.ndarray) -> Path:
    """Write an image (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits as PNG, and return the path."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    assert cv2.imwrite(str(path), array)
    return path


def flip_png(path: Path) -> None:
    """Turn a PNG upside down, e.g. to get a different mask that is also valid."""
    import cv2

    assert cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[::-1])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    """Write an array as NIfTI without changing its values, and return the path.

    Args:
        path: the file.
        array: voxels.
        affine: affine (4, 4); the identity by default.
        **header: header fields: `zooms` (spacing), `units`, and `scale` (slope and intercept).
    """
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    if "zooms" in header:
        image.header.set_zooms(header["zooms"])
    if "units" in header:
        image.header.set_xyzt_units(header["units"])
    if "scale" in header:
        image.header.set_slope_inter(*header["scale"])
    nibabel.save(image, path)
    return path


def pictures(root: Path, ids: list[str], size: tuple[int, int] = (6, 8), seed: int = 0) -> None:
    """Write an image of noise `images/ID.png` and a mask `masks/ID.png` with a rectangle of label 1 for each id."""
    rng = np.random.default_rng(seed)
    for number, case_id in enumerate(ids):
        write_png(root / "images" / f"{case_id}.png", rng.integers(0, 255, size, dtype=np.uint8))
        mask = np.zeros(size, np.uint8)
        mask[: 1 + number % size[0], :2] = 1
        write_png(root / "masks" / f"{case_id}.png", mask)


def write_text(path: Path, text: str) -> Path:
    """Write a text file, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
