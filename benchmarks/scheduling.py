"""What an executor costs per fold: 200 folds that do nothing, through `local` and through `ray`.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py 50 ray

A fold that does nothing is a small Python program (`python -S`: no site-packages) that writes the result.json of its
folder. The executor starts, follows, awaits and checks it just as it does a real fold. The same program is also started
bare, by `subprocess.run`, and the time of that is subtracted: the milliseconds that are printed are the executor's own. One
fold runs at a time, so that waiting counts too. Ray's start, once per command, is printed apart, and so is what a real
fold's process takes to find its fold finished: that is Python importing torch and MONAI.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from competition.config.experiment import Run
from competition.training.checkpoint import write_json
from competition.training.executors import Executor
from competition.training.executors.local import LocalExecutor
from competition.training.executors.process import start
from competition.training.executors.ray import RayExecutor, connect
from competition.training.job import FoldResult, Job

FOLDS = 200
PROGRAM = (
    "import os, sys; place = os.path.join(os.path.dirname(sys.argv[1]), 'result.json'); open(place, 'w').write('{}')"
)
NOTHING = (sys.executable, "-S", "-c", PROGRAM)


def main(count: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare = started_bare(jobs(Path(folder) / "bare", count))
        print(
            f"{count} folds that do nothing, one at a time; their program by itself takes {1000 * bare / count:.1f} ms"
        )
        for name in names:
            executor: Executor = LocalExecutor(1, command=NOTHING)
            if name == "ray":
                began = time.perf_counter()
                connect()
                print(f"ray starts in {time.perf_counter() - began:.1f} s")
                executor = RayExecutor(Run(executor="ray", threads=1), NOTHING)
            timed(executor, jobs(Path(folder) / f"{name} first", 1))  # imports, Ray's first worker
            took = timed(executor, jobs(Path(folder) / name, count))
            print(f"{name}: {1000 * (took - bare) / count:.1f} ms of overhead per fold")
        print(
            f"a real fold's process needs {finished(jobs(Path(folder) / 'finished', 1)[0]):.1f} s to find its fold finished"
        )


def jobs(run: Path, count: int) -> list[Job]:
    """Jobs with folders of their own."""
    run.mkdir()
    return [Job(run, run / f"fold_{number}", number, 0, run, 1) for number in range(count)]


def started_bare(folds: list[Job]) -> float:
    """Seconds that the programs take without an executor."""
    for job in folds:
        job.folder.mkdir()
    began = time.perf_counter()
    for job in folds:
        subprocess.run([*NOTHING, str(job.folder / "job.json")], check=True)
    return time.perf_counter() - began


def timed(executor: Executor, folds: list[Job]) -> float:
    """Seconds that an executor takes."""
    began = time.perf_counter()
    executor.run(folds, lambda line: None)
    seconds = time.perf_counter() - began
    assert all((job.folder / "result.json").exists() for job in folds)
    return seconds


def finished(job: Job) -> float:
    """Seconds that a real fold's process takes where there is nothing left to do."""
    job.folder.mkdir()
    write_json(
        job.folder / "result.json", FoldResult(0, 0, 0.5, {}, 1, 1, 0.0, 0.0, 1, "fp32", "cpu", "", "done").__dict__
    )
    began = time.perf_counter()
    status = start(job).wait()
    assert status == 0, (job.folder / "output.txt").read_text()
    return time.perf_counter() - began


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else FOLDS, words[1:] or ["local", "ray"])
