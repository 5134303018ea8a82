"""Compare the time of Maskfold's checkpoint writer with that of torch.save.

Only Maskfold's writer syncs the file to the disk, and writes it under a temporary name before it renames it.

    python benchmarks/checkpoint.py                    # 24 M parameters, Adam's moments, averaged weights: 366 MiB
    python benchmarks/checkpoint.py --million 0.1      # a small checkpoint, for a test

The two ways alternate in one process. The processor time is that of this process; the wall time depends on the disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make_state(million: float) -> dict[str, Any]:
    """Return a training state like that of a checkpoint: weights, Adam's moments, and averaged weights.

    Args:
        million: number of weights in millions.
    """
    import torch

    sizes = [int(million * 1e6 / 40)] * 40
    weights = {f"layer{number}": torch.randn(size) for number, size in enumerate(sizes)}
    moments = {
        number: {"exp_avg": torch.randn(size), "exp_avg_sq": torch.rand(size)} for number, size in enumerate(sizes)
    }
    average = {name: weight.clone() for name, weight in weights.items()}
    return {"network": weights, "optimizer": {"state": moments}, "ema": {"weights": average}}


def main(million: float, pairs: int, folder: Path | None) -> float:
    """Print the median times of Maskfold's writer and of torch.save; return the ratio of their processor times.

    Args:
        million: number of weights in millions.
        pairs: number of times that each of the two writes the checkpoint.
        folder: folder in which a temporary folder is made; None for the system's default.
    """
    import torch

    from competition.runs.checkpoint import save_checkpoint

    torch.set_num_threads(1)
    state = make_state(million)
    times: dict[str, list[tuple[float, float]]] = {"save_checkpoint": [], "torch.save": []}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "last.pt"
        writers: dict[str, Callable[[], object]] = {
            "save_checkpoint": lambda: save_checkpoint(path, state),
            "torch.save": lambda: torch.save(state, path),
        }
        for number in range(pairs + 1):
            for name, write in writers.items():
                processor, wall = time.process_time(), time.perf_counter()
                write()
                if number:  # the first pair is a warm-up
                    times[name].append((time.process_time() - processor, time.perf_counter() - wall))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    for name, (processor, wall) in medians.items():
        print(f"{name:<16} {processor:.3f} s of the processor, {wall:.3f} s in all")
    ratio = medians["save_checkpoint"][0] / max(medians["torch.save"][0], 1e-9)
    print(f"ratio of the processor times {ratio:.2f}")
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=float, default=24.0, help="parameters of the network")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    options = parser.parse_args()
    main(options.million, options.pairs, options.folder)
