"""Compute the weighted mean of the probabilities of several runs, with at most two cases in memory."""

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
from competition.text import format_count

if TYPE_CHECKING:
    from competition.runs.oof import OofPredictions

Probabilities = NDArray[Any]


@dataclass
class WeightedMean:
    """Compute the weighted mean of several runs' probabilities for one case; the runs are added one after the other.

    The networks of a single run are averaged in the same way: each network takes the place of a run.

    Runs with and without a boundary class can be mixed. The boundary is then averaged over those runs that have a
    boundary class. In the same way, class presence is averaged over those runs that have a presence head.

    Args:
        comp: the competition of the runs.
    """

    comp: Competition
    _sum: Probabilities | None = None  # (comp.output_channels, *spatial) float16, weighted
    _boundary: Probabilities | None = None  # (*spatial) float16, weighted
    _boundary_weight: float = 0.0
    _single: Probabilities | None = None  # the probabilities, if a single run has the weight 1
    _weights: list[float] = field(default_factory=list)
    _presences: list[tuple[Probabilities, float]] = field(default_factory=list)  # (K, 1, …) presence, and its weight

    def add(self, probabilities: Probabilities, weight: float) -> None:
        """Add the probabilities of a run to the sum.

        Args:
            probabilities: (P, *spatial) float16, with the P output channels of the run. If the run has a boundary
                class, it is the last channel.
            weight: weight of the run. The weights of all runs must add up to 1.

        Raises:
            MaskfoldError: the probabilities have another spatial size than the previous runs' probabilities.
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
                f"Two predictions of the same case differ in shape: found {plain.shape[1:]}, expected "
                f"{self._sum.shape[1:]}, the shape of the first prediction.",
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
        """Add the class presence of a run to the sum.

        Args:
            presence: the probability that the case contains each class, as in
                `competition.inference.predict.Prediction`. If the run has no presence head, it is None, and nothing
                is added.
            weight: weight of the run.
        """
        if presence is not None and weight > 0:
            self._presences.append((presence, weight))

    @property
    def presence(self) -> Probabilities | None:
        """The weighted mean class presence of the runs with a presence head, (K, 1, …) float32; None if no run has one.

        `competition.inference.presence.mean_log_odds` computes the mean.
        """
        if not self._presences:
            return None
        presences, weights = zip(*self._presences, strict=True)
        return mean_log_odds(list(presences), list(weights)).astype(np.float32)

    def result(self) -> Probabilities:
        """Return the weighted mean, (P, *spatial) float16.

        If at least one run has a boundary class, the last channel is the boundary class.

        If only one run was added, with the weight 1, its array is returned without a copy.

        Raises:
            ValueError: the weights do not add up to 1.
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
    """Hold runs of one competition, and the weight of each run in the mean of their probabilities.

    Attributes:
        runs: the runs.
        weights: one non-negative weight per run, with the sum 1. Runs with the weight 0 do not predict.
        fold_weights: weights for out-of-fold predictions, by number of the fold. They were fitted on the other folds,
            so that the scores of a fold do not depend on weights that were fitted to its own cases. Folds without an
            entry use `weights`.
    """

    runs: tuple[Run, ...]
    weights: tuple[float, ...]
    fold_weights: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def comp(self) -> Competition:
        """The competition of the runs."""
        return self.runs[0].exp.competition

    @property
    def active(self) -> list[tuple[Run, float]]:
        """The (run, weight) pairs of the runs whose weight is above 0."""
        return [(run, weight) for run, weight in zip(self.runs, self.weights, strict=True) if weight > 0]

    def out_of_fold(self) -> EnsembleOof:
        """Return an object that reads the weighted mean of the runs' out-of-fold predictions.

        Raises:
            MaskfoldError: two runs have predicted different images of one case (status 2), or the predictions of a run
                cannot be used, see `Run.oof`.
        """
        # The first run is always included, even with the weight 0, because it defines the folds.
        included = [
            index == 0 or any(weights[index] > 0 for weights in (self.weights, *self.fold_weights.values()))
            for index in range(len(self.runs))
        ]
        oofs = [run.oof() for run, is_included in zip(self.runs, included, strict=True) if is_included]
        _check_same_images(oofs)
        return EnsembleOof(
            oofs,
            _select(self.weights, included),
            {fold: _select(weights, included) for fold, weights in self.fold_weights.items()},
            self.comp,
        )


