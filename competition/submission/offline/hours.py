"""A time limit: what is left out, in which order, and when.

The order is fixed. Test-time augmentation goes first, of all runs at once. Then networks go one at a time: always the last
of the run whose networks weigh least, which is the run's weight divided by their number, so a low weight or many folds; of
equals the later run. One network stays. What a run loses, its other networks take over; what a blend loses, its other runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MARGIN = 1.15  # what is still to come may take so much longer than what was
MEASURED = 3  # cases before anything is left out
EARLY = 0.1  # of the time: from here on one case is enough to judge by
RESERVE_SHARE, RESERVE_MOST = 0.02, 300.0  # of the time, seconds: kept for writing the file

Clock = Callable[[], float]


@dataclass(frozen=True)
class Rung:
    """How much is done for a case.

    Attributes:
        tta: whether with test-time augmentation.
        kept: networks of each run, the first ones.
    """

    tta: bool
    kept: tuple[int, ...]

    def passes(self, views: Sequence[int]) -> list[int]:
        """How often each run looks at a window."""
        return [kept * (count if self.tta else 1) for kept, count in zip(self.kept, views, strict=True)]


def ladder(weights: Sequence[float], networks: Sequence[int], views: Sequence[int]) -> list[Rung]:
    """From everything down to a single network.

    Args:
        weights: of each run, above 0.
        networks: of each run.
        views: of each run's test-time augmentation; 1 without.
    """
    kept = list(networks)
    rungs = [Rung(True, tuple(kept))]
    has_tta = any(count > 1 for count in views)
    if has_tta:
        rungs.append(Rung(False, tuple(kept)))
    while sum(kept) > 1:
        each = {run: weights[run] / count for run, count in enumerate(kept) if count}
        lightest = min(reversed(each), key=lambda run: round(each[run], 12))
        kept[lightest] -= 1
        rungs.append(Rung(not has_tta, tuple(kept)))
    return rungs


@dataclass
class Watch:
    """Measures cases, and says how much may be done for the next one.

    Args:
        rungs: see `ladder`.
        views: of each run.
        sizes: voxels of the cases to come; a case's time grows with them.
        limit: seconds in all; None: no limit, and nothing is ever left out.
        started: when the time began, on the clock.
        clock: seconds.
    """

    rungs: Sequence[Rung]
    views: Sequence[int]
    sizes: Sequence[int]
    limit: float | None
    started: float = 0.0
    clock: Clock = time.monotonic
    place: int = 0  # the rung in use
    measured: list[tuple[int, float, list[float]]] = field(
        default_factory=list
    )  # voxels, other seconds, seconds a pass

    @property
    def rung(self) -> Rung:
        """What is done for the next case."""
        return self.rungs[self.place]

    @property
    def deadline(self) -> float | None:
        """When to stop predicting, on the clock."""
        if self.limit is None:
            return None
        return self.started + self.limit - min(RESERVE_SHARE * self.limit, RESERVE_MOST)

    def late(self) -> bool:
        """Whether the time is over."""
        return self.deadline is not None and self.clock() >= self.deadline

    def done(self, seconds: float, of_runs: Sequence[float]) -> list[str]:
        """Take note of a case, and go down where the others would not fit.

        Args:
            seconds: that it took in all.
            of_runs: those that each run's networks took; 0 of a run that was left out.

        Returns:
            Lines for the user; none where nothing changes.
        """
        size = self.sizes[len(self.measured)]
        passes = self.rung.passes(self.views)
        each = [found / count if count else -1.0 for found, count in zip(of_runs, passes, strict=True)]
        self.measured.append((size, max(0.0, seconds - sum(of_runs)), each))
        if self.limit is None or self.deadline is None or len(self.measured) == len(self.sizes):
            return []
        used = self.clock() - self.started
        if len(self.measured) < MEASURED and used < EARLY * self.limit:
            return []
        left = self.deadline - self.clock()
        before, need = self.place, self.projected()
        while self.projected() * MARGIN > left and self.place + 1 < len(self.rungs):
            self.place += 1
        if self.place == before:
            return []
        return [
            f"time: {minutes(used)} used for {len(self.measured)} of {len(self.sizes)} cases; the others would take "
            f"{minutes(need)} and have {minutes(left)}",
            *self._said(before),
        ]

    def projected(self) -> float:
        """Seconds that the cases to come take on the present rung, without a margin.

        The first case is left out once there are others: it also starts the device.
        """
        known = self.measured[1:] or self.measured
        voxels = sum(size for size, _, _ in known)
        total = sum(other for _, other, _ in known)
        for run, count in enumerate(self.rung.passes(self.views)):
            seen = [(size, each[run]) for size, _, each in known if each[run] >= 0]
            if seen:  # a run that was left out is not taken up again
                total += count * voxels * sum(each for _, each in seen) / sum(size for size, _ in seen)
        return total * sum(self.sizes[len(self.measured) :]) / voxels

    def _said(self, before: int) -> list[str]:
        old, new = self.rungs[before], self.rung
        lines = ["time: no test-time augmentation from now on"] if old.tta and not new.tta else []
        if new.kept != old.kept:
            lines.append(
                f"time: {sum(new.kept)} of {sum(self.rungs[0].kept)} networks from now on (of each run: "
                f"{', '.join(map(str, new.kept))})"
            )
        if self.place + 1 == len(self.rungs) and self.projected() * MARGIN > (self.deadline or 0.0) - self.clock():
            lines.append("time: even so it may not suffice; cases that are not reached get empty masks")
        return lines


def minutes(seconds: float) -> str:
    """A time in words."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
