"""Several networks' probabilities of one case, averaged with weights, in the memory of two cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.inference.gate import agreed
from competition.inference.masks import merged
from competition.training.oof import OutOfFold
from competition.training.runs import CvRun

Probabilities = NDArray[Any]


@dataclass
class Mixture:
    """Adds probabilities up, one run at a time.

    Runs with and without a boundary class mix: the boundary is then what those say that have it. So do runs with and
    without a gate.

    Args:
        comp: the competition.
    """

    comp: Competition
    _sum: Probabilities | None = None  # (comp.outputs, *spatial) float16, weighted
    _edge: Probabilities | None = None  # (*spatial) float16, weighted
    _edge_weight: float = 0.0
    _only: Probabilities | None = None
    _weights: list[float] = field(default_factory=list)
    _gates: list[tuple[Probabilities, float]] = field(default_factory=list)  # (K, 1, …) and its weight

    def add(self, probabilities: Probabilities, weight: float) -> None:
        """Adds (P, *spatial) float16 with a weight; all weights together are 1.

        Raises:
            MaskfoldError: the probabilities are of another size than those before.
        """
        self._weights.append(weight)
        if weight == 1.0 and self._sum is None:
            self._only = probabilities
            return
        plain = merged(probabilities, self.comp) if len(probabilities) > self.comp.outputs else probabilities
        if self._sum is None:
            self._sum = np.zeros(plain.shape, np.float16)
        elif self._sum.shape != plain.shape:
            raise MaskfoldError(
                f"The runs predict a case in the sizes {self._sum.shape[1:]} and {plain.shape[1:]}.",
                "Blend runs on the same images.",
            )
        for total, channel in zip(self._sum, plain, strict=True):
            total += weight * channel.astype(np.float32)
        if len(probabilities) > self.comp.outputs:
            edge = weight * probabilities[-1].astype(np.float32)
            self._edge = edge.astype(np.float16) if self._edge is None else (self._edge + edge).astype(np.float16)
            self._edge_weight += weight

    def add_gate(self, gate: Probabilities | None, weight: float) -> None:
        """Adds what a run's gate says of the case, (K, 1, …); None where it has none."""
        if gate is not None and weight > 0:
            self._gates.append((gate, weight))

    @property
    def gate(self) -> Probabilities | None:
        """(K, 1, …) float32, what the gates say, by the weights of those that have one; None where none has."""
        if not self._gates:
            return None
        return agreed([gate for gate, _ in self._gates], [weight for _, weight in self._gates]).astype(np.float32)

    def result(self) -> Probabilities:
        """(P, *spatial) float16; one run of weight 1 comes back as it went in."""
        if self._only is not None and len(self._weights) == 1:
            return self._only
        if self._sum is None or abs(sum(self._weights) - 1) > 1e-6:
            raise ValueError(f"weights {self._weights} do not add up to 1")
        if self._edge is None:
            return self._sum
        objects = self._sum[1:].astype(np.float32).sum(axis=0)
        edge = np.minimum(self._edge.astype(np.float32) / self._edge_weight, objects)
        rest = np.divide(objects - edge, objects, out=np.zeros_like(objects), where=objects > 0)
        return np.concatenate([self._sum[:1], (self._sum[1:] * rest).astype(np.float16), edge[None].astype(np.float16)])


@dataclass(frozen=True)
class Blend:
    """Runs of one competition and the weight of each.

    Attributes:
        runs: the runs.
        weights: not negative, their sum is 1; runs of weight 0 are not even predicted.
        by_fold: the weights for a fold's out-of-fold cases, fitted on the other folds; a fold that is not there has
            `weights`. So whatever is scored out of fold is nested.
    """

    runs: tuple[CvRun, ...]
    weights: tuple[float, ...]
    by_fold: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def comp(self) -> Competition:
        """The competition."""
        return self.runs[0].exp.competition

    @property
    def active(self) -> list[tuple[CvRun, float]]:
        """The runs that count, with their weights."""
        return [(run, weight) for run, weight in zip(self.runs, self.weights, strict=True) if weight > 0]

    def out_of_fold(self) -> BlendedOutOfFold:
        """What the runs predicted out of fold."""
        # The first run is there for its folds, whatever its weight.
        counts = [
            place == 0 or any(weights[place] > 0 for weights in (self.weights, *self.by_fold.values()))
            for place in range(len(self.runs))
        ]
        return BlendedOutOfFold(
            [OutOfFold(run) for run, counted in zip(self.runs, counts, strict=True) if counted],
            _only(self.weights, counts),
            {fold: _only(weights, counts) for fold, weights in self.by_fold.items()},
            self.comp,
        )


@dataclass(frozen=True)
class BlendedOutOfFold:
    """Out-of-fold probabilities of the cases that all runs have; the folds are the first run's."""

    parts: Sequence[OutOfFold]
    weights: tuple[float, ...]
    by_fold: Mapping[int, tuple[float, ...]]
    comp: Competition

    def fold_of(self) -> dict[str, int]:
        """The fold of each shared case."""
        first, *others = [part.fold_of for part in self.parts]
        return {case: fold for case, fold in first.items() if all(case in other for other in others)}

    def read(self, case: str) -> Probabilities:
        """(P, *file shape) float16 of a case."""
        mixture = Mixture(self.comp)
        weights = self.by_fold.get(self.parts[0].fold_of[case], self.weights)
        for part, weight in zip(self.parts, weights, strict=True):
            if weight > 0:
                mixture.add(part.read(case), weight)
        return mixture.result()

    @property
    def gated(self) -> bool:
        """Whether a gate speaks of every case, and would of a test case."""
        gates = [part.run.exp.gate is not None for part in self.parts]
        return all(
            any(weight > 0 and gate for weight, gate in zip(weights, gates, strict=True))
            for weights in (self.weights, *self.by_fold.values())
        )

    def gate(self, case: str) -> Probabilities | None:
        """What the runs' gates say of a case, (K, 1, …) float32, by their weights; None where no run has one."""
        mixture = Mixture(self.comp)
        weights = self.by_fold.get(self.parts[0].fold_of[case], self.weights)
        for part, weight in zip(self.parts, weights, strict=True):
            if weight > 0:
                mixture.add_gate(part.gate(case), weight)
        return mixture.gate


def _only(weights: tuple[float, ...], counts: Sequence[bool]) -> tuple[float, ...]:
    return tuple(weight for weight, counted in zip(weights, counts, strict=True) if counted)


def check_same(
    runs: Sequence[CvRun],
    one_competition: str = "Blend runs of one competition.",
    once: str = "Name each run once; weights are --weights.",
) -> None:
    """Refuses to blend, or to compare, what does not belong together.

    Args:
        runs: of one competition, each once.
        one_competition: the cure where they are of several.
        once: the cure where one is there twice.

    Raises:
        MaskfoldError: a run is of another competition, or was trained on other classes or masks.
    """
    first = runs[0].exp.competition
    for run in runs[1:]:
        other = run.exp.competition
        for key in ("name", "dimensions", "classes", "labels", "instances"):
            if getattr(other, key) != getattr(first, key):
                raise MaskfoldError(
                    f"The run {run.folder} is of the competition {other.name} ({key}: {getattr(other, key)}), but "
                    f"{runs[0].folder} is of {first.name} ({key}: {getattr(first, key)}).",
                    one_competition,
                    status=2,
                )
    for run in runs:
        twice = [other for other in runs if other.folder.resolve() == run.folder.resolve()]
        if len(twice) > 1:
            raise MaskfoldError(f"The run {run.folder} is named twice.", once, status=2)
