"""Looks at a running trial's folder and tells Optuna what folds have validated: the pruner decides on that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from competition.config.study import Study
from competition.data.records import journal_lines
from competition.scoring.score_table import read_scores
from competition.training.job import FoldResult
from competition.training.runs import CvRun

if TYPE_CHECKING:
    import optuna

PAUSE = 1.0  # s between two looks
LONGEST = 100_000  # epochs of a fold: steps of the next fold begin beyond


class Pruned(Exception):
    """The trial is surely worse than the best, or worse than most; says after what."""


class Watch:
    """Called again and again while folds run; raises `Pruned` when the trial is to stop.

    With `wilcoxon` each validated case is a step, so that even one fold's cases are enough for the paired test; the case's
    place in the case table is the step, whatever the order of folds. With `median` and `hyperband` each validation is a
    step, fold after fold; of folds that run side by side the later ones wait their turn.

    Args:
        run: the trial's run.
        trial: Optuna's trial.
        study: which pruner.
    """

    def __init__(self, run: CvRun, trial: optuna.Trial, study: Study) -> None:
        self.run, self.trial, self.study = run, trial, study
        self.place = {case: place for place, case in enumerate(run.cases["id"])}
        self.fold_of = {
            self.place[str(case)]: int(fold)
            for case, fold in run.folds[["id", "fold"]].itertuples(index=False)
            if str(case) in self.place
        }
        self.reported: set[int] = set()
        self._looked = 0.0

    def __call__(self) -> None:
        if self.study.pruner == "none" or time.monotonic() - self._looked < PAUSE:
            return
        self._looked = time.monotonic()
        self.look()

    def look(self) -> None:
        """Report what is new; ask the pruner.

        Raises:
            Pruned: the trial is to stop.
        """
        new = self._cases() if self.study.pruner == "wilcoxon" else self._validations()
        for step, value in new:
            self.trial.report(value, step)
            self.reported.add(step)
            if self.study.pruner != "wilcoxon" and self.trial.should_prune():
                raise Pruned(f"pruned at fold {step // LONGEST}, epoch {step % LONGEST}")
        if new and self.study.pruner == "wilcoxon" and self.trial.should_prune():
            folds = sorted({self.fold_of[place] for place in self.reported})
            raise Pruned(
                f"pruned after fold {', '.join(map(str, folds))}: on {len(self.reported)} cases it is worse than "
                f"the best trial (p < {self.study.p_value:g})"
            )

    def _cases(self) -> list[tuple[int, float]]:
        """(place in the case table, score) of the cases of folds that have finished since."""
        found = []
        for fold, seed in self.run.members():
            folder = self.run.member_folder(fold, seed)
            if seed == 0 and FoldResult.read(folder) is not None and (folder / "scores.csv").exists():
                table = read_scores(folder / "scores.csv")
                means = table.groupby("id", sort=False)["score"].mean().dropna()
                found += [(self.place[str(case)], float(value)) for case, value in means.items()]
        return [pair for pair in found if pair[0] not in self.reported]

    def _validations(self) -> list[tuple[int, float]]:
        """(fold-major epoch, score) of the validations since."""
        found: list[tuple[int, float]] = []
        for order, (fold, seed) in enumerate(self.run.members()):
            folder = self.run.member_folder(fold, seed)
            found += [
                (order * LONGEST + int(line.epoch), line.metrics["val/score"])
                for line in journal_lines(folder / "metrics.jsonl")
                if "val/score" in line.metrics
            ]
            if FoldResult.read(folder) is None:
                break
        return [pair for pair in found if pair[0] not in self.reported]
