"""A synthetic competition like the Data Science Bowl of 2018: touching discs, given as one row of run lengths each."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from competition.rle import encode
from competition.rle_text import RleFormat

YAML = """\
name: discs
root: {root}
dimensions: 2
classes: [disc]
instances: true
train: {{images: "train/{{id}}.png", rle: train.csv, columns: {{id: ImageId, class: null, mask: EncodedPixels}}}}
test: {{images: "test/{{id}}.png"}}
metric: {{name: mean_ap}}
submission:
  sample: sample.csv
  columns: {{id: ImageId, class: null, mask: EncodedPixels}}
"""
EXPERIMENT = """\
competition: competition.yaml
prepare: {boundary: 1}
patch: {size: [32, 32]}
model: {target: monai.networks.nets.BasicUNet}
loss: {target: monai.losses.DiceCELoss}
postprocess: {}
"""


def make_discs(root: Path, cases: int = 8, tests: int = 3) -> None:
    """Write a competition whose images (40×48 pixels) contain two pairs of touching discs each.

    Args:
        root: folder of the competition.
        cases: number of training images.
        tests: number of test images.
    """
    generator = np.random.default_rng(5)
    rows: list[str] = []
    for part, count in (("train", cases), ("test", tests)):
        (root / part).mkdir(parents=True)
        for number in range(count):
            name = f"{part}_{number}"
            discs = _discs(generator)
            picture = (80 * np.any(discs, axis=0) + generator.integers(0, 40, discs[0].shape)).astype(np.uint8)
            cv2.imwrite(str(root / part / f"{name}.png"), picture)
            if part == "train":
                rows += [f"{name},{encode(disc, RleFormat())}" for disc in discs]
    (root / "train.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    (root / "sample.csv").write_text("\n".join(["ImageId,EncodedPixels", *(f"test_{n}," for n in range(tests))]) + "\n")
    (root / "competition.yaml").write_text(YAML.format(root=root))
    (root / "unet2d.yaml").write_text(EXPERIMENT)


def _discs(generator: np.random.Generator) -> list[np.ndarray]:
    """Return the masks (40, 48) bool of two pairs of touching discs that do not overlap."""
    y, x = np.ogrid[:40, :48]
    found = []
    for top in (10, 29):
        radius = int(generator.integers(6, 8))
        left = int(generator.integers(9, 14))
        for middle in (left, left + 2 * radius):
            disc = (y - top) ** 2 + (x - middle) ** 2 <= radius**2
            for other in found:
                disc = disc & ~other
            found.append(disc)
    return found
