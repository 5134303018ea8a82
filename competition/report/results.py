"""What a run's folder says of its scores."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config import Metric
from competition.data.records import parsed
from competition.scoring.score_table import read_scores
from competition.scoring.summary import bootstrap_interval, cv_score
from competition.training.cv import fold_scores
from competition.training.find import finished
from competition.training.job import FoldResult
from competition.training.runs import CvRun

if TYPE_CHECKING:
    import pandas as pd

DICE = Metric(name="dice", both_empty=None)


class Estimate(NamedTuple):
    """A score and its 95 % interval; nan where it is unknown: the class is absent, or there are too few cases."""

    value: float
    low: float = nan
    high: float = nan


class Presence(NamedTuple):
    """In how many cases a class is, and where the network did not notice or saw what is not there."""

    there: int  # cases whose truth has the class
    missed: int  # of these: no pixel of it was found
    empty: int  # cases whose truth has it not
    alarms: int  # of these: something was predicted


@dataclass(frozen=True)
class Results:
    """A run's finished members and the scores of their cases.

    Attributes:
        run: the run.
        members: what they say of themselves.
        table: one row per case and class, as in `scores.csv`; None where nothing was predicted out of fold.
        summary: `summary.json`; empty where it does not speak of the same members as the folder.
    """

    run: CvRun
    members: list[FoldResult]
    table: pd.DataFrame | None
    summary: dict[str, Any]

    @classmethod
    def of(cls, run: CvRun) -> Results:
        """Reads them; what the run's own `scores.csv` does not know yet is put together from the folds'."""
        import pandas as pd

        members = [
            result for member in finished(run) if (result := FoldResult.read(run.member_folder(*member))) is not None
        ]
        folds = sorted({result.fold for result in members if result.fold >= 0})
        summary = _summary(run, {(result.fold, result.seed) for result in members})
        if not folds:
            return cls(run, members, None, summary)
        if summary:
            table = read_scores(run.folder / "scores.csv")
        else:
            table = pd.concat(
                [fold_scores(run, fold, [result for result in members if result.fold == fold]) for fold in folds],
                ignore_index=True,
            )
        return cls(run, members, table, summary)

    @property
    def folds(self) -> list[int]:
        """The finished folds that validate something."""
        return [] if self.table is None else sorted(int(fold) for fold in self.table["fold"].unique())

    @property
    def metric(self) -> Metric:
        """The competition's."""
        return self.run.exp.competition.metric

    def rows(self, fold: int | None = None, cls: str | None = None) -> pd.DataFrame:
        """The rows of one fold, or of one class, or of both."""
        assert self.table is not None
        kept = np.ones(len(self.table), bool)
        if fold is not None:
            kept &= (self.table["fold"] == fold).to_numpy()
        if cls is not None:
            kept &= (self.table["class"] == cls).to_numpy()
        return self.table[kept]

    def score(self, fold: int | None = None, cls: str | None = None) -> Estimate:
        """The competition's metric, of one fold or class or of all; that of all is the one in `summary.json`."""
        if fold is None and cls is None and self.summary:
            known = [self.summary[key] for key in ("score", "low", "high")]
            return Estimate(*(nan if value is None else float(value) for value in known))
        return self._estimate(self.rows(fold, cls), self.metric)

    def dice(self, cls: str, fold: int | None = None) -> Estimate:
        """Mean Dice of a class over the cases that have it in truth or prediction."""
        rows = self.rows(fold, cls)
        return self._estimate(rows.assign(score=rows["dice"]), DICE)

    def presence(self, cls: str) -> Presence:
        """Where a class is, and what became of it."""
        rows = self.rows(cls=cls)
        there = rows["tp"] + rows["fn"] > 0
        return Presence(
            int(there.sum()),
            int((there & (rows["tp"] == 0)).sum()),
            int((~there).sum()),
            int((~there & (rows["fp"] > 0)).sum()),
        )

    def _estimate(self, rows: pd.DataFrame, metric: Metric) -> Estimate:
        if not rows["dice"].notna().any():
            return Estimate(nan)
        cases, exp = self.run.cases, self.run.exp
        groups = dict(zip(cases["id"], cases["group"], strict=True)) if exp.competition.group else None
        few = rows["score"].notna().sum() < 2
        ends = (nan, nan) if few else bootstrap_interval(rows, metric, seed=exp.seeds[0], groups=groups)
        return Estimate(cv_score(rows, metric), *ends)


def _summary(run: CvRun, members: set[tuple[int, int]]) -> dict[str, Any]:
    try:
        plain = parsed((run.folder / "summary.json").read_bytes())
        known = {(result["fold"], result["seed"]) for result in plain["folds"]}
        whole = known == members and (run.folder / "scores.csv").exists() | (plain["score"] is None)
        whole &= all(isinstance(plain[key], float | int | None) for key in ("score", "low", "high"))
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return plain if whole else {}
