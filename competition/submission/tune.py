"""Searches each class's steps on out-of-fold predictions, and says what that is worth on cases it was not tuned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import Metric
from competition.config.postprocess import Postprocess
from competition.scoring.dice import counted_score
from competition.scoring.summary import Gain, cv_score, gain_interval
from competition.submission.candidates import AGAIN, order_of, slots
from competition.submission.evaluate import Evaluation, Steps

if TYPE_CHECKING:
    import pandas as pd

PARTS = 5  # of the cases of a single fold
SMALLEST_GAIN = 0.001  # of the nested score: less is not worth a step


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        settings: the steps to use: those found, or the experiment's own where the nested score did not rise.
        found: the steps of each class that are best on all cases, used or not.
        before: the score of the experiment's own steps.
        after: of the steps found, on the cases they were found on: flattering.
        nested: of each fold's cases with the steps found on the other folds.
        gain: nested minus before, with its 95 % interval.
        kept: whether the steps found are used: the gain is at least `SMALLEST_GAIN`, and its interval is above 0.
        rows: score rows of what is used: nested where it is used, else before.
        gate: what the gate adds, the nested score of a search with it minus that of one without; None without a gate. The
            steps found have it only where that is at least `SMALLEST_GAIN`, and its interval is above 0.
    """

    settings: Postprocess
    found: dict[str, Steps]
    before: float
    after: float
    nested: float
    gain: Gain
    kept: bool
    rows: pd.DataFrame
    gate: Gain | None = None

    def lines(self) -> list[str]:
        """The report."""
        interval = f"95 % {self.gain.low:+.4f} to {self.gain.high:+.4f}"
        head = (
            f"post-processing: {self.before:.4f} untouched, {self.after:.4f} tuned on all cases, {self.nested:.4f} "
            f"nested (gain {self.gain.value:+.4f}, {interval})"
        )
        steps = [f"  {cls}: {', '.join(map(str, steps)) or 'no step'}" for cls, steps in self.found.items()]
        if self.gate is not None:
            steps.insert(
                0,
                f"the gate: {self.gate.value:+.4f} nested, beside the other steps (95 % {self.gate.low:+.4f} to "
                f"{self.gate.high:+.4f}): {'used' if beyond_noise(self.gate) else 'left out'}",
            )
        if self.kept:
            return [head, *steps]
        return [
            head,
            f"the untouched masks are kept: nested, the tuned steps do not gain {SMALLEST_GAIN} beyond their "
            "noise; they were",
            *steps,
        ]


def tune(
    evaluation: Evaluation, seed: int, groups: dict[str, str] | None, say: Callable[[str], None] = lambda _: None
) -> Tuned:
    """Coordinate descent over the slots of each class, for all cases and once without each fold.

    A list of steps is scored once on every case; the descents only choose among those scores, each by its own cases.

    Args:
        evaluation: of the blend, open.
        seed: of the bootstrap.
        groups: the group of each case, for the intervals.
        say: takes lines about the progress.
    """
    exp, comp = evaluation.blend.runs[0].exp, evaluation.blend.comp
    own = [exp.postprocess.of(name) for name in comp.classes]
    part_of = parts_of(evaluation.rows, evaluation.fold_of, seed)
    numbers = sorted(set(part_of.values()))
    parts = [None, *numbers] if len(numbers) > 1 else [None]
    best = _Search(evaluation, own, parts, part_of).run(say)
    before = evaluation.table(lambda _, index: own[index])

    def on_others(best: dict[int | None, list[Steps]]) -> pd.DataFrame:
        if len(numbers) == 1:
            return before  # there are no other cases to tune on
        return evaluation.table(lambda case, index: best[part_of[case]][index])

    nested, gate = on_others(best), None
    if evaluation.kept.gated:
        gated = _Search(evaluation, own, parts, part_of, gate=True).run(say)
        gate = gain_interval(nested, on_others(gated), comp.metric, seed=seed, groups=groups)
        if beyond_noise(gate):
            best, nested = gated, on_others(gated)
    after = evaluation.table(lambda _, index: best[None][index])
    gain = gain_interval(before, nested, comp.metric, seed=seed, groups=groups)
    kept = beyond_noise(gain)
    found = dict(zip(comp.classes, best[None], strict=True))
    settings = exp.postprocess.model_copy(
        update={"steps": {name: list(steps) for name, steps in found.items()}} if kept else {}
    )
    return Tuned(
        settings,
        found,
        cv_score(before, comp.metric),
        cv_score(after, comp.metric),
        cv_score(nested, comp.metric),
        gain,
        kept,
        nested if kept else before,
        gate,
    )


def beyond_noise(gain: Gain) -> bool:
    """Whether a gain is worth a step."""
    return bool(gain.value >= SMALLEST_GAIN and gain.low > 0)


