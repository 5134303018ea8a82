"""Scores lists of steps on out-of-fold predictions: each case is read once for as many lists as are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config import MaskfoldError
from competition.config.postprocess import Postprocess, Step
from competition.data.table import load_instances, load_mask
from competition.scoring.cases import score_class, truth_masks
from competition.scoring.instances import Labels, components
from competition.submission.blend import Blend, BlendedOutOfFold
from competition.submission.crew import Crew
from competition.submission.postprocess import Found, beside_gates, run_steps, weighed

if TYPE_CHECKING:
    import pandas as pd

Steps = tuple[Step, ...]
Ask = dict[int, tuple[Steps, ...]]  # by class: the lists of steps to score
Rows = dict[tuple[int, Steps], dict[str, Any]]


class Truth(NamedTuple):
    """What the search looks at in the truth of one class of one case."""

    pixels: int
    objects: tuple[int, ...]  # their sizes in pixels


@dataclass(frozen=True)
class Desk:
    """Scores one case; the work of one process.

    Attributes:
        kept: the out-of-fold predictions.
        rows: rows of the case table by id.
        settings: what is not searched, but done to every case: `number`.
    """

    kept: BlendedOutOfFold
    rows: dict[str, Any]
    settings: Postprocess

    def score(self, case: str, ask: Ask) -> Rows:
        """Score rows by (class, steps)."""
        comp, row = self.kept.comp, self.rows[case]
        asked = any(step.name == "gate" for lists in ask.values() for steps in lists for step in steps)
        gate = self.kept.gate(case) if asked else None
        evidence = weighed(self.kept.read(case), comp, self.settings, row, gate)
        truth = load_mask(comp, row)
        objects = load_instances(comp, row) if comp.instances else None
        spacing = json.loads(row.spacing)
        found: Rows = {}
        for index, lists in ask.items():
            done: dict[Steps, Found] = {}
            known: dict[Steps | None, dict[str, Any]] = {}  # many gates make one mask, or none: it is scored once
            for steps in lists:
                plain = beside_gates(evidence, index, steps)
                if plain not in known:
                    one = run_steps(evidence, index, plain, done) if plain is not None else evidence.nothing
                    known[plain] = score_class(one.mask, truth, comp, index, spacing, objects, one.objects)
                found[index, steps] = known[plain]
        return found

    def truths(self, case: str, _: None) -> list[Truth]:
        """The truth of each class."""
        comp, row = self.kept.comp, self.rows[case]
        objects = load_instances(comp, row) if comp.instances else None
        return [_truth(mask, objects) for mask in truth_masks(load_mask(comp, row), comp)]


def _truth(mask: np.ndarray[Any, Any], objects: Labels | None) -> Truth:
    labels = components(mask) if objects is None else np.where(mask, objects, 0)
    sizes = np.bincount(labels.ravel().astype(np.int64))[1:]
    return Truth(int(mask.sum()), tuple(int(size) for size in sizes if size))


class Evaluation:
    """Scores of lists of steps on every case of a blend, remembered; used in a `with`, as it holds processes.

    Args:
        blend: whose out-of-fold predictions.
        workers: processes; None: one for each core.

    Raises:
        MaskfoldError: the runs share no out-of-fold case.
    """

    def __init__(self, blend: Blend, workers: int | None = None) -> None:
        self.blend, self.kept = blend, blend.out_of_fold()
        self.rows = shared_rows(blend)
        self.fold_of = self.kept.fold_of()
        self.cases = list(self.rows)
        self.known: dict[tuple[int, Steps], dict[str, dict[str, Any]]] = {}  # then by case
        self.crew = Crew(Desk(self.kept, self.rows, blend.runs[0].exp.postprocess), self.cases, workers)

    def __enter__(self) -> Evaluation:
        self.crew.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.crew.__exit__(kind, *rest)

    def score(self, ask: Ask) -> None:
        """Make sure that every list of steps has its scores in `known`."""
        new = {
            index: tuple(dict.fromkeys(steps for steps in lists if (index, steps) not in self.known))
            for index, lists in ask.items()
        }
        new = {index: lists for index, lists in new.items() if lists}
        if not new:
            return
        for case, rows in zip(self.cases, self.crew.map("score", new), strict=True):
            for key, row in rows.items():
                self.known.setdefault(key, {})[case] = row

    def truths(self) -> list[list[Truth]]:
        """The truth of each case, by class."""
        return list(self.crew.map("truths", None))

    def table(self, steps: Callable[[str, int], Steps]) -> pd.DataFrame:
        """Score rows (id, fold, class, score, dice, …) of all cases, by the steps chosen for each case and class."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"id": case, "fold": self.fold_of[case], **self.known[index, steps(case, index)][case]}
                for case in self.cases
                for index in range(len(self.blend.comp.classes))
            ]
        )


def shared_rows(blend: Blend) -> dict[str, Any]:
    """Rows of the case table, by id, of the cases that all runs of a blend predicted out of fold.

    Raises:
        MaskfoldError: there is none.
    """
    fold_of = blend.out_of_fold().fold_of()
    rows = {
        str(row["id"]): SimpleNamespace(**{str(name): value for name, value in row.items()})
        for row in blend.runs[0].cases.to_dict("records")
        if row["id"] in fold_of
    }
    if not rows:
        raise MaskfoldError(
            "No case was predicted out of fold by all of the runs.",
            "Finish the same folds of each, or name other runs.",
        )
    return rows