@dataclass(frozen=True)
class EnsembleOof:
    """Read the weighted mean of the out-of-fold probabilities of several runs, for cases that all runs have predicted.

    Attributes:
        oofs: out-of-fold predictions of each run. The first run defines the fold of each case.
        weights: one weight per run, with the sum 1.
        fold_weights: weights that replace `weights` for the cases of a fold, by number of the fold.
        comp: the competition of the runs.
    """

    oofs: Sequence[OofPredictions]
    weights: tuple[float, ...]
    fold_weights: Mapping[int, tuple[float, ...]]
    comp: Competition

    def fold_of(self) -> dict[str, int]:
        """Return the fold, in the first run, of each case that all runs have predicted, by case id."""
        first, *others = [oof.fold_of for oof in self.oofs]
        return {case: fold for case, fold in first.items() if all(case in folds for folds in others)}

    def read(self, case: str) -> Probabilities:
        """Return the weighted mean of the probabilities of a case, (P, *file shape) float16."""
        mean = WeightedMean(self.comp)
        for oof, weight in zip(self.oofs, self._weights_of(case), strict=True):
            if weight > 0:
                mean.add(oof.read(case), weight)
        return mean.result()

    def _weights_of(self, case: str) -> tuple[float, ...]:
        return self.fold_weights.get(self.oofs[0].fold_of[case], self.weights)

    @property
    def has_presence(self) -> bool:
        """Whether class presence can be computed for every case.

        For this, at least one run with a presence head must have a weight above 0, both in `weights` and in the weights
        of each fold.
        """
        has_head = [oof.run.exp.gate is not None for oof in self.oofs]
        return all(
            any(weight > 0 and has for weight, has in zip(weights, has_head, strict=True))
            for weights in (self.weights, *self.fold_weights.values())
        )

    def presence(self, case: str) -> Probabilities | None:
        """Return the weighted mean of the runs' class presence for a case, (K, 1, …) float32.

        If no run with a positive weight has a presence head, return None.
        """
        mean = WeightedMean(self.comp)
        for oof, weight in zip(self.oofs, self._weights_of(case), strict=True):
            if weight > 0:
                mean.add_presence(oof.presence(case), weight)
        return mean.presence


def _select(weights: tuple[float, ...], included: Sequence[bool]) -> tuple[float, ...]:
    return tuple(weight for weight, is_included in zip(weights, included, strict=True) if is_included)


def _check_same_images(oofs: Sequence[OofPredictions]) -> None:
    """Check that runs have predicted the same image of each case, since an image may change between two runs.

    Raises:
        MaskfoldError: the image of a case differs between the first run and another run (status 2).
    """
    first, *others = [(oof.run, dict(zip(oof.cases["id"], oof.cases["image_hash"], strict=True))) for oof in oofs]
    for run, hashes in others:
        changed = [case for case, digest in first[1].items() if hashes.get(case, digest) != digest]
        if changed:
            raise MaskfoldError(
                f"The images of {format_count(len(changed), 'case')} differ between {first[0].folder} and "
                f"{run.folder}. The first of them is {changed[0]}. So the runs' predictions cannot be averaged.",
                "Name runs that were trained on the same images.",
                status=2,
            )


def check_same_competition(
    runs: Sequence[Run],
    one_competition: str = "Name only runs of the same competition.",
    once: str = "Name each run once. To give a run more weight, set --weights.",
) -> None:
    """Check that runs are different runs of one competition, so that they can be averaged or compared.

    Args:
        runs: the runs to check.
        one_competition: hint of the error message if the runs belong to several competitions.
        once: hint of the error message if a run is named twice.

    Raises:
        MaskfoldError: two runs differ in the competition's name, dimensions, classes or kind of labels, or a run is
            named twice (status 2).
    """
    first = runs[0].exp.competition
    for run in runs[1:]:
        comp = run.exp.competition
        for key in ("name", "dimensions", "classes", "labels", "instances"):
            if getattr(comp, key) != getattr(first, key):
                raise MaskfoldError(
                    f"The runs belong to different competitions: competition.{key} is {getattr(comp, key)} in the run "
                    f"{run.folder}, but {getattr(first, key)} in the run {runs[0].folder}.",
                    one_competition,
                    status=2,
                )
    for run in runs:
        if sum(other.folder.resolve() == run.folder.resolve() for other in runs) > 1:
            raise MaskfoldError(f"The run {run.folder} is named twice, expected once.", once, status=2)
