"""An ensemble of which parts can be left out, and that knows how long its runs take."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from competition.submission.members import Ensemble
from competition.submission.offline.hours import Clock, Rung, ladder


class Timed:
    """The networks of a run in the place of themselves, with the seconds they took."""

    def __init__(self, part: Any, clock: Clock) -> None:
        self.part, self.clock, self.seconds = part, clock, 0.0

    @property
    def run(self) -> Any:
        """The run."""
        return self.part.run

    def predict(self, case: Any) -> Any:
        """What the networks say of a case."""
        start = self.clock()
        try:
            return self.part.predict(case)
        finally:
            self.seconds += self.clock() - start


class Lessened:
    """An ensemble on a rung of its ladder; on the first it is what it was.

    Args:
        ensemble: is changed in place.
        clock: seconds.
    """

    def __init__(self, ensemble: Ensemble, clock: Clock) -> None:
        from competition.inference.tta import views

        self.ensemble, self.clock = ensemble, clock
        self.whole = [(Timed(part, clock), weight) for part, weight in ensemble.parts]
        self.views = [len(views(part.run.exp)) for part, _ in self.whole]
        self.rungs = ladder(
            [weight for _, weight in self.whole], [len(one.part.found) for one, _ in self.whole], self.views
        )
        self.now: list[Timed | None] = []
        self.take(self.rungs[0])

    def take(self, rung: Rung) -> None:
        """Go to a rung."""
        kept = sum(weight for (_, weight), count in zip(self.whole, rung.kept, strict=True) if count)
        self.now, parts = [], []
        for (one, weight), count in zip(self.whole, rung.kept, strict=True):
            less = one if rung == self.rungs[0] else Timed(_less(one.part, count, rung.tta), self.clock)
            self.now.append(less if count else None)
            if count:
                parts.append((less, weight / kept))
        self.ensemble.parts = parts if rung != self.rungs[0] else [(one, weight) for one, weight in self.whole]

    def seconds(self) -> list[float]:
        """What each run's networks have taken since this was last asked."""
        found = [0.0 if one is None else one.seconds for one in self.now]
        for one in self.now:
            if one is not None:
                one.seconds = 0.0
        return found


def _less(part: Any, count: int, tta: bool) -> Any:
    """A run with its first networks only, and without test-time augmentation unless it stays."""
    less = copy.copy(part)
    less.networks, less.found = part.networks[:count], part.found[:count]
    if not tta:
        exp = part.run.exp
        less.run = replace(
            part.run, exp=exp.model_copy(update={"inference": exp.inference.model_copy(update={"tta": []})})
        )
    return less
