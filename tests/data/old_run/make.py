"""Make the test data in this folder with an older version of Maskfold; see README.md.

    python make.py FOLDER MASKFOLD

FOLDER must not exist; MASKFOLD is the command of the older version.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np

SIZE = 32
COMPETITION = """\
name: shapes
root: data
dimensions: 2
classes: [disc, bar]
train: {images: "images/{id}.png", masks: "masks/{id}.png"}
test: {images: "test/{id}.png"}
metric: {name: dice, average: case_class, both_empty: 1.0}
submission:
  sample: sample_submission.csv
  columns: {id: id, class: class, mask: predicted}
  rle: {order: column, base: 1, empty: ""}
"""
EXPERIMENT = """\
competition: competition.yaml
seed: 7
folds: {k: 2}
prepare: {intensity: zscore}
patch: {size: [32, 32], foreground: 0.5}
augment: {preset: light}
model:
  target: competition.model.unet.UNet
  args: {spatial_dims: 2, channels: [4, 8], dropout: 0.0}
loss: {target: monai.losses.DiceCELoss, args: {include_background: false}}
optimizer: {target: torch.optim.AdamW, args: {lr: 1.0e-2}}
"""
FINISHED = """\
schedule: {name: onecycle}
training: {epochs: 2, steps_per_epoch: 40, batch_size: 4, precision: fp32, ema: 0.9, validate_every: 1}
postprocess: {steps: [{remove_small: 4}]}
run: {threads: 1}
"""
STOPPED = """\
schedule: {name: cosine}
training: {epochs: 4, steps_per_epoch: 40, batch_size: 4, precision: fp32, ema: 0.9, validate_every: 1}
run: {threads: 1}
"""


def draw_case(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a uint8 image (H, W) with a bright disc and a dark bar, and its labels."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((SIZE, SIZE), np.uint8)
    top, left = generator.integers(0, SIZE - 14, size=2)
    labels[top : top + 4, left : left + 14] = 2
    centre, radius = generator.integers(8, SIZE - 8, size=2), generator.integers(4, 7)
    labels[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2] = 1
    image = np.array([110, 200, 40])[labels] + generator.normal(0, 12, size=labels.shape)
    return image.clip(0, 255).astype(np.uint8), labels


def make_competition(root: Path) -> None:
    """Write eight training cases, three test cases and a sample submission."""
    generator = np.random.default_rng(5)
    for name in ("images", "masks", "test"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        image, labels = draw_case(generator)
        cv2.imwrite(str(root / "images" / f"case_{number}.png"), image)
        cv2.imwrite(str(root / "masks" / f"case_{number}.png"), labels)
    lines = ["id,class,predicted"]
    for number in range(3):
        cv2.imwrite(str(root / "test" / f"test_{number}.png"), draw_case(generator)[0])
        lines += [f"test_{number},{name}," for name in ("disc", "bar")]
    (root / "sample_submission.csv").write_text("\n".join(lines) + "\n")


def keep_small_files(folder: Path) -> None:
    """Pack the bundle into a tar file, and delete all files that the tests do not read."""
    with tarfile.open(folder / "bundle.tar.xz", "w:xz") as packed:
        packed.add(folder / "bundle", "bundle")
    for name in ("bundle", "mlruns/artifacts"):
        shutil.rmtree(folder / name)
    for pattern in ("mlflow.db", "runs/*/*/environment", "runs/*/*/fold_*/pictures", "runs/*/*/fold_*/curves.png"):
        for path in (folder / "mlruns").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for fold in (folder / "mlruns" / "runs" / "shapes-unet").glob("*/fold_*"):
        for name in ("last.pt", "best.safetensors"):
            (fold / name).unlink()


def main(folder: Path, command: str) -> None:
    """Make a finished run with submission, predictions and bundle, and a run that was stopped.

    Args:
        folder: a new folder for the files.
        command: path of the command `maskfold` of the older version.
    """
    make_competition(folder / "data")
    (folder / "competition.yaml").write_text(COMPETITION)
    (folder / "unet.yaml").write_text(EXPERIMENT + FINISHED)
    (folder / "stopped.yaml").write_text(EXPERIMENT + STOPPED)
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def maskfold(*words: str) -> str:
        done = subprocess.run([command, *words], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return done.stdout

    maskfold("cv", "unet.yaml")
    expected = folder / "expected"
    expected.mkdir()
    (expected / "cv.txt").write_text(maskfold("cv", "unet.yaml"))
    maskfold("submit", "unet.yaml", "-o", "expected/submission.csv")
    maskfold("predict", "unet.yaml", "--images", "data/test", "-o", "expected/predictions", "--pictures", "0")
    maskfold("export", "unet.yaml", "-o", "bundle")

    # Make the same run twice. The first one is not disturbed; its values are those that a resumed run must reach. The
    # second one is stopped after its second epoch.
    maskfold("cv", "stopped.yaml", "folds.run=[0]")
    run = next((folder / "mlruns" / "runs" / "shapes-stopped").iterdir())
    for name in ("metrics.jsonl", "scores.csv"):
        shutil.copy(run / "fold_0" / name, expected / f"stopped_{name}")
    shutil.rmtree(run)
    words = [command, "cv", "stopped.yaml", "folds.run=[0]"]
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    metrics = run / "fold_0" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"epoch": 2' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 143:
        sys.exit("the run ended before it was stopped; use a slower machine or more steps")
    keep_small_files(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
