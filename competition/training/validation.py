"""Whole cases, on their own grid, with the competition's metric."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from competition.config import Experiment
from competition.data.prepare import PreparedCase
from competition.data.resident import Resident
from competition.data.table import load_image, load_instances, load_mask
from competition.inference.case import predict_both
from competition.inference.masks import to_masks
from competition.inference.predicted import Predicted
from competition.inference.store import OofStore
from competition.scoring.cases import score_case
from competition.scoring.pictures import case_picture
from competition.scoring.summary import cv_score

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Judge:
    """Predicts and scores the cases that a fold's network has never seen.

    Args:
        exp: the experiment.
        cases: rows of the case table, one per case to judge.
        prepared: folder of each prepared case, by id.
        device: where the network runs.
        autocast: the precision's context.
        alive: called between cases and before each batch of windows; may raise to stop.
        resident: what this process may hold of prepared cases.
    """

    exp: Experiment
    cases: pd.DataFrame
    prepared: dict[str, Path]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    alive: Callable[[], None]
    resident: Resident = field(default_factory=lambda: Resident(None))

    def rows(self) -> Iterator[Any]:
        """The cases, one at a time."""
        for row in self.cases.itertuples(index=False):
            self.alive()
            yield row

    def probabilities(self, network: torch.nn.Module, row: Any) -> np.ndarray[Any, Any]:
        """Probabilities (P, *file shape), float16, of one case."""
        return self.predicted(network, row).probabilities

    def predicted(self, network: torch.nn.Module, row: Any) -> Predicted:
        """Probabilities and gate of one case."""
        case = PreparedCase.open(self.prepared[row.id])
        hook = network.register_forward_pre_hook(lambda *_: self.alive())  # a large volume may take minutes
        try:
            with self.resident.reading(case):
                return predict_both([network], case, self.exp, self.device, self.autocast)
        finally:
            hook.remove()
            self.resident.drop(case)

    def score(self, probabilities: np.ndarray[Any, Any], row: Any, fold: int) -> tuple[list[dict[str, Any]], Any, Any]:
        """Score rows (one per class), masks (K, *spatial) and truth (M, *spatial) of one case."""
        comp = self.exp.competition
        masks = to_masks(probabilities, comp)
        truth = load_mask(comp, row)
        instances = load_instances(comp, row) if comp.instances else None
        rows = score_case(masks, truth, comp, spacing=json.loads(row.spacing), true_instances=instances)
        return [{"id": row.id, "fold": fold, **line} for line in rows], masks, truth

    def validate(self, network: torch.nn.Module, fold: int) -> pd.DataFrame:
        """Scores of all cases; nothing is kept on disk."""
        import pandas as pd

        lines = []
        for row in self.rows():
            lines += self.score(self.probabilities(network, row), row, fold)[0]
        return pd.DataFrame(lines)

    def seconds(self, network: torch.nn.Module, fold: int) -> float:
        """How long all cases will take: a guess from the one of middle size."""
        sizes = [math.prod(json.loads(shape)) for shape in self.cases["shape"]]
        middle = sizes.index(sorted(sizes)[len(sizes) // 2])
        row = next(self.cases.iloc[middle : middle + 1].itertuples(index=False))
        for _ in range(2):  # the first prediction also pays for warming up
            began = time.monotonic()
            self.score(self.probabilities(network, row), row, fold)
            one = time.monotonic() - began
        return one * sum(sizes) / sizes[middle]

    def picture(self, network: torch.nn.Module, folder: Path, epoch: int, count: int = 3) -> None:
        """Pictures image · truth · prediction of the first cases."""
        folder.mkdir(exist_ok=True)
        for row in itertools.islice(self.rows(), count):
            lines, masks, truth = self.score(self.probabilities(network, row), row, 0)
            self._draw(
                folder / f"epoch_{epoch:04d}_{_file_name(row.id)}.png", row, masks, truth, lines, f"epoch {epoch}"
            )

    def predict_out_of_fold(self, network: torch.nn.Module, store: OofStore, fold: int) -> pd.DataFrame:
        """Predict every case once, keep the probabilities, and score the masks made from what was kept."""
        import pandas as pd

        done = set(store.ids())
        lines = []
        for row in self.rows():
            if row.id not in done:
                store.write(row.id, *self.predicted(network, row))
            lines += self.score(store.read(row.id), row, fold)[0]
        return pd.DataFrame(lines)

    def draw_extremes(self, store: OofStore, scores: pd.DataFrame, folder: Path, fold: int) -> None:
        """Pictures of the best, the middle and the two worst cases, the worst last."""
        folder.mkdir(exist_ok=True)
        order = scores.groupby("id")["dice"].mean().dropna().sort_values(ascending=False, kind="stable").index.tolist()
        chosen = dict.fromkeys([*order[:1], *order[len(order) // 2 : len(order) // 2 + 1], *order[-2:]])
        by_id = {row.id: row for row in self.cases.itertuples(index=False)}
        for rank, case_id in enumerate(chosen):
            self.alive()
            lines, masks, truth = self.score(store.read(case_id), by_id[case_id], fold)
            name = f"final_{rank + 1}_of_{len(chosen)}_{_file_name(case_id)}.png"
            self._draw(
                folder / name,
                by_id[case_id],
                masks,
                truth,
                lines,
                f"out of fold, {rank + 1} of {len(chosen)} from best to worst",
            )

    def _draw(self, path: Path, row: Any, masks: Any, truth: Any, lines: list[dict[str, Any]], title: str) -> None:
        image = load_image(self.exp.competition, row)
        dice = {line["class"]: line["dice"] for line in lines}
        case_picture(
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
    """`val/score`, `val/dice` and `val/dice/<class>`; a class that is nowhere present is left out."""
    metrics = {"val/score": cv_score(scores, exp.competition.metric)}
    metrics.update(
        {
            f"val/dice/{name}": value
            for name, value in dice_per_class(scores, exp.competition.classes).items()
            if value is not None
        }
    )
    metrics["val/dice"] = float(scores["dice"].mean())
    return metrics


def dice_per_class(scores: pd.DataFrame, classes: Iterable[str]) -> dict[str, float | None]:
    """Mean Dice of each class over the cases that have it in truth or prediction; None where no case has."""
    means = scores.groupby("class")["dice"].mean()
    values = {name: float(means.get(name, math.nan)) for name in classes}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _file_name(case_id: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in case_id)[:80]
