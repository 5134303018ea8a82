"""Predict and score the validation cases of a fold."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from competition.config.experiment import Experiment
from competition.data.cache import MemoryBudget, PreprocessedCase
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.inference.masks import to_masks
from competition.inference.predict import Prediction, predict_case_with_presence, within_region
from competition.io import temporary_folder
from competition.metrics.bootstrap import cv_score, dice_per_class
from competition.metrics.scoring import score_case, split_classes
from competition.runs.oof import OofStore, open_store
from competition.viz.overlays import draw_case
from competition.viz.preview import load_unchanged_picture

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluator:
    """Predict and score a fold's validation cases, or cases held out for a final test, with the fold's network.

    In the shapes of arrays, P is `exp.output_channels`, K the number of classes, and M the number of channels of the
    labels, see `competition.data.masks.load_mask`.

    Args:
        exp: the experiment.
        cases: rows of the case table, one row for each case to predict.
        prepared: folder of each preprocessed case, by id.
        device: device of the network.
        autocast: function that returns a context manager, which sets the precision of a forward pass.
        should_stop: function that is called between cases and before each batch of windows. It raises an exception to
            stop the work.
        memory_budget: limit on the memory that preprocessed cases may take in this process.
        report: function that is called before each case, with the number of finished cases and of all cases.
    """

    exp: Experiment
    cases: pd.DataFrame
    prepared: dict[str, Path]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    should_stop: Callable[[], None]
    memory_budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(None))
    report: Callable[[int, int], None] = lambda done, total: None

    def iter_cases(self) -> Iterator[Any]:
        """Yield the row of each case; before each row, call `should_stop` and `report`."""
        for done, row in enumerate(self.cases.itertuples(index=False)):
            self.should_stop()
            self.report(done, len(self.cases))
            yield row

    def probabilities(self, network: torch.nn.Module, row: Any) -> np.ndarray[Any, Any]:
        """Predict one case; return its probabilities, (P, *file shape) float16."""
        return self.predict(network, row).probabilities

    def predict(self, network: torch.nn.Module, row: Any) -> Prediction:
        """Predict the probabilities and the class presence of one case."""
        case = PreprocessedCase.open(self.prepared[row.id])
        # A large volume may take minutes, so stop signals are also checked before each batch of windows.
        hook = network.register_forward_pre_hook(lambda *_: self.should_stop())
        try:
            with self.memory_budget.reading(case):
                prediction = predict_case_with_presence([network], case, self.exp, self.device, self.autocast)
        finally:
            hook.remove()
            self.memory_budget.release(case)
        return within_region(prediction, self.exp.competition, row)

    def score(self, probabilities: np.ndarray[Any, Any], row: Any, fold: int) -> tuple[list[dict[str, Any]], Any, Any]:
        """Score the prediction of one case.

        Args:
            probabilities: (P, *file shape) float16.
            row: row of the case table.
            fold: number of the fold, which is written into the scores.

        Returns:
            The scores, one dictionary per class; the predicted masks, (K, *file shape) bool; and the labels, (M, *file
            shape) uint8.
        """
        comp = self.exp.competition
        masks = to_masks(probabilities, comp)
        truth = load_unchanged_mask(comp, row)
        instances = load_unchanged_objects(comp, row) if comp.instances else None
        rows = score_case(masks, truth, comp, spacing=json.loads(row.spacing), true_instances=instances)
        return [{"id": row.id, "fold": fold, **score_row} for score_row in rows], masks, truth

    def validate(self, network: torch.nn.Module, fold: int) -> pd.DataFrame:
        """Predict and score all cases without writing files; return a table with one row per case and class.

        Args:
            network: the network in evaluation mode.
            fold: number of the fold, which is written into the table.
        """
        scores = []
        for row in self.iter_cases():
            scores += self.score(self.probabilities(network, row), row, fold)[0]
        return pd.DataFrame(scores)

    def time_cases(self, network: torch.nn.Module, fold: int, patience: float, folder: Path) -> tuple[float, float]:
        """Estimate from the case of median size how long validation takes, and how long storing the predictions takes.

        The scoring is timed with the labels in place of the prediction. An untrained network predicts noise, and
        scoring noise may take far longer than scoring a normal mask.

        Args:
            network: the network in evaluation mode.
            fold: number of the fold.
            patience: duration in seconds. Actions that take less time are timed a second time, because the first call
                also loads libraries.
            folder: the fold's folder, in which the probabilities are written to a temporary folder.

        Returns:
            The seconds to predict and score all cases, and the seconds to write and read the probabilities of all
            cases.
        """
        sizes = [math.prod(json.loads(shape)) for shape in self.cases["shape"]]
        median = sizes.index(sorted(sizes)[len(sizes) // 2])
        row: Any = next(self.cases.iloc[median : median + 1].itertuples(index=False))
        predicting, prediction = _time(lambda: self.predict(network, row), patience)
        with temporary_folder(folder / "oof") as temporary:
            store = open_store(self.exp, temporary, None)

            def write_and_read() -> None:
                store.write(row.id, *prediction)
                store.read(row.id)

            writing, _ = _time(write_and_read, patience)
        truth = self._truth_as_probabilities(prediction.probabilities, row)
        scoring, _ = _time(lambda: self.score(truth, row, fold), patience)
        share = sum(sizes) / max(1, sizes[median])
        return (predicting + scoring) * share, writing * share

    def _truth_as_probabilities(self, probabilities: np.ndarray[Any, Any], row: Any) -> np.ndarray[Any, Any]:
        """Return the labels of a case in the form of predicted probabilities, with the values 0 and 1.

        Args:
            probabilities: array of the shape of the result, (P, *file shape). If it is writable, it is overwritten and
                returned.
            row: row of the case table.
        """
        comp = self.exp.competition
        result = probabilities if probabilities.flags.writeable else np.empty_like(probabilities)
        result[...] = 0
        masks = split_classes(load_unchanged_mask(comp, row), comp)
        first = 1 if comp.labels == "exclusive" else 0
        result[first : first + len(masks)] = masks
        if first:
            result[0] = ~masks.any(axis=0)
        return result

    def save_pictures(self, network: torch.nn.Module, folder: Path, epoch: int, count: int = 3) -> None:
        """Write pictures of the first `count` cases, with image, labels and prediction, to a folder."""
        folder.mkdir(exist_ok=True)
        for row in itertools.islice(self.iter_cases(), count):
            scores, masks, truth = self.score(self.probabilities(network, row), row, 0)
            path = folder / f"epoch_{epoch:04d}_{_file_name(row.id)}.png"
            self._save_picture(path, row, masks, truth, scores, f"epoch {epoch}")

    def draw_truth(self, folder: Path) -> None:
        """Draw the first case with its labels in place of a prediction.

        The planning of an experiment calls this method to measure the memory that a picture takes.
        """
        row: Any = next(self.cases.iloc[:1].itertuples(index=False))
        truth = load_unchanged_mask(self.exp.competition, row)
        masks = split_classes(truth, self.exp.competition)
        self._save_picture(folder / "truth.png", row, masks, truth, [], "truth")

    def predict_out_of_fold(self, network: torch.nn.Module, store: OofStore, fold: int) -> pd.DataFrame:
        """Predict the cases that the store does not have yet, then score all cases from the stored probabilities.

        Args:
            network: the network in evaluation mode.
            store: the store for the probabilities.
            fold: number of the fold, which is written into the scores.

        Returns:
            Table with one row per case and class.
        """
        done = set(store.ids())
        scores = []
        for row in self.iter_cases():
            if row.id not in done:
                store.write(row.id, *self.predict(network, row))
            scores += self.score(store.read(row.id), row, fold)[0]
        return pd.DataFrame(scores)

    def save_best_and_worst(self, store: OofStore, scores: pd.DataFrame, folder: Path, fold: int) -> None:
        """Write pictures of the best, the median and the two worst cases by mean Dice, in this order.

        Args:
            store: the store with the probabilities.
            scores: table of the scores, a result of `predict_out_of_fold`.
            folder: folder for the pictures.
            fold: number of the fold.
        """
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
    """Return the metrics of a validation: `val/score`, `val/dice`, and `val/dice/<class>` for each class.

    Classes that occur in no case are left out.

    Args:
        scores: table with one row per case and class.
        exp: the experiment.
    """
    metrics = {"val/score": cv_score(scores, exp.competition.metric)}
    for name, dice in dice_per_class(scores, exp.competition.classes).items():
        if dice is not None:
            metrics[f"val/dice/{name}"] = dice
    metrics["val/dice"] = float(scores["dice"].mean())
    return metrics


def _time(action: Callable[[], T], patience: float) -> tuple[float, T]:
    """Return the duration of an action in seconds, and its result.

    If the action takes less than `patience` seconds, it is called and timed a second time.
    """
    start = time.monotonic()
    result = action()
    seconds = time.monotonic() - start
    if seconds < patience:
        del result  # frees the first result, so that memory holds one result at a time
        start = time.monotonic()
        result = action()
        seconds = time.monotonic() - start
    return seconds, result


def _file_name(case_id: str) -> str:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in case_id)[:80]
    return name.encode()[:200].decode(errors="ignore")  # because a letter may have four bytes
