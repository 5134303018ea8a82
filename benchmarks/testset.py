"""Resident memory while a large test set goes from pictures to the CSV: it has to be flat after the first hundred.

    python benchmarks/testset.py            # 2,000 pictures of 512×512, two folds of a toy network
    python benchmarks/testset.py --cases 300

Prints the memory after each tenth of the pictures, the largest growth after the first hundred, and the figures of the file.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

YAML = """\
name: many
root: .
dimensions: 2
classes: [blob]
train: {images: "train/{id}.png", masks: "masks/{id}.png"}
test: {images: "test/{id}.png"}
submission: {sample: sample.csv, columns: {id: id, class: null, mask: predicted}}
"""
EXPERIMENT = """\
competition: competition.yaml
folds: {k: 2}
patch: {size: [512, 512]}
model: {target: monai.networks.nets.UNet, args: {spatial_dims: 2, channels: [4, 8, 8], strides: [2, 2]}}
loss: {target: monai.losses.DiceCELoss}
training: {epochs: 1, steps_per_epoch: 2, batch_size: 2, precision: fp32}
"""
BOUND = 64.0  # MiB that count as flat: what an allocator keeps or gives back


def paint(root: Path, cases: int) -> None:
    """Writes the competition."""
    generator = np.random.default_rng(0)
    for part in ("train", "masks", "test"):
        (root / part).mkdir()
    for number in range(cases + 4):
        noise = cv2.GaussianBlur(generator.normal(size=(512, 512)).astype(np.float32), (0, 0), 12)
        blobs = noise > noise.std()
        picture = np.clip(60 + 90 * blobs + generator.normal(0, 12, blobs.shape), 0, 255).astype(np.uint8)
        part = "train" if number < 4 else "test"
        cv2.imwrite(str(root / part / f"{part}_{number:05d}.png"), picture)
        if part == "train":
            cv2.imwrite(str(root / "masks" / f"train_{number:05d}.png"), blobs.astype(np.uint8))
    with open(root / "sample.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "predicted"), *((f"test_{n:05d}", "") for n in range(4, cases + 4))])
    (root / "competition.yaml").write_text(YAML)
    (root / "unet2d.yaml").write_text(EXPERIMENT)


def trained() -> Any:
    """A finished run of two steps a fold: what it predicts means nothing."""
    from competition.config import load_experiment
    from competition.training.cv import prepare_run, run_cv
    from competition.training.runs import open_run

    run = open_run(load_experiment("unet2d.yaml"), "many-unet2d")
    prepare_run(run, lambda _: None)
    run_cv(run, lambda _: None)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    cases = parser.parse_args().cases
    process, seen = psutil.Process(), []

    def watched(rows: Iterator[Any], count: int) -> Iterator[Any]:
        for done, row in enumerate(rows):
            seen.append(process.memory_info().rss / 2**20)
            if done % max(1, count // 10) == 0:
                print(f"{done:6d} pictures: {seen[-1]:7.0f} MiB", flush=True)
            yield row

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        paint(Path(), cases)
        from competition.submission.submit import submit

        run, began = trained(), time.monotonic()
        done = submit([run], progress=watched)
        print(
            f"{cases} pictures in {time.monotonic() - began:.0f} s; {done.verdict.rows} rows, {done.verdict.empty} empty, "
            f"{done.path.stat().st_size / 2**20:.1f} MiB"
        )
        os.chdir("/")
    growth = max(seen[100:]) - max(seen[:101])
    print(f"after the first hundred the memory rose by {growth:.1f} MiB (bar {BOUND:.0f})")
    return 0 if growth < BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
