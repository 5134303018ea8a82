"""Keep a time limit by dropping parts of the ensemble in a fixed order.

1. Test-time augmentation is dropped, for all runs at once.
2. Networks are dropped one by one. The weight of a network is the weight of its run divided by the number of the run's
   remaining networks. The run whose networks have the lowest weight loses its last network. If several runs have the
   same lowest weight, the last of these runs loses its last network. At least one network remains.

The weights of the remaining runs are normalised to the sum 1 again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from competition.ensembling.ensemble import EnsemblePredictor
from competition.text import format_count

TIME_MARGIN = 1.15  # safety factor: the remaining cases may take this many times the estimated time
# Parts are dropped only after this number of cases, or earlier if more than this share of the time limit is used.
MEASURED_CASES = 3
EARLY_SHARE = 0.1
# Time that is reserved for writing the file: this share of the time limit, but at most this many seconds.
RESERVE_SHARE, RESERVE_MOST = 0.02, 300.0

Clock = Callable[[], float]


# Levels and time budget


@dataclass(frozen=True)
class EffortLevel:
    """Describe which parts of the ensemble predict a case.

    Attributes:
        tta: whether test-time augmentation is used.
        networks: for each run, the number of its networks that are used. These are the first networks of the run.
    """

    tta: bool
    networks: tuple[int, ...]

    def passes(self, views: Sequence[float]) -> list[float]:
        """Return the number of forward passes per window for each run.

        Args:
            views: number of test-time views of each run, see `effort_levels`.
        """
        return [networks * (count if self.tta else 1) for networks, count in zip(self.networks, views, strict=True)]


def effort_levels(weights: Sequence[float], networks: Sequence[int], views: Sequence[float]) -> list[EffortLevel]:
    """Return the effort levels in order, from the complete ensemble down to a single network.

    Args:
        weights: weight of each run, above 0.
        networks: number of networks of each run.
        views: number of test-time views of each run; 1 without test-time augmentation. If a 2.5D network predicts along
            several axes of slices, this is the mean over these axes.
    """
    remaining = list(networks)
    levels = [EffortLevel(True, tuple(remaining))]
    has_tta = any(count > 1 for count in views)
    if has_tta:
        levels.append(EffortLevel(False, tuple(remaining)))
    while sum(remaining) > 1:
        weight_per_network = {run: weights[run] / count for run, count in enumerate(remaining) if count}
        # Round the weights, so that weights that should be equal are equal after the division.
        lightest = min(reversed(weight_per_network), key=lambda run: round(weight_per_network[run], 12))
        remaining[lightest] -= 1
        levels.append(EffortLevel(not has_tta, tuple(remaining)))
    return levels


@dataclass
class TimeBudget:
    """Measure the time of each case, and select the effort level for the next case.

    Args:
        levels: the effort levels, from `effort_levels`.
        views: number of test-time views of each run, see `effort_levels`.
        sizes: number of voxels of each case, in order. The time of a case is assumed to be proportional to its number
            of voxels.
        limit: time limit in seconds; None for no limit.
        started: time at which the limit begins, as `clock` returns it.
        clock: function that returns the time in seconds.
    """

    levels: Sequence[EffortLevel]
    views: Sequence[float]
    sizes: Sequence[int]
    limit: float | None
    started: float = 0.0
    clock: Clock = time.monotonic
    level_index: int = 0
    # For each case: number of voxels, seconds outside of the networks, and for each run the seconds per forward pass
    # (-1 if the run was not used).
    measured: list[tuple[int, float, list[float]]] = field(default_factory=list)

    @property
    def level(self) -> EffortLevel:
        """The effort level for the next case."""
        return self.levels[self.level_index]

    @property
    def deadline(self) -> float | None:
        """The time on the clock at which the prediction must end; None if there is no limit."""
        if self.limit is None:
            return None
        return self.started + self.limit - min(RESERVE_SHARE * self.limit, RESERVE_MOST)

    def is_over(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self.clock() >= self.deadline

    def record(self, seconds: float, run_seconds: Sequence[float]) -> list[str]:
        """Record the time of a case, and lower the effort level if the remaining cases would take too long.

        Args:
            seconds: total time of the case in seconds.
            run_seconds: time in seconds that the networks of each run have taken; 0 for a run that was dropped.

        Returns:
            Messages for the user; empty if the level does not change.
        """
        size = self.sizes[len(self.measured)]
        passes = self.level.passes(self.views)
        per_pass = [spent / count if count else -1.0 for spent, count in zip(run_seconds, passes, strict=True)]
        self.measured.append((size, max(0.0, seconds - sum(run_seconds)), per_pass))
        if self.limit is None or self.deadline is None or len(self.measured) == len(self.sizes):
            return []
        used = self.clock() - self.started
        if len(self.measured) < MEASURED_CASES and used < EARLY_SHARE * self.limit:
            return []
        left = self.deadline - self.clock()
        before, required = self.level_index, self.projected()
        while self.projected() * TIME_MARGIN > left and self.level_index + 1 < len(self.levels):
            self.level_index += 1
        if self.level_index == before:
            return []
        return [
            (
                f"time limit: {len(self.measured)} of {len(self.sizes)} cases took {format_duration(used)}; the "
                f"other cases would take {format_duration(required)}, but only {format_duration(left)} are left"
            ),
            *self._describe_change(before),
        ]

    def projected(self) -> float:
        """Return the estimated seconds for the remaining cases at the present effort level, without a safety factor.

        The time of the first case includes the start of the device. So it is ignored as soon as other cases have been
        predicted.
        """
        cases = self.measured[1:] or self.measured
        voxels = sum(size for size, _, _ in cases)
        total = sum(overhead for _, overhead, _ in cases)
        for run, count in enumerate(self.level.passes(self.views)):
            measured = [(size, per_pass[run]) for size, _, per_pass in cases if per_pass[run] >= 0]
            if measured:  # it is empty only for a run that was dropped, and such a run is never used again
                total += count * voxels * sum(seconds for _, seconds in measured) / sum(size for size, _ in measured)
        return total * sum(self.sizes[len(self.measured) :]) / voxels

    def _describe_change(self, before: int) -> list[str]:
        old, new = self.levels[before], self.level
        lines = (
            ["time limit: the remaining cases are predicted without test-time augmentation"]
            if old.tta and not new.tta
            else []
        )
        if new.networks != old.networks:
            lines.append(
                f"time limit: the remaining cases are predicted with {sum(new.networks)} of "
                f"{format_count(sum(self.levels[0].networks), 'network')} "
                f"(per run: {', '.join(map(str, new.networks))})"
            )
        is_last = self.level_index + 1 == len(self.levels)
        if is_last and self.projected() * TIME_MARGIN > (self.deadline or 0.0) - self.clock():
            lines.append("time limit: the time may still be too short; cases that are not reached get empty masks")
        return lines


def format_duration(seconds: float) -> str:
    """Return a duration as text: in minutes, or in seconds if it is less than a minute."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


