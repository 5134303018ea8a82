"""Measure the time to prepare 250, 500 and 1,000 small pictures: `python benchmarks/preparation.py [CASES …]`.

Each case is an RGB image of 64×64 pixels and its mask, both as PNG. The script prints three times per case: the
processor time in one process, the elapsed time with as many processes as `maskfold cv` uses, and the processor time if
the cache already contains all cases. None of these times should grow with the number of cases in the cache.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from competition.config.experiment import Experiment
from competition.data.cases import case_table
from competition.data.preprocessing import preprocess_cases

CASES = (250, 500, 1000)
SIZE = 64


def write_pictures(root: Path, count: int) -> None:
    """Write `count` images of smooth noise, and a mask for each of them."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(count):
        noise = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE, 3)), (0, 0), 4)
        cv2.imwrite(str(root / "images" / f"{number:06d}.png"), (128 + 400 * noise).clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(root / "masks" / f"{number:06d}.png"), (noise[..., 0] > 0).astype(np.uint8))


def experiment(root: Path) -> Experiment:
    """Return an experiment on the pictures in `root`."""
    return Experiment.model_validate(
        {
            "competition": {
                "name": "pictures",
                "root": str(root),
                "dimensions": 2,
                "classes": ["blob"],
                "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
            },
            "patch": {"size": [SIZE, SIZE]},
            "model": {"target": "segmentation_models_pytorch.Unet"},
            "loss": {"target": "monai.losses.DiceCELoss"},
        }
    )


def main() -> None:
    """Print the times to prepare a case, one line per number of cases."""
    print(f"{'cases':>7} {'one process':>12} {'all cores':>10} {'in the cache':>13}  ms a case")
    for count in [int(text) for text in sys.argv[1:]] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_pictures(root, count)
            exp = experiment(root)
            table = case_table(exp.competition, "train")
            preprocess_cases(table.iloc[:1], exp, root / "warm", 1)  # imports
            start = time.process_time()
            preprocess_cases(table, exp, root / "one", 1)
            one, start = time.process_time() - start, time.process_time()
            preprocess_cases(table, exp, root / "one", 1)
            again, start = time.process_time() - start, time.monotonic()
            preprocess_cases(table, exp, root / "all")
            every = time.monotonic() - start
        print(f"{count:7d} {1e3 * one / count:12.2f} {1e3 * every / count:10.2f} {1e3 * again / count:13.2f}")


if __name__ == "__main__":
    main()
