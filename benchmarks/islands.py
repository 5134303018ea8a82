"""Post-processing both ways: on a run's out-of-fold predictions as they are, and with islands planted into them.

    python benchmarks/islands.py mlruns/runs/hippocampus-unet3d/HASH competition.root=data/hippocampus

Islands are confident cubes of a class at random places. With them the nested score has to rise by at least 0.02; without
them the untouched masks have to be kept. Prints both reports; exit status 1 where either is not so.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from competition.inference.store import OofStore
from competition.submission.blend import Blend
from competition.submission.evaluate import Evaluation
from competition.submission.tune import Tuned, tune
from competition.training.find import find_run, finished
from competition.training.runs import CvRun

PER_CASE = 4  # islands of each class
WIDE = 4  # voxels


def planted(run: CvRun, folder: Path) -> CvRun:
    """A copy of a run in another folder, with islands in its out-of-fold predictions."""
    exp, generator = run.exp, np.random.default_rng(0)
    for fold, seed in finished(run):
        source = run.member_folder(fold, seed)
        target = folder / source.name
        target.mkdir(parents=True)
        shutil.copy(source / "result.json", target)
        store, spoiled = (OofStore(path / "oof", exp.inference.store) for path in (source, target))
        for case in store.ids():
            values = store.read(case)
            for index in range(len(exp.competition.classes)):
                for _ in range(PER_CASE):
                    corner = [int(generator.integers(0, max(1, n - WIDE))) for n in values.shape[1:]]
                    place = (slice(None), *(slice(start, start + WIDE) for start in corner))
                    values[place] = 0
                    values[(index + (exp.competition.labels == "exclusive"), *place[1:])] = 1
            spoiled.write(case, values)
    return replace(run, folder=folder)


def search(run: CvRun) -> Tuned:
    """What a search from scratch finds, whatever the experiment says."""
    exp = run.exp.model_copy(update={"postprocess": type(run.exp.postprocess)(tune=True)})
    with Evaluation(Blend((replace(run, exp=exp),), (1.0,))) as evaluation:
        return tune(evaluation, exp.seeds[0], None)


def main(word: str, *overrides: str) -> int:
    run = find_run(word, overrides)
    clean = search(run)
    print("as predicted", *clean.lines(), sep="\n  ")
    with tempfile.TemporaryDirectory() as folder:
        spoiled = search(planted(run, Path(folder)))
    print("with islands", *spoiled.lines(), sep="\n  ")
    good = not clean.kept and spoiled.kept and spoiled.gain.value >= 0.02
    print("good" if good else "not as promised")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