def parts_of(rows: Mapping[str, Any], fold_of: Mapping[str, int], seed: int) -> dict[str, int]:
    """The part of each case that nested tuning leaves out with it: its fold.

    Where only one fold was predicted (a holdout, `folds.run: [0]`), its cases are dealt out to `PARTS` parts, groups whole:
    no network saw any of them. Fewer groups than that are one part.

    Args:
        rows: of the case table by id; `group` is read.
        fold_of: the fold that predicted each case.
        seed: of the deal.
    """
    if len({fold_of[case] for case in rows}) > 1:
        return {case: fold_of[case] for case in rows}
    names = sorted({str(row.group) for row in rows.values()})
    if len(names) < PARTS:
        return dict.fromkeys(rows, 0)
    order = np.random.default_rng(seed).permutation(len(names))
    part = {names[index]: place % PARTS for place, index in enumerate(order)}
    return {case: part[str(row.group)] for case, row in rows.items()}


class _Search:
    """The descents, side by side, so that each pass over the cases serves all of them."""

    def __init__(
        self,
        evaluation: Evaluation,
        own: Sequence[Steps],
        parts: Sequence[int | None],
        part_of: Mapping[str, int],
        gate: bool = False,
    ) -> None:
        self.evaluation, self.own, self.parts, self.gate = evaluation, own, parts, gate
        self.metric = evaluation.blend.comp.metric
        classes = range(len(own))
        self.best: dict[tuple[int | None, int], Steps] = {
            (part, index): own[index] for part in parts for index in classes
        }
        mine = np.array([part_of[case] for case in evaluation.cases])
        self.chosen = {part: np.ones(len(mine), bool) if part is None else mine != part for part in parts}

    def run(self, say: Callable[[str], None]) -> dict[int | None, list[Steps]]:
        """Each slot in turn, and those of `AGAIN` once more; the best steps of each class for each part."""
        exp, truths = self.evaluation.blend.runs[0].exp, self.evaluation.truths()
        largest = max(int(np.prod(_shape(row))) for row in self.evaluation.rows.values())
        boundary = any(run.exp.prepare.boundary is not None for run, _ in self.evaluation.blend.active)
        plans = [
            slots(exp, [case[index] for case in truths], largest, boundary, own, self.gate)
            for index, own in enumerate(self.own)
        ]
        self.evaluation.score({index: (own,) for index, own in enumerate(self.own)})
        count = max(len(plan) for plan in plans)
        for sweep in range(2):
            for place in range(count):
                turn = [
                    (index, plan[place])
                    for index, plan in enumerate(plans)
                    if place < len(plan) and (sweep == 0 or set(plan[place].names) & set(AGAIN))
                ]
                if not turn:
                    continue
                ask = {
                    index: tuple(
                        dict.fromkeys(
                            steps
                            for part in self.parts
                            for steps in slot.lists(self.best[part, index], order_of(self.own[index]))
                        )
                    )
                    for index, slot in turn
                }
                self.evaluation.score(ask)
                for part in self.parts:
                    for index, slot in turn:
                        self._choose(part, index, slot.lists(self.best[part, index], order_of(self.own[index])))
                kinds = ", ".join(dict.fromkeys(" or ".join(slot.names) for _, slot in turn)).replace("_", " ")
                say(f"tuning {kinds}: {self._value(None):.4f} on all cases")
        return {part: [self.best[part, index] for index in range(len(self.own))] for part in self.parts}

    def _choose(self, part: int | None, index: int, lists: Sequence[Steps]) -> None:
        """The best list; the present one where none is better, and of equals the first, which is the plainer."""
        now = self._score(part, index, self.best[part, index])
        for steps in lists:
            value = self._score(part, index, steps)
            if isfinite(value) and not value <= now + 1e-9:
                self.best[part, index], now = steps, value

    def _score(self, part: int | None, index: int, steps: Steps) -> float:
        """The metric of one class on the cases of one descent."""
        known = self.evaluation.known[index, steps]
        return class_value([known[case] for case in self.evaluation.cases], self.metric, self.chosen[part])

    def _value(self, part: int | None) -> float:
        classes = range(len(self.own))
        return float(np.nanmean([self._score(part, index, self.best[part, index]) for index in classes]))


def class_value(rows: Sequence[dict[str, Any]], metric: Metric, chosen: np.ndarray[Any, Any]) -> float:
    """The metric of one class over the chosen cases; nan where none of them is scored."""
    if metric.average == "global":
        counts = [np.array([row[key] for row in rows])[chosen].sum() for key in ("tp", "fp", "fn")]
        return float(counted_score(metric, *counts))
    scores = np.array([row["score"] for row in rows], np.float64)[chosen]
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def _shape(row: Any) -> list[int]:
    import json

    return list(json.loads(row.shape))
