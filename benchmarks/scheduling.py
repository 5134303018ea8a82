"""Measure the time that the executors `local` and `ray` add to each of 200 folds that do nothing.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py 50 ray

A fold that does nothing is a small Python program (`python -S`: no site-packages) that writes result.json to its
folder. The executor treats it like a real fold. The printed milliseconds are those of the executor alone: the time of
the same program, started by `subprocess.run`, is subtracted. Because one fold runs at a time, the time includes the
executor's waiting for the end of each fold.

Two further times are printed: the start of Ray, which happens once per command; and the time that the process of a real
fold needs to notice that its fold is already finished, which mostly consists of importing torch and MONAI.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from competition.config.experiment import HardwareConfig
from competition.records import write_json
from competition.runs.fold import FoldJob, FoldResult
from competition.training.executors import Executor, LocalExecutor
from competition.training.fold_process import start_fold
from competition.training.ray_executor import RayExecutor, connect_ray

FOLDS = 200
PROGRAM = (
    "import os, sys; path = os.path.join(os.path.dirname(sys.argv[1]), 'result.json'); open(path, 'w').write('{}')"
)
EMPTY_FOLD = (sys.executable, "-S", "-c", PROGRAM)


def main(count: int, names: list[str]) -> None:
    """Print the milliseconds that each executor adds per fold.

    Args:
        count: number of folds.
        names: names of the executors, "local" or "ray".
    """
    with tempfile.TemporaryDirectory() as folder:
        bare = run_bare(jobs(Path(folder) / "bare", count))
        print(f"{count} folds that do nothing, one at a time; the program alone takes {1000 * bare / count:.1f} ms")
        for name in names:
            executor: Executor = LocalExecutor(1, command=EMPTY_FOLD)
            if name == "ray":
                start_time = time.perf_counter()
                connect_ray()
                print(f"Ray starts in {time.perf_counter() - start_time:.1f} s")
                executor = RayExecutor(HardwareConfig(executor="ray", threads=1), EMPTY_FOLD)
            run_folds(executor, jobs(Path(folder) / f"{name} first", 1))  # warm-up: imports, first worker of Ray
            seconds = run_folds(executor, jobs(Path(folder) / name, count))
            print(f"{name}: {1000 * (seconds - bare) / count:.1f} ms of overhead per fold")
        seconds = run_finished(jobs(Path(folder) / "finished", 1)[0])
        print(f"a real fold's process needs {seconds:.1f} s to see that its fold is finished")


def jobs(run: Path, count: int) -> list[FoldJob]:
    """Return `count` fold jobs, each with its own folder in the new folder `run`."""
    run.mkdir()
    return [FoldJob(run, run / f"fold_{number}", number, 0, run, 1) for number in range(count)]


def run_bare(folds: list[FoldJob]) -> float:
    """Run the folds' programs one after another without an executor; return the seconds."""
    for job in folds:
        job.folder.mkdir()
    start_time = time.perf_counter()
    for job in folds:
        subprocess.run([*EMPTY_FOLD, str(job.folder / "job.json")], check=True)
    return time.perf_counter() - start_time


def run_folds(executor: Executor, folds: list[FoldJob]) -> float:
    """Run the folds with an executor; return the seconds."""
    start_time = time.perf_counter()
    executor.run(folds, lambda line: None)
    seconds = time.perf_counter() - start_time
    assert all((job.folder / "result.json").exists() for job in folds)
    return seconds


def run_finished(job: FoldJob) -> float:
    """Mark a fold as finished, run the process of a real fold on it, and return the seconds."""
    job.folder.mkdir()
    result = FoldResult(0, 0, 0.5, {}, 1, 1, 0.0, 0.0, 1, "fp32", "cpu", "", "done")
    write_json(job.folder / "result.json", asdict(result))
    start_time = time.perf_counter()
    status = start_fold(job).wait()
    assert status == 0, (job.folder / "output.txt").read_text()
    return time.perf_counter() - start_time


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else FOLDS, arguments[1:] or ["local", "ray"])
