"""Check tuned post-processing on a run's out-of-fold predictions, with and without artificial islands.

    python benchmarks/islands.py mlruns/runs/hippocampus-unet3d/HASH competition.root=data/hippocampus

Islands are cubes at random positions in which a class has the probability 1. With islands, tuned post-processing must
raise the score of nested cross-validation by at least 0.02. Without islands, tuning must choose no post-processing.
The script prints both tuning reports. Its exit status is 1 if a check fails.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.tuning import TuningResult, tune_postprocessing
from competition.runs.blend import Ensemble
from competition.runs.find import find_run
from competition.runs.oof import OofStore
from competition.runs.run import Run

ISLANDS = 4  # number of islands per class and case
WIDTH = 4  # side of an island in voxels


def add_islands(run: Run, folder: Path) -> Run:
    """Copy a run's results and out-of-fold predictions to `folder`, and add islands to the copied predictions.

    Returns:
        The run with `folder` as its folder.
    """
    exp, generator = run.exp, np.random.default_rng(0)
    for fold, seed in run.finished_members():
        source = run.member_folder(fold, seed)
        target = folder / source.name
        target.mkdir(parents=True)
        shutil.copy(source / "result.json", target)
        original, modified = (OofStore(path / "oof", exp.inference.store) for path in (source, target))
        for case in original.ids():
            values = original.read(case)
            for index in range(len(exp.competition.classes)):
                for _ in range(ISLANDS):
                    corner = [int(generator.integers(0, max(1, n - WIDTH))) for n in values.shape[1:]]
                    region = (slice(None), *(slice(start, start + WIDTH) for start in corner))
                    values[region] = 0
                    values[(index + (exp.competition.labels == "exclusive"), *region[1:])] = 1
            modified.write(case, values)
    return replace(run, folder=folder)


def search(run: Run) -> TuningResult:
    """Tune the post-processing of a run with the default search, and ignore the experiment's settings for it."""
    exp = run.exp.model_copy(update={"postprocess": type(run.exp.postprocess)(tune=True)})
    with OofScores(Ensemble((replace(run, exp=exp),), (1.0,))) as evaluation:
        return tune_postprocessing(evaluation, exp.seeds[0], None)


def main(run_name: str, *overrides: str) -> int:
    """Print the tuning reports without and with islands; return the exit status, which is 1 if a check failed."""
    run = find_run(run_name, overrides)
    unchanged = search(run)
    print("unchanged", *unchanged.report_lines(), sep="\n  ")
    with tempfile.TemporaryDirectory() as folder:
        with_islands = search(add_islands(run, Path(folder)))
    print("with islands", *with_islands.report_lines(), sep="\n  ")
    passed = not unchanged.kept and with_islands.kept and with_islands.gain.value >= 0.02
    print("passed" if passed else "failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
