"""Measure how time and memory grow with the number of cases, of runs and of trials: `python benchmarks/scale.py`.

    python benchmarks/scale.py                                          # 1,000 and 10,000 cases; 50 and 500 runs
    python benchmarks/scale.py --cases 1000 10000 50000                 # some hours
    python benchmarks/scale.py --cases 20 40 --runs 2 4 --trials 2 4    # to check that the script works

The cases are synthetic images of 32×32 pixels with their masks. There are as many test images as cases. The network has
a few parameters, so that the times are those of everything else. The tables have the processor seconds of each step,
with those of its child processes, for each number of cases, runs or trials. The column `growth` is the exponent of the
time as a power of this number, computed from the smallest and the largest number: 1 is linear, 2 is quadratic. The last
line is the peak memory of this process and of its largest child process.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np

from competition.cleaning.candidates import find_candidates
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.context import no_log
from competition.data.cases import case_table
from competition.data.preprocessing import preprocess_cases
from competition.data.splits import check_leaks, split
from competition.ensembling.compare import compare_two_runs
from competition.leaderboard.ledger import Ledger, UploadRecord, make_record_id
from competition.report.compare import write_comparison
from competition.report.study import write_study_page
from competition.runs.find import find_run
from competition.runs.fold import FoldResult
from competition.runs.run import CACHE_FOLDER, Run, load_run
from competition.study.space import ExperimentSource, suggest_overrides
from competition.study.study import best_trials, draw_figures, open_study, write_trials
from competition.study.trial import make_sampler
from competition.submission.submit import submit
from competition.training.cross_validate import CvSummary, open_run, prepare_run, run_cv, unfinished_jobs
from competition.training.fold import run_fold

SIZE, FOLDS = 32, 5
YAML = f"""
competition:
  name: scale
  root: pictures
  dimensions: 2
  classes: [disc]
  train: {{images: "images/{{id}}.png", masks: "masks/{{id}}.png"}}
  test: {{images: "test/{{id}}.png"}}
  metric: {{name: dice}}
  submission: {{sample: sample.csv, columns: {{id: id, class: null, mask: rle}}}}
folds: {{k: {FOLDS}}}
patch: {{size: [{SIZE}, {SIZE}]}}
model: {{target: monai.networks.nets.UNet, args: {{channels: [2, 2], strides: [2]}}}}
loss: {{target: monai.losses.DiceCELoss}}
training: {{epochs: 1, steps_per_epoch: 1, batch_size: 2, precision: fp32}}
run: {{threads: 1}}
study:
  sampler: tpe
  space:
    optimizer.args.lr: {{low: 1.0e-4, high: 1.0e-2, log: true}}
    training.batch_size: {{low: 1, high: 8}}
    patch.foreground: {{low: 0.0, high: 1.0}}
"""
Times = dict[str, dict[int, float]]  # processor seconds by name of the step and number of cases, runs or trials


def make_pictures(root: Path, count: int) -> None:
    """Write `count` images of noise with one disc each, their masks, `count` test images and the sample submission."""
    for folder in ("images", "masks", "test"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        center = [int(value) for value in generator.integers(8, SIZE - 8, 2)]
        cv2.circle(mask, center, int(generator.integers(3, 8)), 1, -1)
        image = (generator.integers(0, 128, mask.shape) + 100 * mask).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"{number:06d}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{number:06d}.png"), mask)
        cv2.imwrite(str(root / "test" / f"t{number:06d}.png"), image[::-1])
    with open(root / "sample.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "rle"), *((f"t{number:06d}", "") for number in range(count))])


@contextmanager
def project(cases: int) -> Iterator[Experiment]:
    """Change to a new temporary folder with images and an experiment, for the body of a `with` statement.

    Args:
        cases: number of images.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_pictures(Path("pictures"), cases)
            Path("unet.yaml").write_text(YAML, encoding="utf-8")
            yield load_experiment(Path("unet.yaml"))
        finally:
            os.chdir(before)


