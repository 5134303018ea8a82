"""Score a run with several thresholds of its presence head, for single networks and three ways to combine networks.

    maskfold cv experiments/demo_gate/unet2d.yaml && maskfold demo gate --seed 7 -o data/demogate7
    python benchmarks/gate.py mlruns/runs/demogate-unet2d/HASH data/demogate7

The presence head of a network predicts for each class the probability that the image contains it. The post-processing
step `gate` removes a class whose probability is below a threshold. The second folder contains cases with masks on which
no network of the run was trained.

The table shows the competition's metric for each threshold of the step `gate`; the other steps are those of the run.
The column `one network` contains the mean score of the single networks. The other columns differ in how they combine
the networks' presence probabilities. Maskfold combines them as in `log odds`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from competition.config.postprocess import PostprocessConfig
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.ensembling.ensemble import EnsemblePredictor
from competition.inference.predict import Prediction
from competition.inference.presence import mean_log_odds
from competition.metrics.bootstrap import cv_score
from competition.metrics.scoring import score_case
from competition.postprocessing.pipeline import postprocess
from competition.postprocessing.tuning import load_tuning
from competition.runs.blend import Ensemble, WeightedMean
from competition.runs.find import find_run
from competition.runs.run import Run

THRESHOLDS = (0.5, 0.7, 0.8, 0.9)


def predict_per_network(run: Run, scratch: Path) -> tuple[list[list[Prediction]], list[tuple[Any, np.ndarray]]]:
    """Predict the competition's training cases with each network of a run separately.

    Args:
        run: the run; its competition has the cases on which no network was trained as training cases.
        scratch: folder for temporary files.

    Returns:
        Predictions of each network, one per case; and (row of the case table, true mask) of each case.
    """
    cases = list(case_table(run.exp.competition, "train").itertuples(index=False))
    ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), cases[0], scratch=scratch)
    run_networks = ensemble.weighted_runs[0][0]
    networks, predictions = run_networks.networks, []
    for network in networks:
        run_networks.networks = [network]
        predictions.append([ensemble.predict(row) for row in cases])
    return predictions, [(row, load_mask(run.exp.competition, row)) for row in cases]


def main(run_name: str, root: str) -> int:
    """Print the scores of single and combined networks, one line per threshold of the step `gate`.

    Args:
        run_name: name or folder of the run.
        root: folder of the cases on which no network was trained.
    """
    run = find_run(run_name, [f"competition.root={Path(root).resolve()}"])
    comp, tuning = run.exp.competition, load_tuning(run)
    if tuning is not None:
        class_steps = tuning.best_steps
    else:
        class_steps = {name: list(run.exp.postprocess.steps) for name in comp.classes}
    with tempfile.TemporaryDirectory() as scratch:
        predictions, cases = predict_per_network(run, Path(scratch))

    def score(case_predictions: list[Prediction], threshold: float) -> float:
        steps = {
            name: [step.model_copy(update={"gate": threshold}) if step.name == "gate" else step for step in class_list]
            for name, class_list in class_steps.items()
        }
        rows = []
        for (row, truth), prediction in zip(cases, case_predictions, strict=True):
            outcome = postprocess(
                prediction.probabilities, comp, PostprocessConfig(steps=steps), row, prediction.presence
            )
            rows += [{"id": row.id, **score_row} for score_row in score_case(outcome.masks, truth, comp)]
        return cv_score(pd.DataFrame(rows), comp.metric)

    combinations = {
        "mean": lambda presences: np.mean(presences, axis=0),
        "median": lambda presences: np.median(presences, axis=0),
        "log odds": mean_log_odds,
    }
    combined: dict[str, list[Prediction]] = {name: [] for name in combinations}
    for case_predictions in zip(*predictions, strict=True):
        mean = WeightedMean(comp)
        for prediction in case_predictions:
            mean.add(prediction.probabilities, 1 / len(case_predictions))
        for name, combine in combinations.items():
            presence = np.asarray(combine([prediction.presence for prediction in case_predictions]), np.float32)
            combined[name].append(Prediction(mean.result(), presence))
    print("gate", "one network", *combinations, sep="\t")
    for threshold in THRESHOLDS:
        single = np.mean([score(of_network, threshold) for of_network in predictions])
        scores = [score(of_combination, threshold) for of_combination in combined.values()]
        print(threshold, f"{single:.4f}", *(f"{value:.4f}" for value in scores), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
