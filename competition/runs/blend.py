"""Average the probabilities of several runs with weights, with at most two cases in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.inference.masks import merge_boundary_class
from competition.inference.presence import mean_log_odds
from competition.runs.run import Run

if TYPE_CHECKING:
    from competition.runs.oof import OofPredictions

Probabilities = NDArray[Any]


@dataclass
class WeightedMean:
    """Compute the weighted mean of the probabilities of several runs, which are added one after the other.

    Runs with and without a boundary class can be mixed: the boundary is the mean over the runs with a boundary class.
    Presence heads are treated in the same way.

    Args:
        comp: the competition.
    """

    comp: Competition
    _sum: Probabilities | None = None  # (comp.output_channels, *spatial) float16, weighted
    _boundary: Probabilities | None = None  # (*spatial) float16, weighted
    _boundary_weight: float = 0.0
    _single: Probabilities | None = None  # the probabilities, if a single run has the weight 1
    _weights: list[float] = field(default_factory=list)
    _presences: list[tuple[Probabilities, float]] = field(default_factory=list)  # (K, 1, …) presence, and its weight

    def add(self, probabilities: Probabilities, weight: float) -> None:
        """Add the probabilities (P, *spatial) float16 of a run, with its weight; the sum of all weights must be 1.

        Raises:
            MaskfoldError: the size differs from that of the previous runs.
        """
        self._weights.append(weight)
        if weight == 1.0 and self._sum is None:
            self._single = probabilities
            return
        plain = (
            merge_boundary_class(probabilities, self.comp)
            if len(probabilities) > self.comp.output_channels
            else probabilities
        )
        if self._sum is None:
            self._sum = large_arrays.zeros(plain.shape, np.float16)
        elif self._sum.shape != plain.shape:
            raise MaskfoldError(
                f"The predictions of one case differ in shape: found {plain.shape[1:]}, expected "
                f"{self._sum.shape[1:]}.",
                "Combine runs that were trained on the same images.",
            )
        for total, channel in zip(self._sum, plain, strict=True):
            for block in large_arrays.row_blocks(total.shape):
                total[block] += weight * channel[block].astype(np.float32)
        if len(probabilities) > self.comp.output_channels:
            boundary = weight * probabilities[-1].astype(np.float32)
            total_boundary = boundary if self._boundary is None else self._boundary + boundary
            self._boundary = total_boundary.astype(np.float16)
            self._boundary_weight += weight

    def add_presence(self, presence: Probabilities | None, weight: float) -> None:
        """Add a run's probabilities of class presence, (K, 1, …), with the run's weight; ignore None."""
        if presence is not None and weight > 0:
            self._presences.append((presence, weight))

    @property
    def presence(self) -> Probabilities | None:
        """(K, 1, …) float32, the weighted mean presence over the runs with a presence head; None if no run has one."""
        if not self._presences:
            return None
        presences, weights = zip(*self._presences, strict=True)
        return mean_log_odds(list(presences), list(weights)).astype(np.float32)

    def result(self) -> Probabilities:
        """Return the mean (P, *spatial) float16.

        The probabilities of a single run with weight 1 are returned unchanged.
        """
        if self._single is not None and len(self._weights) == 1:
            return self._single
        if self._sum is None or abs(sum(self._weights) - 1) > 1e-6:
            raise ValueError(f"weights {self._weights} do not sum to 1")
        if self._boundary is None:
            return self._sum
        objects = self._sum[1:].astype(np.float32).sum(axis=0)
        boundary = np.minimum(self._boundary.astype(np.float32) / self._boundary_weight, objects)
        share = np.divide(objects - boundary, objects, out=np.zeros_like(objects), where=objects > 0)
        interior = (self._sum[1:] * share).astype(np.float16)
        return np.concatenate([self._sum[:1], interior, boundary[None].astype(np.float16)])


@dataclass(frozen=True)
class Ensemble:
    """Hold runs of one competition, and the weight of each run.

    Attributes:
        runs: the runs.
        weights: non-negative weights with the sum 1; runs of weight 0 are not predicted.
        fold_weights: for each fold, the weights that were fitted on the other folds; they make out-of-fold scores
            nested. `weights` apply to folds without an entry.
    """

    runs: tuple[Run, ...]
    weights: tuple[float, ...]
    fold_weights: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def comp(self) -> Competition:
        """The competition."""
        return self.runs[0].exp.competition

    @property
    def active(self) -> list[tuple[Run, float]]:
        """The runs with a weight above 0, with their weights."""
        return [(run, weight) for run, weight in zip(self.runs, self.weights, strict=True) if weight > 0]

    def out_of_fold(self) -> EnsembleOof:
        """Return the out-of-fold predictions of the runs."""
        # The first run is always included, even with weight 0, because it defines the folds.
        included = [
            index == 0 or any(weights[index] > 0 for weights in (self.weights, *self.fold_weights.values()))
            for index in range(len(self.runs))
        ]
        return EnsembleOof(
            [run.oof() for run, is_included in zip(self.runs, included, strict=True) if is_included],
            _select(self.weights, included),
            {fold: _select(weights, included) for fold, weights in self.fold_weights.items()},
            self.comp,
        )


@dataclass(frozen=True)
class EnsembleOof:
    """Read the out-of-fold probabilities of the cases that all runs share; the first run defines the folds."""

    oofs: Sequence[OofPredictions]
    weights: tuple[float, ...]
    fold_weights: Mapping[int, tuple[float, ...]]
    comp: Competition

    def fold_of(self) -> dict[str, int]:
        """Return the fold of each shared case."""
        first, *others = [oof.fold_of for oof in self.oofs]
        return {case: fold for case, fold in first.items() if all(case in folds for folds in others)}

    def read(self, case: str) -> Probabilities:
        """Return the probabilities of a case, (P, *file shape) float16."""
        mean = WeightedMean(self.comp)
        for oof, weight in zip(self.oofs, self._weights_of(case), strict=True):
            if weight > 0:
                mean.add(oof.read(case), weight)
        return mean.result()

    def _weights_of(self, case: str) -> tuple[float, ...]:
        return self.fold_weights.get(self.oofs[0].fold_of[case], self.weights)

    @property
    def has_presence(self) -> bool:
        """Whether at least one run with a presence head has a positive weight, for every out-of-fold and test case."""
        has_head = [oof.run.exp.gate is not None for oof in self.oofs]
        return all(
            any(weight > 0 and has for weight, has in zip(weights, has_head, strict=True))
            for weights in (self.weights, *self.fold_weights.values())
        )

    def presence(self, case: str) -> Probabilities | None:
        """Return the weighted presence of a case, (K, 1, …) float32; None if no run has a presence head."""
        mean = WeightedMean(self.comp)
        for oof, weight in zip(self.oofs, self._weights_of(case), strict=True):
            if weight > 0:
                mean.add_presence(oof.presence(case), weight)
        return mean.presence


def _select(weights: tuple[float, ...], included: Sequence[bool]) -> tuple[float, ...]:
    return tuple(weight for weight, is_included in zip(weights, included, strict=True) if is_included)


def check_same_competition(
    runs: Sequence[Run],
    one_competition: str = "Name runs of one competition.",
    once: str = "Name each run once; set weights with --weights.",
) -> None:
    """Check that runs are different runs of one competition, so that they can be averaged or compared.

    Args:
        runs: different runs of one competition.
        one_competition: hint of the error for runs of several competitions.
        once: hint of the error for a run that is named twice.

    Raises:
        MaskfoldError: a run belongs to another competition, or was trained on other classes or masks.
    """
    first = runs[0].exp.competition
    for run in runs[1:]:
        comp = run.exp.competition
        for key in ("name", "dimensions", "classes", "labels", "instances"):
            if getattr(comp, key) != getattr(first, key):
                raise MaskfoldError(
                    f"Competition of the run {run.folder}: found {comp.name} ({key}: {getattr(comp, key)}), expected "
                    f"{first.name} ({key}: {getattr(first, key)}) as in {runs[0].folder}.",
                    one_competition,
                    status=2,
                )
    for run in runs:
        if sum(other.folder.resolve() == run.folder.resolve() for other in runs) > 1:
            raise MaskfoldError(f"The run {run.folder} is named twice.", once, status=2)
