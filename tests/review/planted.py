"""Plant faults in the masks of the 2D demo like those of a tired annotator."""

from __future__ import annotations

from pathlib import Path

import cc3d
import cv2
import numpy as np

from competition.review.findings import EXCHANGED, EXTRA, MISSING, SHIFTED, WRONG_CLASS

KINDS = (MISSING, MISSING, MISSING, WRONG_CLASS, WRONG_CLASS, WRONG_CLASS, SHIFTED, SHIFTED)
SHIFT = (13, -11)  # rows, columns
MIN_OBJECT = 150  # pixels of an object that is removed or renamed
EXTRA_RADIUS = 9


def plant_faults(root: Path, seed: int = 0, extra: bool = False) -> dict[str, str]:
    """Change ten masks of a demo competition.

    Three masks then lack an object, three have an object of the wrong class, two are shifted, and two are exchanged
    with each other.

    Args:
        root: folder of the competition.
        seed: seed of the choice of cases.
        extra: whether to draw an object that the image does not have into an eleventh mask.

    Returns:
        The kind of the fault of each changed case, by id.
    """
    masks = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((root / "masks").glob("*.png"))}
    generator = np.random.default_rng(seed)
    candidates = [name for name, mask in masks.items() if len(large_objects(mask)) >= 3]
    chosen = [str(name) for name in generator.permutation(candidates)]
    planted = dict(zip(chosen, KINDS, strict=False))
    for name, kind in planted.items():
        _change(masks[name], kind, generator)
    if extra:
        planted[chosen[len(KINDS) + 2]] = EXTRA
        _add_disc(masks[chosen[len(KINDS) + 2]])
    first, second = chosen[len(KINDS) : len(KINDS) + 2]
    height, width = np.minimum(masks[first].shape, masks[second].shape)
    for name in (first, second):  # cut to one size, because masks of another size are refused
        image = cv2.imread(str(root / "images" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image[:height, :width])
        planted[name] = EXCHANGED
    masks[first], masks[second] = masks[second][:height, :width], masks[first][:height, :width]
    for name in planted:
        cv2.imwrite(str(root / "masks" / f"{name}.png"), masks[name])
    return planted


def large_objects(mask: np.ndarray) -> list[np.ndarray]:
    """Return the masks (H, W) bool of the objects with at least `MIN_OBJECT` pixels, largest first."""
    objects = [
        labels == number
        for value in (1, 2)
        for labels, count in [cc3d.connected_components((mask == value).astype(np.uint8), return_N=True)]
        for number in range(1, count + 1)
    ]
    return sorted((one for one in objects if one.sum() >= MIN_OBJECT), key=lambda one: -int(one.sum()))


def _change(mask: np.ndarray, kind: str, generator: np.random.Generator) -> None:
    """Plant a fault of this kind (missing object, wrong class or shift) in a mask (H, W), in place."""
    if kind == SHIFTED:
        moved = np.zeros_like(mask)
        rows, columns = SHIFT
        moved[rows:, :columns] = mask[:-rows, -columns:]
        mask[:] = moved
        return
    objects = large_objects(mask)
    chosen = objects[int(generator.integers(len(objects)))]
    mask[chosen] = 0 if kind == MISSING else 3 - mask[chosen][0]


def _add_disc(mask: np.ndarray) -> None:
    """Draw a disc of class 1 at the point that is farthest from all objects."""
    distance = cv2.distanceTransform(np.pad(mask == 0, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    cv2.circle(mask, (int(column), int(row)), EXTRA_RADIUS, 1, -1)
