"""How the gates of several networks are put together: the same thresholds on one network, and on three ways of all together.

    maskfold cv experiments/demo_gate/unet2d.yaml && maskfold demo gate --seed 7 -o data/demogate7
    python benchmarks/gate.py mlruns/runs/demogate-unet2d/HASH data/demogate7

The second folder holds cases that no network of the run has seen, with their masks. Printed is the competition's metric for
each threshold of the gate; the other steps are the run's. `one network` is the mean over the networks, each with its own
masks and gate: what is tuned out of fold. `log odds` is what the harness does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from competition.config.postprocess import Postprocess
from competition.data.masks import load_mask
from competition.data.table import case_table
from competition.inference.gate import agreed
from competition.inference.predicted import Predicted
from competition.scoring.cases import score_case
from competition.scoring.summary import cv_score
from competition.submission.blend import Blend, Mixture
from competition.submission.members import Ensemble
from competition.submission.postprocess import postprocess
from competition.submission.remembered import remembered
from competition.training.find import find_run
from competition.training.runs import CvRun

THRESHOLDS = (0.5, 0.7, 0.8, 0.9)


def alone(run: CvRun, scratch: Path) -> tuple[list[list[Predicted]], list[tuple[Any, np.ndarray]]]:
    """What each network says of each training case of the run's competition, and the cases with their truth."""
    cases = list(case_table(run.exp.competition, "train").itertuples(index=False))
    ensemble = Ensemble(Blend((run,), (1.0,)), cases[0], scratch=scratch)
    part = ensemble.parts[0][0]
    networks, said = part.networks, []
    for network in networks:
        part.networks = [network]
        said.append([ensemble.predict(row) for row in cases])
    return said, [(row, load_mask(run.exp.competition, row)) for row in cases]


def main(word: str, root: str) -> int:
    run = find_run(word, [f"competition.root={Path(root).resolve()}"])
    comp, found = run.exp.competition, remembered(run)
    plain = found.found if found is not None else {name: list(run.exp.postprocess.steps) for name in comp.classes}
    with tempfile.TemporaryDirectory() as scratch:
        said, cases = alone(run, Path(scratch))

    def score(which: list[Predicted], threshold: float) -> float:
        steps = {
            name: [step.model_copy(update={"gate": threshold}) if step.name == "gate" else step for step in listed]
            for name, listed in plain.items()
        }
        rows = []
        for (row, truth), one in zip(cases, which, strict=True):
            outcome = postprocess(one.probabilities, comp, Postprocess(steps=steps), row, one.gate)
            rows += [{"id": row.id, **line} for line in score_case(outcome.masks, truth, comp)]
        return cv_score(pd.DataFrame(rows), comp.metric)

    ways = {
        "mean": lambda gates: np.mean(gates, axis=0),
        "median": lambda gates: np.median(gates, axis=0),
        "log odds": agreed,
    }
    together: dict[str, list[Predicted]] = {name: [] for name in ways}
    for every in zip(*said, strict=True):
        mixture = Mixture(comp)
        for one in every:
            mixture.add(one.probabilities, 1 / len(every))
        for name, way in ways.items():
            together[name].append(Predicted(mixture.result(), np.asarray(way([one.gate for one in every]), np.float32)))
    print("gate", "one network", *ways, sep="\t")
    for threshold in THRESHOLDS:
        single = np.mean([score(which, threshold) for which in said])
        print(threshold, f"{single:.4f}", *(f"{score(which, threshold):.4f}" for which in together.values()), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
