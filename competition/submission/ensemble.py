"""Weights of an ensemble's runs, fitted on the out-of-fold cases that all of them have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.data.table import load_instances, load_mask
from competition.inference.masks import to_masks
from competition.scoring.cases import score_case
from competition.scoring.summary import Gain, cv_score, gain_interval
from competition.submission.blend import Blend, Mixture
from competition.submission.crew import Crew
from competition.submission.evaluate import shared_rows
from competition.training.oof import OutOfFold

if TYPE_CHECKING:
    import pandas as pd

Weights = tuple[float, ...]

COARSE = 4  # quarters first
FINE = 8  # then eighths around the best


@dataclass(frozen=True)
class Fitted:
    """What the search for weights found.

    Attributes:
        weights: to use: those found, or equal ones where the nested score is not better beyond its noise.
        found: the weights that are best on all cases.
        single: the score of each run alone.
        equal: the score of equal weights.
        best: of the weights found, on the cases they were found on: flattering.
        nested: of each fold's cases with the weights found on the other folds.
        gain: nested minus equal, with its 95 % interval.
        by_fold: the weights found without each fold; empty where equal weights are used.
    """

    weights: Weights
    found: Weights
    single: tuple[float, ...]
    equal: float
    best: float
    nested: float
    gain: Gain
    by_fold: dict[int, Weights]

    def lines(self, names: Sequence[str]) -> list[str]:
        """The report."""
        alone = ", ".join(f"{name} {score:.4f}" for name, score in zip(names, self.single, strict=True))
        found = ", ".join(f"{weight:g}" for weight in self.found)
        if self.weights == self.found:
            verdict = "equal weights are the best" if len(set(self.found)) == 1 else "the weights found are used"
        else:
            verdict = "equal weights are kept, since the others are not better beyond their noise"
        return [
            f"each run alone: {alone}",
            f"equal weights {self.equal:.4f}; best on all cases {self.best:.4f} ({found}); nested {self.nested:.4f} "
            f"(gain {self.gain.value:+.4f}, 95 % {self.gain.low:+.4f} to {self.gain.high:+.4f}): {verdict}",
        ]


def fit_weights(
    blend: Blend,
    seed: int,
    groups: dict[str, str] | None,
    say: Callable[[str], None] = lambda _: None,
    workers: int | None = None,
) -> Fitted:
    """Search the weights on a grid of quarters, then of eighths around the best of each descent.

    Every point is scored once on every case, with the competition's metric on plain masks; for each fold the point is
    chosen by the other folds' cases alone, which gives the nested score.

    Args:
        blend: the runs; its weights play no part.
        seed: of the bootstrap.
        groups: the group of each case, for the interval.
        say: takes lines about the progress.
        workers: processes; None: one for each core.
    """
    count, metric = len(blend.runs), blend.comp.metric
    equal = tuple([1 / count] * count)
    blend = replace(blend, weights=equal)
    rows, fold_of = shared_rows(blend), blend.out_of_fold().fold_of()
    parts: list[int | None] = [None, *sorted({fold_of[case] for case in rows})]
    corners = [tuple(float(index == place) for index in range(count)) for place in range(count)]
    known: dict[Weights, pd.DataFrame] = {}
    with Crew(_Desk([OutOfFold(run) for run in blend.runs], blend.comp, rows), list(rows), workers) as crew:

        def score(points: Sequence[Weights]) -> None:
            new = tuple(dict.fromkeys(point for point in points if point not in known))
            if new:
                known.update(_tables(crew, new, fold_of))
                say(f"weighed {len(known)} mixtures of {count} runs")

        def best(part: int | None) -> Weights:
            def value(point: Weights) -> float:
                table = known[point]
                return cv_score(table if part is None else table[table["fold"] != part], metric)

            return max(known, key=lambda point: (value(point), point == equal))

        score([equal, *corners, *grid(count, COARSE)])
        score([near for part in parts for near in around(best(part), FINE)])
        chosen = {part: best(part) for part in parts}
    import pandas as pd

    nested = pd.concat([known[chosen[part if len(parts) > 2 else None]].query("fold == @part") for part in parts[1:]])
    gain = gain_interval(known[equal], nested, metric, seed=seed, groups=groups)
    better = len(parts) > 2 and gain.low > 0
    return Fitted(
        chosen[None] if better else equal,
        chosen[None],
        tuple(cv_score(known[corner], metric) for corner in corners),
        cv_score(known[equal], metric),
        cv_score(known[chosen[None]], metric),
        cv_score(nested, metric),
        gain,
        {part: chosen[part] for part in parts if part is not None} if better else {},
    )


def grid(count: int, parts: int) -> Iterator[Weights]:
    """All weights of `count` runs in steps of 1 / parts; for many runs only mixtures of two."""
    if count > 4:
        for one in range(count):
            for other in range(count):
                for share in range(parts + 1):
                    weights = [0.0] * count
                    weights[one] += share / parts
                    weights[other] += 1 - share / parts
                    yield tuple(weights)
        return
    for numbers in np.ndindex(*[parts + 1] * (count - 1)):
        if sum(numbers) <= parts:
            yield tuple(number / parts for number in (*numbers, parts - sum(numbers)))


def around(point: Weights, parts: int) -> Iterator[Weights]:
    """The point, and those that move 1 / parts from one run to another."""
    yield point
    for one in range(len(point)):
        for other in range(len(point)):
            if one != other and point[one] > 0:
                moved = min(1 / parts, point[one])
                weights = list(point)
                weights[one] -= moved
                weights[other] += moved
                yield tuple(round(weight, 9) for weight in weights)


@dataclass(frozen=True)
class _Desk:
    """Scores mixtures of one case."""

    parts: list[OutOfFold]
    comp: Any
    rows: dict[str, Any]

    def score(self, case: str, points: Sequence[Weights]) -> list[list[dict[str, Any]]]:
        """Score rows of each point."""
        comp, row = self.comp, self.rows[case]
        truth = load_mask(comp, row)
        objects = load_instances(comp, row) if comp.instances else None
        known = [part.read(case) for part in self.parts]
        found = []
        for point in points:
            mixture = Mixture(comp)
            for probabilities, weight in zip(known, point, strict=True):
                if weight > 0:
                    mixture.add(probabilities, weight)
            found.append(score_case(to_masks(mixture.result(), comp), truth, comp, json.loads(row.spacing), objects))
        return found


def _tables(crew: Crew, points: tuple[Weights, ...], fold_of: dict[str, int]) -> dict[Weights, pd.DataFrame]:
    """The score table of each point."""
    import pandas as pd

    lines: dict[Weights, list[dict[str, Any]]] = {point: [] for point in points}
    for case, found in zip(crew.cases, crew.map("score", points), strict=True):
        for point, rows in zip(points, found, strict=True):
            lines[point] += [{"id": case, "fold": fold_of[case], **row} for row in rows]
    return {point: pd.DataFrame(rows) for point, rows in lines.items()}
