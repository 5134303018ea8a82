"""Prediction and scoring of the cases that a fold's network was not trained on."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from competition.config.experiment import Experiment
from competition.data.cache import MemoryBudget, PreprocessedCase
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.inference.predict import Prediction, predict_case_with_presence, to_masks
from competition.metrics.bootstrap import cv_score, dice_per_class
from competition.metrics.scoring import score_case
from competition.runs.oof import OofStore
from competition.viz.overlays import draw_case
from competition.viz.preview import load_unchanged_picture


@dataclass(frozen=True)
class Evaluator:
    """Predicts and scores cases that a fold's network was not trained on.

    Args:
        exp: the experiment.
        cases: rows of the case table, one per case to predict.
        prepared: folder of each preprocessed case, by id.
        device: device of the network.
        autocast: function that returns the context manager for the precision.
        should_stop: function that is called between cases and before each batch of windows; it raises an exception to
            stop.
        memory_budget: limit on the memory for preprocessed cases in this process.
    """

    exp: Experiment
    cases: pd.DataFrame
    prepared: dict[str, Path]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    should_stop: Callable[[], None]
    memory_budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(None))

    def iter_cases(self) -> Iterator[Any]:
        """Yield the rows of the cases, one at a time."""
        for row in self.cases.itertuples(index=False):
            self.should_stop()
            yield row

    def probabilities(self, network: torch.nn.Module, row: Any) -> np.ndarray[Any, Any]:
        """Predict one case; return probabilities (P, *file shape), float16."""
        return self.predict(network, row).probabilities

    def predict(self, network: torch.nn.Module, row: Any) -> Prediction:
        """Predict the probabilities and the class presence of one case."""
        case = PreprocessedCase.open(self.prepared[row.id])
        # Because a large volume may take minutes.
        hook = network.register_forward_pre_hook(lambda *_: self.should_stop())
        try:
            with self.memory_budget.reading(case):
                return predict_case_with_presence([network], case, self.exp, self.device, self.autocast)
        finally:
            hook.remove()
            self.memory_budget.release(case)

    def score(self, probabilities: np.ndarray[Any, Any], row: Any, fold: int) -> tuple[list[dict[str, Any]], Any, Any]:
        """Score one case; return its score rows (one per class), masks (K, *spatial) and truth (M, *spatial)."""
        comp = self.exp.competition
        masks = to_masks(probabilities, comp)
        truth = load_unchanged_mask(comp, row)
        instances = load_unchanged_objects(comp, row) if comp.instances else None
        rows = score_case(masks, truth, comp, spacing=json.loads(row.spacing), true_instances=instances)
        return [{"id": row.id, "fold": fold, **score_row} for score_row in rows], masks, truth

    def validate(self, network: torch.nn.Module, fold: int) -> pd.DataFrame:
        """Predict and score all cases without writing files."""
        scores = []
        for row in self.iter_cases():
            scores += self.score(self.probabilities(network, row), row, fold)[0]
        return pd.DataFrame(scores)

    def estimate_seconds(self, network: torch.nn.Module, fold: int) -> float:
        """Estimate the prediction time of all cases in seconds, from a case of median size."""
        sizes = [math.prod(json.loads(shape)) for shape in self.cases["shape"]]
        median = sizes.index(sorted(sizes)[len(sizes) // 2])
        row = next(self.cases.iloc[median : median + 1].itertuples(index=False))
        for _ in range(2):  # the first prediction is a warm-up
            start = time.monotonic()
            self.score(self.probabilities(network, row), row, fold)
            seconds = time.monotonic() - start
        return seconds * sum(sizes) / sizes[median]

    def save_pictures(self, network: torch.nn.Module, folder: Path, epoch: int, count: int = 3) -> None:
        """Draw image, truth and prediction of the first `count` cases."""
        folder.mkdir(exist_ok=True)
        for row in itertools.islice(self.iter_cases(), count):
            scores, masks, truth = self.score(self.probabilities(network, row), row, 0)
            path = folder / f"epoch_{epoch:04d}_{_file_name(row.id)}.png"
            self._save_picture(path, row, masks, truth, scores, f"epoch {epoch}")

    def predict_out_of_fold(self, network: torch.nn.Module, store: OofStore, fold: int) -> pd.DataFrame:
        """Predict the cases that the store lacks, and score the masks that result from the stored probabilities."""
        done = set(store.ids())
        scores = []
        for row in self.iter_cases():
            if row.id not in done:
                store.write(row.id, *self.predict(network, row))
            scores += self.score(store.read(row.id), row, fold)[0]
        return pd.DataFrame(scores)

    def save_best_and_worst(self, store: OofStore, scores: pd.DataFrame, folder: Path, fold: int) -> None:
        """Draw the best, the median and the two worst cases by Dice, the worst last."""
        folder.mkdir(exist_ok=True)
        order = scores.groupby("id")["dice"].mean().dropna().sort_values(ascending=False, kind="stable").index.tolist()
        selected = dict.fromkeys([*order[:1], *order[len(order) // 2 : len(order) // 2 + 1], *order[-2:]])
        by_id = {row.id: row for row in self.cases.itertuples(index=False)}
        for rank, case_id in enumerate(selected, start=1):
            self.should_stop()
            rows, masks, truth = self.score(store.read(case_id), by_id[case_id], fold)
            path = folder / f"final_{rank}_of_{len(selected)}_{_file_name(case_id)}.png"
            title = f"out of fold, {rank} of {len(selected)} from best to worst"
            self._save_picture(path, by_id[case_id], masks, truth, rows, title)

    def _save_picture(
        self, path: Path, row: Any, masks: Any, truth: Any, scores: list[dict[str, Any]], title: str
    ) -> None:
        image = load_unchanged_picture(self.exp.competition, row)
        dice = {score["class"]: score["dice"] for score in scores}
        draw_case(
            path,
            image.array,
            truth,
            masks,
            self.exp.competition,
            title=f"{row.id} · {title}",
            spacing=json.loads(row.spacing),
            dice=dice,
            affine=image.affine,
        )


def summary_metrics(scores: pd.DataFrame, exp: Experiment) -> dict[str, float]:
    """Return `val/score`, `val/dice` and, for each class that a case has, `val/dice/<class>`."""
    metrics = {"val/score": cv_score(scores, exp.competition.metric)}
    for name, dice in dice_per_class(scores, exp.competition.classes).items():
        if dice is not None:
            metrics[f"val/dice/{name}"] = dice
    metrics["val/dice"] = float(scores["dice"].mean())
    return metrics


def _file_name(case_id: str) -> str:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in case_id)[:80]
    return name.encode()[:200].decode(errors="ignore")  # because a letter may have four bytes