# The ensemble at a level


class TimedNetworks:
    """Predict with the networks of a run, and measure how long they take.

    Args:
        networks: the networks of the run, from `EnsemblePredictor.weighted_runs`.
        clock: function that returns the time in seconds.
    """

    def __init__(self, networks: Any, clock: Clock) -> None:
        self.networks, self.clock, self.seconds = networks, clock, 0.0

    @property
    def run(self) -> Any:
        """The run to which the networks belong."""
        return self.networks.run

    def predict(self, case: Any) -> Any:
        """Return the prediction of a case, and add the time that it took to the attribute `seconds`."""
        start = self.clock()
        try:
            return self.networks.predict(case)
        finally:
            self.seconds += self.clock() - start


class DegradableEnsemble:
    """Predict with an ensemble at different effort levels, starting with the complete ensemble.

    Args:
        predictor: predictor of the ensemble; it is changed in place.
        clock: function that returns the time in seconds.
    """

    def __init__(self, predictor: EnsemblePredictor, clock: Clock) -> None:
        from competition.inference.tta import count_passes

        self.predictor, self.clock = predictor, clock
        self.all_runs = [(TimedNetworks(networks, clock), weight) for networks, weight in predictor.weighted_runs]
        # Number of views per axis of slices. A run without test-time augmentation still predicts along each axis.
        self.views = [count_passes(timed.run.exp) / len(timed.run.exp.patch.axes) for timed, _ in self.all_runs]
        self.levels = effort_levels(
            [weight for _, weight in self.all_runs],
            [len(timed.networks.members) for timed, _ in self.all_runs],
            self.views,
        )
        self.active: list[TimedNetworks | None] = []  # one entry per run; None if the run is dropped
        self.set_level(self.levels[0])

    def set_level(self, level: EffortLevel) -> None:
        """Use only the networks of an effort level, and normalise the weights of the remaining runs to the sum 1."""
        is_complete = level == self.levels[0]
        total = sum(weight for (_, weight), count in zip(self.all_runs, level.networks, strict=True) if count)
        self.active, remaining = [], []
        for (timed, weight), count in zip(self.all_runs, level.networks, strict=True):
            reduced = (
                timed if is_complete else TimedNetworks(_first_networks(timed.networks, count, level.tta), self.clock)
            )
            self.active.append(reduced if count else None)
            if count:
                remaining.append((reduced, weight / total))
        self.predictor.weighted_runs = list(self.all_runs) if is_complete else remaining

    def pop_seconds(self) -> list[float]:
        """Return the seconds that the networks of each run have taken since the last call."""
        seconds = [0.0 if timed is None else timed.seconds for timed in self.active]
        for timed in self.active:
            if timed is not None:
                timed.seconds = 0.0
        return seconds


def _first_networks(networks: Any, count: int, tta: bool) -> Any:
    """Return the first `count` networks of a run; without test-time augmentation if `tta` is False."""
    reduced = copy.copy(networks)
    reduced.networks, reduced.members = networks.networks[:count], networks.members[:count]
    if not tta:
        exp = networks.run.exp
        reduced.run = replace(
            networks.run, exp=exp.model_copy(update={"inference": exp.inference.model_copy(update={"tta": []})})
        )
    return reduced
