"""Measure how much the upload to MLflow slows down the epochs of a fold of the 3D demo.

    python benchmarks/tracking.py            # a few minutes; --pairs 12 for more
    python benchmarks/tracking.py --steps 4 --pairs 2 --tiny    # quick check that it runs

A fold trains in its own process. In the process of this script, a thread uploads the fold's metrics and pictures, or
does not run. The script compares blocks of epochs with and without this thread, in pairs of alternating order. As in
`maskfold cv`, the thread uploads each line and picture while the next epoch runs, and samples the system metrics.

The seconds of an epoch come from the fold's `metrics.jsonl`. The first epoch of a block is ignored, because the thread
then opens the database or uploads the rest of the previous block.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from competition.config.loading import load_experiment
from competition.datasets.demo import make_demo
from competition.runs.run import Run
from competition.tracking.sync import MlflowSync
from competition.training.cross_validate import make_jobs, open_run, prepare_run

ROOT = Path(__file__).resolve().parents[1]
MAXIMUM_RATIO = 1.02
TINY = [
    "patch.size=[16,16,16]",
    "model.target=monai.networks.nets.BasicUNet",
    "model.args={features: [4, 4, 4, 4, 4, 4], norm: [group, {num_groups: 2}]}",
]


def main() -> None:
    """Print the ratio of epoch times with and without tracking for each pair of blocks, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="steps per epoch; the demo experiment has 30")
    parser.add_argument("--counted", type=int, default=3, help="counted epochs per block")
    parser.add_argument("--tiny", action="store_true", help="use a toy network, to check that the benchmark runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run, fold = start(args.steps, args.tiny)
        try:
            measure(run, fold, args.pairs, args.counted)
        finally:
            fold.kill()
            fold.wait()


def start(steps: int, tiny: bool) -> tuple[Run, subprocess.Popen[bytes]]:
    """Start a fold of the 3D demo that trains until it is killed.

    Args:
        steps: training steps per epoch.
        tiny: whether to use a toy network.

    Returns:
        The run, and the process of the fold.
    """
    make_demo("3d", Path("data"), seed=0, cases=8, test_cases=1)
    exp = load_experiment(
        ROOT / "experiments" / "demo3d" / "unet3d.yaml",
        [
            "competition.root=data",
            "folds.k=2",
            "training.epochs=100000",
            f"training.steps_per_epoch={steps}",
            "training.budget_minutes=null",
            "training.validate_every=2",
            "training.pictures_every=2",
            *(TINY if tiny else []),
        ],
    )
    run = open_run(exp, "demo3d-tracking")
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True)
    (job.folder / "job.json").write_text(job.to_json())
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    return run, subprocess.Popen(
        [sys.executable, "-m", "competition.training.fold", str(job.folder / "job.json")],
        stdout=subprocess.DEVNULL,
        env=environment,
    )


def measure(run: Run, fold: subprocess.Popen[bytes], pairs: int, counted: int) -> None:
    """Print the ratio of the epoch times with and without tracking for each pair of blocks, and the median ratio.

    Args:
        run: the run.
        fold: process of the fold that trains.
        pairs: number of pairs of blocks.
        counted: number of epochs per block whose time is used.
    """
    metrics_file = run.member_folder(0, 0) / "metrics.jsonl"
    with MlflowSync(run.folder, run.exp):  # warm-up: import MLflow and create its database
        epochs(metrics_file, fold, 2)
    ratios, shares = [], []
    for pair in range(pairs):
        seconds: dict[bool, float] = {}
        for tracked in (True, False) if pair % 2 == 0 else (False, True):
            if tracked:
                with MlflowSync(run.folder, run.exp):
                    epochs(metrics_file, fold, 1)
                    before = time.process_time()
                    seconds[True] = statistics.mean(epochs(metrics_file, fold, counted))
                    shares.append((time.process_time() - before) / (counted * seconds[True]))
            else:
                epochs(metrics_file, fold, 1)
                seconds[False] = statistics.mean(epochs(metrics_file, fold, counted))
        ratios.append(seconds[True] / seconds[False])
        print(
            f"pair {pair + 1}: {seconds[True]:.2f} s with tracking, {seconds[False]:.2f} s without: {ratios[-1]:.4f}",
            flush=True,
        )
    ratio = statistics.median(ratios)
    spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
    print(
        f"median of {pairs} pairs {ratio:.4f} ({spread}); the CPU time of tracking is "
        f"{100 * statistics.median(shares):.2f} % of one core"
    )
    print(f"maximum {MAXIMUM_RATIO}: {'met' if ratio <= MAXIMUM_RATIO else 'missed'}")


def epochs(metrics_file: Path, fold: subprocess.Popen[bytes], count: int) -> list[float]:
    """Wait for the end of `count` epochs, including the epoch that runs now; return the seconds of each epoch.

    Raises:
        SystemExit: the process of the fold has ended.
    """
    known = len(lines(metrics_file))
    size = file_size(metrics_file)
    while len(lines(metrics_file)) < known + count:
        while file_size(metrics_file) == size:  # reading the size again and again takes almost no processor time
            if fold.poll() is not None:
                sys.exit(f"the fold exited with status {fold.returncode}; see {metrics_file.parent / 'log.txt'}")
            time.sleep(0.05)
        size = file_size(metrics_file)
    return [float(line["metrics"]["time/epoch_seconds"]) for line in lines(metrics_file)[known : known + count]]


def file_size(metrics_file: Path) -> int:
    """Return the size of a metrics file in bytes; 0 if it does not exist."""
    return metrics_file.stat().st_size if metrics_file.exists() else 0


def lines(metrics_file: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics file, parsed as JSON."""
    text = metrics_file.read_text() if metrics_file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    main()
