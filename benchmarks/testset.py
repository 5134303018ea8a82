"""Check that the resident memory of `submit` does not grow after the first hundred images of a large test set.

    python benchmarks/testset.py            # 2,000 images of 512×512, two folds of a toy network
    python benchmarks/testset.py --cases 300

The script prints the memory after each 10 % of the images, the growth after the first hundred images, and the size of
the CSV.
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
MAXIMUM_GROWTH = 64.0  # MiB, the normal variation of an allocator


def write_competition(root: Path, cases: int) -> None:
    """Write images, masks and YAML files of a competition."""
    rng = np.random.default_rng(0)
    for part in ("train", "masks", "test"):
        (root / part).mkdir()
    for number in range(cases + 4):
        noise = cv2.GaussianBlur(rng.normal(size=(512, 512)).astype(np.float32), (0, 0), 12)
        blobs = noise > noise.std()
        image = np.clip(60 + 90 * blobs + rng.normal(0, 12, blobs.shape), 0, 255).astype(np.uint8)
        part = "train" if number < 4 else "test"
        cv2.imwrite(str(root / part / f"{part}_{number:05d}.png"), image)
        if part == "train":
            cv2.imwrite(str(root / "masks" / f"train_{number:05d}.png"), blobs.astype(np.uint8))
    with open(root / "sample.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "predicted"), *((f"test_{n:05d}", "") for n in range(4, cases + 4))])
    (root / "competition.yaml").write_text(YAML)
    (root / "unet2d.yaml").write_text(EXPERIMENT)


def train() -> Any:
    """Return a finished run of two steps per fold; its predictions are arbitrary."""
    from competition.config.loading import load_experiment
    from competition.training.cross_validate import open_run, prepare_run, run_cv

    run = open_run(load_experiment("unet2d.yaml"), "many-unet2d")
    prepare_run(run)
    run_cv(run)
    return run


def main() -> int:
    """Print the memory; return the exit status, which is 1 if the memory grows by `MAXIMUM_GROWTH` or more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    cases = parser.parse_args().cases
    process = psutil.Process()
    memory: list[float] = []

    def record_memory(rows: Iterator[Any], count: int) -> Iterator[Any]:
        """Yield the rows of the `count` test cases, and record the memory before each of them."""
        for done, row in enumerate(rows):
            memory.append(process.memory_info().rss / 2**20)
            if done % max(1, count // 10) == 0:
                print(f"{done:6d} images: {memory[-1]:7.0f} MiB", flush=True)
            yield row

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_competition(Path(), cases)
        from competition.submission.submit import submit

        run, start = train(), time.monotonic()
        submission = submit([run], progress=record_memory)
        print(
            f"{cases} images in {time.monotonic() - start:.0f} s; {submission.validation.rows} rows, "
            f"{submission.validation.empty} empty, {submission.path.stat().st_size / 2**20:.1f} MiB"
        )
        os.chdir("/")
    growth = max(memory[100:]) - max(memory[:101])
    print(f"growth of memory after the first hundred images: {growth:.1f} MiB (maximum {MAXIMUM_GROWTH:.0f})")
    return 0 if growth < MAXIMUM_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
