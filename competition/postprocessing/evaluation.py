"""Score several lists of post-processing steps on out-of-fold predictions, in several processes.

To save time, each case is read once and scored with all lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.data.objects import CaseObjects
from competition.errors import MaskfoldError
from competition.metrics.instances import connected_components
from competition.metrics.scoring import score_case, score_class, split_classes
from competition.postprocessing.case import ClassMask
from competition.postprocessing.pipeline import apply_ordering, drop_passing_gates, postprocess, run_steps
from competition.postprocessing.steps import TruthSizes
from competition.process import ProcessPool, count_cores
from competition.runs.blend import Ensemble, EnsembleOof

if TYPE_CHECKING:
    import pandas as pd

MAX_SERIAL_CASES = 8  # up to this number of cases, starting processes takes longer than scoring
Steps = tuple[StepConfig, ...]
StepsByClass = dict[int, tuple[Steps, ...]]  # the lists of steps to score, by class
ScoreRows = dict[tuple[int, Steps], dict[str, Any]]


class OofScores:
    """Score lists of post-processing steps on all out-of-fold cases of an ensemble, and store the scores.

    Use the object in a `with` block, because the end of the block ends the processes.

    Args:
        ensemble: the runs whose out-of-fold predictions are scored.
        workers: number of processes; None for one per core.

    Raises:
        MaskfoldError: the runs have no out-of-fold case in common.
    """

    def __init__(self, ensemble: Ensemble, workers: int | None = None) -> None:
        self.ensemble, self.oof = ensemble, ensemble.out_of_fold()
        self.rows = shared_case_rows(ensemble)
        self.fold_of = self.oof.fold_of()
        self.cases = list(self.rows)
        # Scores by (index of the class, list of steps), then by case id.
        self.scores: dict[tuple[int, Steps], dict[str, dict[str, Any]]] = {}
        self.pool = scoring_pool(
            CaseScorer(self.oof, self.rows, ensemble.runs[0].exp.postprocess), len(self.cases), workers
        )

    def __enter__(self) -> OofScores:
        self.pool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.pool.__exit__(kind, *rest)

    def score(self, requests: StepsByClass) -> None:
        """Score lists of steps on all cases, and add the results to `scores`; skip lists that were scored before.

        Args:
            requests: the lists of steps to score, by index of the class.
        """
        new = {
            index: tuple(dict.fromkeys(steps for steps in lists if (index, steps) not in self.scores))
            for index, lists in requests.items()
        }
        new = {index: lists for index, lists in new.items() if lists}
        if not new:
            return
        for case, rows in zip(self.cases, self.pool.map(CaseScorer.score, self.cases, new), strict=True):
            for key, row in rows.items():
                self.scores.setdefault(key, {})[case] = row

    def truth_sizes(self) -> list[list[TruthSizes]]:
        """Return, for each case and each class, the size in pixels of the labelled area and of each labelled object."""
        return list(self.pool.map(CaseScorer.truth_sizes, self.cases))

    def score_table(self, steps: Callable[[str, int], Steps]) -> pd.DataFrame:
        """Return the scores of all cases as a table with one row per case and class (id, fold, class, score, …).

        With `postprocess.forbid_overlap`, the mask of a class depends on the steps of all classes, so this method
        scores the cases again.

        Args:
            steps: function of a case id and the index of a class. It returns the list of steps whose score the table
                contains. `score` must have scored this list before.
        """
        import pandas as pd

        chosen = {
            case: tuple(steps(case, index) for index in range(len(self.ensemble.comp.classes))) for case in self.cases
        }
        rows: Iterable[list[dict[str, Any]]]
        if self.ensemble.runs[0].exp.postprocess.forbid_overlap:
            rows = self.pool.map(CaseScorer.score_without_overlap, list(chosen.items()))
        else:
            rows = ([self.scores[key][case] for key in enumerate(lists)] for case, lists in chosen.items())
        return pd.DataFrame(
            [
                {"id": case, "fold": self.fold_of[case], **row}
                for case, case_rows in zip(self.cases, rows, strict=True)
                for row in case_rows
            ]
        )


def scoring_pool(scorer: Any, cases: int, workers: int | None = None) -> ProcessPool:
    """Return a pool of processes that score cases.

    For at most `MAX_SERIAL_CASES` cases, the pool starts no processes and works in this process.

    Args:
        scorer: the object whose methods score a case.
        cases: number of cases.
        workers: number of processes; None for one per core.
    """
    count = min(workers or count_cores(), cases) if cases > MAX_SERIAL_CASES else 1
    return ProcessPool(
        scorer,
        count if count > 1 else 0,
        "scored out-of-fold predictions",
        "Run the command again on one core: put `taskset -c 0` in front of it.",
    )


def shared_case_rows(ensemble: Ensemble) -> dict[str, SimpleNamespace]:
    """Return the rows of the case table, by id, for the cases that have an out-of-fold prediction in all runs.

    Raises:
        MaskfoldError: there is no such case.
    """
    fold_of = ensemble.out_of_fold().fold_of()
    rows = ensemble.runs[0].rows(fold_of)
    if not rows:
        raise MaskfoldError(
            "The runs have no out-of-fold case in common: no case has a prediction of every run.",
            "Finish the same folds of each run, or name other runs.",
        )
    return rows


@dataclass(frozen=True)
class CaseScorer:
    """Score cases in a worker process, one at a time.

    Attributes:
        oof: the out-of-fold predictions.
        rows: rows of the case table by id.
        settings: section `postprocess` of the experiment. Its key `steps` is not used, because the methods receive the
            steps to score as arguments. The method `score` uses only the key `number`, because `forbid_overlap` needs
            the masks of all classes at once.
    """

    oof: EnsembleOof
    rows: dict[str, Any]
    settings: PostprocessConfig

    def score(self, case: str, requests: StepsByClass) -> ScoreRows:
        """Score one case with several lists of steps.

        Args:
            case: id of the case.
            requests: the lists of steps to score, by index of the class.

        Returns:
            For each pair (index of the class, list of steps), a dictionary with the scores: score, dice, tp, ….
        """
        comp, row = self.oof.comp, self.rows[case]
        needs_presence = any(
            step.step.needs_presence for lists in requests.values() for steps in lists for step in steps
        )
        presence = self.oof.presence(case) if needs_presence else None
        evidence = apply_ordering(self.oof.read(case), comp, self.settings, row, presence)
        truth = load_unchanged_mask(comp, row)
        objects = load_unchanged_objects(comp, row) if comp.instances else None
        spacing = json.loads(row.spacing)
        result: ScoreRows = {}
        for index, lists in requests.items():
            cache: dict[Steps, ClassMask] = {}
            # Many thresholds of the step `gate` give the same mask, so score each mask only once.
            scores: dict[Steps | None, dict[str, Any]] = {}
            for steps in lists:
                active = drop_passing_gates(evidence, index, steps)
                if active not in scores:
                    mask = run_steps(evidence, index, active, cache) if active is not None else evidence.empty
                    scores[active] = score_class(mask.mask, truth, comp, index, spacing, objects, mask.objects)
                result[index, steps] = scores[active]
        return result

    def score_without_overlap(self, item: tuple[str, Sequence[Steps]]) -> list[dict[str, Any]]:
        """Score one case with one list of steps per class and with `postprocess.forbid_overlap`.

        Args:
            item: id of the case, and the list of steps of each class.

        Returns:
            One dictionary with the scores for each class.
        """
        case, chosen = item
        comp, row = self.oof.comp, self.rows[case]
        steps = {name: list(own) for name, own in zip(comp.classes, chosen, strict=True)}
        needs_presence = any(step.step.needs_presence for own in chosen for step in own)
        presence = self.oof.presence(case) if needs_presence else None
        settings = self.settings.model_copy(update={"steps": steps})
        prediction = postprocess(self.oof.read(case), comp, settings, row, presence)
        truth = load_unchanged_mask(comp, row)
        objects = load_unchanged_objects(comp, row) if comp.instances else None
        return score_case(prediction.masks, truth, comp, json.loads(row.spacing), objects, prediction.objects)

    def truth_sizes(self, case: str) -> list[TruthSizes]:
        """Return, for each class of a case, the size in pixels of the labelled area and of each labelled object."""
        comp, row = self.oof.comp, self.rows[case]
        objects = load_unchanged_objects(comp, row) if comp.instances else None
        masks = split_classes(load_unchanged_mask(comp, row), comp)
        return [_sizes_of(mask, objects, index) for index, mask in enumerate(masks)]


def _sizes_of(mask: np.ndarray[Any, Any], objects: CaseObjects | None, index: int) -> TruthSizes:
    found = CaseObjects(connected_components(mask)) if objects is None else objects.of_class(mask, index)
    return TruthSizes(int(mask.sum()), tuple(int(size) for size in found.sizes()))
