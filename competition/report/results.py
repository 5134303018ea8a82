"""Read the results and scores of a run from its folder, for the HTML report of the run."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config.competition import MetricConfig
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import bootstrap_interval, cv_score
from competition.runs.fold import FoldResult
from competition.runs.run import Run
from competition.runs.summary import RunScores, ScoreEstimate, other_results, parse_summary, read_run_scores, run_scores
from competition.training.soup_selection import fold_scores

if TYPE_CHECKING:
    import pandas as pd

DICE_METRIC = MetricConfig(name="dice", both_empty=None)


class PresenceCounts(NamedTuple):
    """Count the cases with and without a class, and those in which the prediction misses or invents the class."""

    present: int  # number of cases whose labels contain the class
    missed: int  # number of those cases in which the prediction has no correct pixel of the class
    absent: int  # number of cases whose labels do not contain the class
    false_alarms: int  # number of those cases in which the prediction contains the class


@dataclass(frozen=True)
class RunResults:
    """Hold the results of a run's finished folds, and the scores of their cases.

    Attributes:
        run: the run.
        members: result of each finished fold and seed.
        table: table with one row per case and class, as in `scores.csv`; None if no case was validated.
        summary: content of `summary.json`; empty if it is missing or does not describe the finished folds and seeds.
    """

    run: Run
    members: list[FoldResult]
    table: pd.DataFrame | None
    summary: dict[str, Any]

    @classmethod
    def load(cls, run: Run) -> RunResults:
        """Read the results of a run.

        If `summary.json` and `scores.csv` are outdated, because more folds are finished, the scores of the folds are
        combined again.
        """
        import pandas as pd

        members = run.results()
        folds = sorted({result.fold for result in members if result.fold >= 0})
        summary = _summary(run, {(result.fold, result.seed) for result in members})
        if not folds:
            return cls(run, members, None, summary)
        if summary:
            table = read_run_scores(run.folder)
        else:
            table = pd.concat(
                [fold_scores(run, fold, [result for result in members if result.fold == fold]) for fold in folds],
                ignore_index=True,
            )
        return cls(run, members, table, summary)

    @property
    def folds(self) -> list[int]:
        """The numbers of the finished folds that have validation cases."""
        return [] if self.table is None else sorted(int(fold) for fold in self.table["fold"].unique())

    @property
    def metric(self) -> MetricConfig:
        """The competition's metric."""
        return self.run.exp.competition.metric

    def rows(self, fold: int | None = None, cls: str | None = None) -> pd.DataFrame:
        """Return the rows of the table of scores that belong to a fold and a class.

        Args:
            fold: number of a fold; None for all folds.
            cls: name of a class; None for all classes.
        """
        assert self.table is not None
        mask = np.ones(len(self.table), bool)
        if fold is not None:
            mask &= (self.table["fold"] == fold).to_numpy()
        if cls is not None:
            mask &= (self.table["class"] == cls).to_numpy()
        return self.table[mask]

    def score(self, fold: int | None = None, cls: str | None = None) -> ScoreEstimate:
        """Return the score of a fold and a class by the competition's metric, with its 95 % interval.

        Args:
            fold: number of a fold; None for all folds.
            cls: name of a class; None for all classes.
        """
        if fold is None and cls is None and self.summary:
            values = [self.summary[key] for key in ("score", "low", "high")]
            return ScoreEstimate(*(nan if value is None else float(value) for value in values))
        return self._estimate(self.rows(fold, cls), self.metric)

    def counted(self) -> RunScores:
        """Return the run's scores; the field `counted` is the score of the masks that `maskfold submit` would write.

        If `competition.runs.summary.run_scores` finds no valid scores, this field is the result of `score()`.
        """
        try:
            scores = run_scores(self.run, self.summary)
        except MaskfoldError:
            scores = None
        if scores is not None:
            return scores
        score = self.score()
        return RunScores(self.metric.name, "raw", score, score)

    def dice(self, cls: str, fold: int | None = None) -> ScoreEstimate:
        """Return the mean Dice of a class, with its 95 % interval.

        The mean is taken over the cases whose labels or prediction contain the class.

        Args:
            cls: name of the class.
            fold: number of a fold; None for all folds.
        """
        rows = self.rows(fold, cls)
        return self._estimate(rows.assign(score=rows["dice"]), DICE_METRIC)

    def presence(self, cls: str) -> PresenceCounts:
        """Count the cases with and without a class, and those in which the prediction misses or invents the class."""
        rows = self.rows(cls=cls)
        present = rows["tp"] + rows["fn"] > 0
        return PresenceCounts(
            int(present.sum()),
            int((present & (rows["tp"] == 0)).sum()),
            int((~present).sum()),
            int((~present & (rows["fp"] > 0)).sum()),
        )

    def _estimate(self, rows: pd.DataFrame, metric: MetricConfig) -> ScoreEstimate:
        if not rows["dice"].notna().any():
            return ScoreEstimate(nan)
        too_few = rows["score"].notna().sum() < 2
        seed, groups = self.run.exp.seeds[0], self.run.groups()
        interval = (nan, nan) if too_few else bootstrap_interval(rows, metric, seed=seed, groups=groups)
        return ScoreEstimate(cv_score(rows, metric), *interval)


def _summary(run: Run, members: set[tuple[int, int]]) -> dict[str, Any]:
    """Return the content of a run's `summary.json` if it is up to date; otherwise an empty dictionary.

    Args:
        run: the run.
        members: (fold, seed) of each finished training, which the summary must describe.
    """
    try:
        summary = parse_summary(run.folder)
        summarised = {(result["fold"], result["seed"]) for result in summary["folds"]}
        is_current = summarised == members and (run.folder / "scores.csv").exists() | (summary["score"] is None)
        is_current &= not other_results(run.folder, summary)
        is_current &= all(isinstance(summary[key], float | int | None) for key in ("score", "low", "high"))
    except (OSError, ValueError, LookupError, TypeError, MaskfoldError):
        return {}
    return summary if is_current else {}
