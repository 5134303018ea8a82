"""A run's out-of-fold predictions: each case's probabilities from the network, or networks, that never saw it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import MaskfoldError
from competition.inference.gate import agreed
from competition.inference.store import OofStore
from competition.training.job import FoldResult
from competition.training.runs import CvRun

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OutOfFold:
    """What the finished folds of a run predicted.

    Args:
        run: the run.
        folds: which folds to look at; None: all that are finished.
        weights: whose predictions, one of the two kinds in `job`; None: of the weights that predict.
    """

    run: CvRun
    folds: tuple[int, ...] | None = None
    weights: str | None = None

    @cached_property
    def stores(self) -> dict[int, list[OofStore]]:
        """The stores of each finished fold, one for each of its seeds."""
        found: dict[int, list[OofStore]] = {}
        for fold in self.run.numbers() if self.folds is None else self.folds:
            for seed in range(len(self.run.exp.seeds)):
                folder = self.run.member_folder(fold, seed)
                if (result := FoldResult.read(folder)) is not None:
                    prefix = result.prefix_of(self.weights or result.weights)
                    found.setdefault(fold, []).append(OofStore(folder / f"{prefix}oof", self.run.exp.inference.store))
        return found

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """The fold of each case that was predicted, in the case table's order."""
        folds = dict(zip(self.run.folds["id"], self.run.folds["fold"], strict=True))
        return {case: int(folds[case]) for case in self.run.cases["id"] if folds.get(case) in self.stores}

    @property
    def cases(self) -> pd.DataFrame:
        """The rows of the case table that were predicted."""
        return self.run.cases[self.run.cases["id"].isin(self.fold_of.keys())]

    def read(self, case: str) -> np.ndarray[Any, Any]:
        """Probabilities (P, *file shape) float16 of a case: the mean over the seeds of its fold.

        Raises:
            MaskfoldError: the case was not predicted, or the file is damaged.
        """
        if case not in self.fold_of:
            raise MaskfoldError(
                f"The run {self.run.folder} has no out-of-fold prediction of the case {case}.",
                "Run the fold that validates it.",
            )
        stores = self.stores[self.fold_of[case]]
        if len(stores) == 1:
            return stores[0].read(case)
        mean = stores[0].read(case).astype(np.float32)
        for store in stores[1:]:
            mean += store.read(case)
        return (mean / len(stores)).astype(np.float16)

    def gate(self, case: str) -> np.ndarray[Any, Any] | None:
        """What the gate says of a case, (K, 1, …) float32, the seeds of its fold together; None without `gate`.

        Raises:
            MaskfoldError: the file is damaged, or holds no gate where the run has one.
        """
        if self.run.exp.gate is None:
            return None
        found = []
        for store in self.stores[self.fold_of[case]]:
            if (gate := store.gate(case)) is None:
                raise MaskfoldError(
                    f"The out-of-fold prediction {store.path(case)} has no gate, and the run has one.",
                    "Delete the file and run the fold again.",
                )
            found.append(gate)
        return agreed(found).astype(np.float32)