def timed(times: Times, step: str, number: int, function: Callable[[], Any]) -> Any:
    """Call a function, store its processor seconds in `times`, and return its result.

    The seconds include those of child processes. They are also printed to the standard error output.

    Args:
        times: the table to which the seconds are added.
        step: name of the step.
        number: number of cases or runs.
        function: the function to call.
    """
    start = processor_seconds()
    result = function()
    times.setdefault(step, {})[number] = seconds = processor_seconds() - start
    print(f"{step}, {number:,}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return result


def processor_seconds() -> float:
    """Return the processor seconds of this process and of the child processes that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_cases(times: Times, count: int) -> None:
    """Measure the steps whose time depends on the number of cases, with `count` cases."""
    with project(count) as exp:
        table = timed(times, "find the cases", count, lambda: case_table(exp.competition))
        folds = timed(times, "split into folds", count, lambda: split(table, exp.competition, exp.folds, 0))
        timed(times, "check the folds for leaks", count, lambda: check_leaks(table, folds))
        timed(times, "prepare the cases", count, lambda: preprocess_cases(table, exp, CACHE_FOLDER))
        timed(times, "find them in the cache", count, lambda: preprocess_cases(table, exp, CACHE_FOLDER))
        run = timed(times, "open a new run", count, lambda: open_run(exp, "scale-unet"))
        timed(times, "write the run", count, run.write)
        timed(times, "open the run again", count, lambda: load_run(run.folder))
        timed(times, "plan `maskfold clean`", count, lambda: find_candidates(Path(), 0.0))
        exp = load_experiment(Path("unet.yaml"), ["folds.k=2"])  # the end of a fold, with its figures, takes a second
        timed(times, "predict and score out of fold", count, lambda: cross_validate(exp))
        timed(times, "print the table again", count, lambda: cross_validate(exp))
        run = find_run("unet.yaml", ["folds.k=2"])
        other = Path(shutil.copytree(run.folder, run.folder.with_name(f"{run.folder.name}-2"), copy_function=os.link))
        timed(times, "compare two runs", count, lambda: compare(run, load_run(other)))
        timed(times, "predict the test images and write the CSV", count, lambda: submit([run]))


def cross_validate(exp: Experiment) -> CvSummary:
    """Do the work of `maskfold cv`: train the folds that are not finished, and score all folds.

    The folds run in this process, because the imports of a process of their own would take longer than few cases.
    """
    run = prepare_run(open_run(exp, "scale-unet"))
    for job in unfinished_jobs(run):
        job.folder.mkdir()
        run_fold(job, no_log)
    return run_cv(run)


def compare(run_a: Run, run_b: Run) -> Path:
    """Do the work of `maskfold compare`."""
    return write_comparison(compare_two_runs(run_a, run_b), Path("reports"))


def measure_runs(times: Times, count: int) -> None:
    """Measure the steps whose time depends on the number of runs or uploads, with `count` runs and uploads."""
    with project(2 * FOLDS) as exp:
        source = open_run(exp, "scale-unet")
        source.write()
        for fold, seed in source.members():
            folder = source.member_folder(fold, seed)
            folder.mkdir()
            settings = {"precision": "32-true", "device": "cpu", "torch": "2", "stopped": "done"}
            numbers = {"epochs": 1, "steps": 1, "minutes": 1.0, "peak_gib": 1.0, "threads": 1}
            FoldResult(fold=fold, seed=seed, score=0.5, dice={}, **numbers, **settings).write(folder)
        (source.folder / "summary.json").write_text(json.dumps({"metric": "dice", "score": 0.5}))
        for number in range(1, count):
            shutil.copytree(source.folder, source.folder.with_name(f"{source.folder.name}-{number + 1}"))
        ledger, begin = Ledger("scale"), datetime(2026, 1, 1, tzinfo=UTC)
        for number in range(count):
            moment = begin + timedelta(minutes=number)
            name, digest = make_record_id(moment, f"{number:064x}"), f"{number:064x}"
            run = {"run": str(source.folder), "experiment": "scale-unet", "hash": source.folder.name, "weight": 1.0}
            ledger.write(
                UploadRecord(
                    f"{name}-{number}", "scale", "by hand", "", moment.isoformat(), "a.csv", digest, "", runs=[run]
                )
            )
        timed(times, "find the latest run by its YAML", count, lambda: find_run("unet.yaml"))
        timed(times, "find a run by its hash", count, lambda: find_run(f"scale-unet/{source.folder.name}"))
        timed(times, "read the ledger", count, ledger.read)
        timed(times, "plan `maskfold clean --keep-best 3`", count, lambda: find_candidates(Path(), 0.0, 3))


def measure_trials(times: Times, count: int) -> None:
    """Measure the steps whose time depends on the number of trials in a study, with `count` finished trials."""
    with project(2 * FOLDS):
        source = ExperimentSource(Path("unet.yaml"))
        session = open_study(source)
        config, study = session.config, session.optuna_study
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # these trials do not run
        generator = np.random.default_rng(0)
        for number in range(count):
            study.sampler = make_sampler(config, 0, number, is_duplicate=True)  # drawn at random, which takes less time
            trial = study.ask()
            trial.set_user_attr("words", suggest_overrides(trial, config))
            study.tell(trial, float(generator.random()))

        def draw_next() -> None:
            study.sampler = make_sampler(config, 0, count)
            suggest_overrides(study.ask(), config)

        session = timed(times, "open the study", count, lambda: open_study(source))
        study = session.optuna_study
        timed(times, "find the best trial", count, lambda: best_trials(session))
        timed(times, "draw the next trial", count, draw_next)
        timed(times, "write `trials.json`", count, lambda: write_trials(session))
        timed(times, "draw the figures", count, lambda: draw_figures(session))
        timed(times, "write the page", count, lambda: write_study_page(session.folder, Path("study.html")))


def format_times(times: Times, noun: str) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        times: the measured times.
        noun: what the numbers count, "cases", "runs" or "trials".
    """
    numbers = sorted({number for values in times.values() for number in values})
    lines = [
        f"| processor seconds for {noun} | {' | '.join(f'{number:,}' for number in numbers)} | growth |",
        f"|---|{'---:|' * (len(numbers) + 1)}",
    ]
    for step, values in times.items():
        first, last = max(values[numbers[0]], 1e-3), max(values[numbers[-1]], 1e-3)
        growth = math.log(last / first) / math.log(numbers[-1] / numbers[0]) if len(numbers) > 1 else math.nan
        lines.append(f"| {step} | {' | '.join(f'{values[number]:.2f}' for number in numbers)} | {growth:.2f} |")
    return lines


def main() -> None:
    """Print a table of the times for each kind of number, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--runs", type=int, nargs="*", default=[50, 500])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1_000])
    words = parser.parse_args()
    start = time.time()
    for noun, numbers, measure in (
        ("cases", words.cases, measure_cases),
        ("runs", words.runs, measure_runs),
        ("trials", words.trials, measure_trials),
    ):
        if not numbers:
            continue
        measure({}, FOLDS)  # imports
        times: Times = {}
        for number in sorted(numbers):
            measure(times, number)
        print("\n".join([*format_times(times, noun), ""]), flush=True)
    unit = 1 if sys.platform == "darwin" else 1024
    peak, largest = (
        resource.getrusage(who).ru_maxrss * unit / 2**30 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"peak memory {peak:.2f} GiB, of the largest child process {largest:.2f} GiB, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
