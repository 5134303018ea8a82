"""How many steps there will be: fixed by the YAML, or found from the clock so that a budget is kept.

The schedule asks for the share of training that is done. Without a budget that is `step / total`. Under
`training.budget_minutes` the total is estimated again and again while the fold runs; every estimate is a pair
`[step, total]`: from that step on, the share that is left is spread evenly over the steps that are left. The pairs are
kept in the checkpoint and in the fold's own YAML, so that a replay follows the plan and not the clock.
"""

from __future__ import annotations

from collections.abc import Callable

from competition.config import Experiment

FIRST_LOOK = 12  # steps before the first estimate; the first few are slower than the rest
WARM = 4  # of each process


class Plan:
    """The share of training that is done at a step.

    Args:
        total: steps in all, as far as is known at the start.
        pairs: the plan of an earlier process or of a run that is replayed.
        seconds: the budget; None follows `pairs` (or `total`) whatever the clock says.
    """

    def __init__(self, total: int, pairs: list[list[int]] | None = None, seconds: float | None = None) -> None:
        self.pairs = [list(pair) for pair in pairs] if pairs else [[0, max(1, total)]]
        self.seconds = seconds
        self._looks = 0
        self._mark = (0, 0.0)  # the step and the seconds from which this process measures its pace

    @classmethod
    def of(cls, exp: Experiment, steps_per_epoch: int) -> Plan:
        """The plan at the start of a fold."""
        training = exp.training
        seconds = None if training.budget_minutes is None or training.plan else 60.0 * training.budget_minutes
        return cls(training.epochs * steps_per_epoch, training.plan, seconds)

    def share(self, step: int) -> float:
        """The share of training that is done before `step`, in [0, 1]."""
        share = 0.0
        for index, (start, total) in enumerate(self.pairs):
            if start >= step and index:
                break
            following = self.pairs[index + 1][0] if index + 1 < len(self.pairs) else step
            until = min(step, following)
            share += (1.0 - share) * (until - start) / max(1, total - start)
        return min(1.0, share)

    def done(self, step: int) -> bool:
        """Whether `step` steps were all."""
        return step >= self._total_at(step)

    def _total_at(self, step: int) -> int:
        return next(total for start, total in reversed(self.pairs) if start <= step)

    def look_again(self) -> None:
        """Measure the pace anew: training has gone back."""
        self._looks = 0

    def look_at_clock(self, step: int, elapsed: float, reserve: Callable[[], float]) -> None:
        """Estimate the total again where a budget runs and enough steps have passed since the last estimate.

        Args:
            step: steps done.
            elapsed: seconds since the fold began, earlier processes included.
            reserve: gives the seconds that the end of the fold will need after the last step.
        """
        if self.seconds is None:
            return
        self._looks += 1
        if self._looks == WARM:
            self._mark = (step, elapsed)
        start, total = self.pairs[-1]
        due = start + (FIRST_LOOK if len(self.pairs) == 1 else max(FIRST_LOOK, (total - start) // 8))
        if step < due or step >= total or self._looks <= WARM:
            return
        pace = (elapsed - self._mark[1]) / (step - self._mark[0])  # validations included, as they will be again
        left = max(1, int((self.seconds - elapsed - reserve()) / max(pace, 1e-9)))
        self.pairs.append([step, step + left])
