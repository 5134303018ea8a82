"""What tracking costs a 3D epoch: a real fold trains in its own process, and a shipper beside it is switched on and off.

    python benchmarks/tracking.py            # some minutes; --pairs 12 for more
    python benchmarks/tracking.py --steps 4 --pairs 2 --tiny    # whether it works at all

Epochs come in blocks, with tracking and without, in pairs of changing order. The first epoch of a block is not counted: in it
the database is opened, or what the block before left is delivered. Those that count have the seconds that the fold itself
wrote to `metrics.jsonl`; the shipper delivers each line and each picture while the next epoch runs, as in `maskfold cv`, and
looks at the machine for the system metrics.
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

from competition.config import load_experiment
from competition.data.demo import make_demo
from competition.tracking.shipper import Shipper
from competition.training.cv import make_jobs, prepare_run
from competition.training.runs import CvRun, open_run

ROOT = Path(__file__).resolve().parents[1]
BAR = 1.02
TINY = [
    "patch.size=[16,16,16]",
    "model.target=monai.networks.nets.BasicUNet",
    "model.args={features: [4, 4, 4, 4, 4, 4], norm: [group, {num_groups: 2}]}",
]


def main() -> None:
    """Print the ratio of each pair and their median."""
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--pairs", type=int, default=8)
    words.add_argument("--steps", type=int, default=30, help="of an epoch; the demo's recipe has 30")
    words.add_argument("--counted", type=int, default=3, help="epochs of a block that count")
    words.add_argument("--tiny", action="store_true", help="a toy network, to see whether it works")
    args = words.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        run, fold = start(args.steps, args.tiny)
        try:
            measure(run, fold, args.pairs, args.counted)
        finally:
            fold.kill()
            fold.wait()


def start(steps: int, tiny: bool) -> tuple[CvRun, subprocess.Popen[bytes]]:
    """A fold of the 3D demo that trains until it is killed."""
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
    prepare_run(run, lambda _: None)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True)
    (job.folder / "job.json").write_text(job.to_json())
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    return run, subprocess.Popen(
        [sys.executable, "-m", "competition.training.fold", str(job.folder / "job.json")],
        stdout=subprocess.DEVNULL,
        env=environment,
    )


def measure(run: CvRun, fold: subprocess.Popen[bytes], pairs: int, counted: int) -> None:
    """Blocks in pairs; the order changes from pair to pair."""
    journal = run.member_folder(0, 0) / "metrics.jsonl"
    with Shipper(run.folder, run.exp):  # MLflow is imported and its database made before anything is measured
        epochs(journal, fold, 2)
    ratios, shares = [], []
    for pair in range(pairs):
        seconds: dict[bool, float] = {}
        for tracked in (True, False) if pair % 2 == 0 else (False, True):
            if tracked:
                with Shipper(run.folder, run.exp):
                    epochs(journal, fold, 1)
                    before = time.process_time()
                    seconds[True] = statistics.mean(epochs(journal, fold, counted))
                    shares.append((time.process_time() - before) / (counted * seconds[True]))
            else:
                epochs(journal, fold, 1)
                seconds[False] = statistics.mean(epochs(journal, fold, counted))
        ratios.append(seconds[True] / seconds[False])
        print(
            f"pair {pair + 1}: {seconds[True]:.2f} s with tracking, {seconds[False]:.2f} s without: {ratios[-1]:.4f}",
            flush=True,
        )
    ratio = statistics.median(ratios)
    spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
    print(
        f"median of {pairs} pairs {ratio:.4f} ({spread}); the shipper's own processor time is "
        f"{100 * statistics.median(shares):.2f} % of one core"
    )
    print(f"bar {BAR}: {'held' if ratio <= BAR else 'missed'}")


def epochs(journal: Path, fold: subprocess.Popen[bytes], count: int) -> list[float]:
    """Wait for the epochs that end from now on, of which the first began before; seconds of each."""
    known = len(lines(journal))
    size = written(journal)
    while len(lines(journal)) < known + count:
        while written(journal) == size:  # a look that costs nothing: it is no part of tracking
            if fold.poll() is not None:
                sys.exit(f"the fold ended with status {fold.returncode}; see {journal.parent / 'log.txt'}")
            time.sleep(0.05)
        size = written(journal)
    return [float(line["metrics"]["time/epoch_seconds"]) for line in lines(journal)[known : known + count]]


def written(journal: Path) -> int:
    """Bytes of a journal."""
    return journal.stat().st_size if journal.exists() else 0


def lines(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal."""
    text = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    main()
