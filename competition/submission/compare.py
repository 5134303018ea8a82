"""Two runs, case by case: their out-of-fold masks against the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import Competition, MaskfoldError
from competition.config.postprocess import Postprocess
from competition.data.table import load_instances, load_mask
from competition.scoring.cases import IGNORE, score_case, truth_masks
from competition.scoring.paired import MEAN, Difference, difference
from competition.scoring.surface import hd95, surface_dice
from competition.submission.blend import check_same
from competition.submission.members import plain_rows
from competition.submission.postprocess import Outcome, postprocess
from competition.submission.remembered import remembered
from competition.training.oof import OutOfFold
from competition.training.runs import CvRun

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("score", "dice", "surface_dice", "hd95")
BEST = {"dice": 1.0, "surface_dice": 1.0, "hd95": 0.0}  # of a class that is rightly not found
Watch = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        run: the run.
        oof: its out-of-fold predictions.
        settings: the post-processing of its masks.
        words: what that is.
    """

    run: CvRun
    oof: OutOfFold
    settings: Postprocess
    words: str

    @classmethod
    def of(cls, run: CvRun) -> Side:
        """The run with the post-processing that its expected score is of."""
        settings = run.exp.postprocess
        own = "the steps of its YAML" if settings.steps or settings.number else "no post-processing"
        if not settings.tune:
            return cls(run, OutOfFold(run), settings, own)
        tuned = remembered(run)
        if tuned is None:
            return cls(
                run, OutOfFold(run), settings, f"{own}: nothing has been tuned yet, which `maskfold submit` does"
            )
        if not tuned.kept:
            return cls(run, OutOfFold(run), tuned.settings, f"{own}, since tuned steps did not gain beyond their noise")
        return cls(
            run,
            OutOfFold(run),
            tuned.settings,
            f"the steps tuned on these very cases, which flatters it: {tuned.after:.4f}, nested {tuned.nested:.4f}",
        )

    @property
    def name(self) -> str:
        """`hippocampus-unet3d/2cb50ff146c0`."""
        return f"{self.run.name}/{self.run.folder.name}"

    def outcome(self, row: Any) -> Outcome:
        """The masks of a case."""
        return postprocess(self.oof.read(row.id), self.run.exp.competition, self.settings, row)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the cases that both predicted.

    Attributes:
        a: the first run. b: the second.
        tables: of each, a row per case and class: id, fold, class, score (the competition's metric), dice,
            surface_dice, hd95 (mm), tp, fp, fn.
        rows: rows of the case table by id.
        differences: b − a, by measure and class; those of all classes have no class.
        notes: what a reader should know of how they were compared.
    """

    a: Side
    b: Side
    tables: tuple[pd.DataFrame, pd.DataFrame]
    rows: dict[str, Any]
    differences: list[Difference]
    notes: list[str]

    @property
    def comp(self) -> Competition:
        """The competition."""
        return self.a.run.exp.competition

    def most_changed(self, count: int) -> list[tuple[str, float]]:
        """Cases and how much their score changed (b − a, mean over classes), the largest change first.

        By the competition's metric; a case in which that has no value, by Dice. Cases that did not change are left out.
        """
        from competition.scoring.paired import per_case

        found = per_case(self.tables[1]) - per_case(self.tables[0])
        dice = per_case(self.tables[1].assign(score=self.tables[1]["dice"])) - per_case(
            self.tables[0].assign(score=self.tables[0]["dice"])
        )
        found = found.fillna(dice).dropna()
        order = found.abs().sort_values(ascending=False, kind="stable").index
        return [(str(case), float(found[case])) for case in order if found[case] != 0][:count]

    def table(self) -> pd.DataFrame:
        """A row per case and class, with each measure of both runs and its difference."""
        one, other = self.tables
        joined = one[["id", "class"]].assign(fold_a=one["fold"], fold_b=other["fold"])
        for measure in MEASURES:
            joined[f"{measure}_a"], joined[f"{measure}_b"] = one[measure], other[measure]
            joined[f"{measure}_difference"] = other[measure] - one[measure]
        return joined


def compare(one: CvRun, other: CvRun, watch: Watch = lambda rows, _: rows) -> Comparison:
    """Compares two runs on the cases that both predicted out of fold; one case in memory at a time.

    Masks have each run's own post-processing. Where a class is in no truth, and one run rightly finds nothing while the
    other finds something, the first has the best value there is; where neither finds anything, the pair is left out.

    Args:
        one: the first run.
        other: the second.
        watch: wraps the cases, given their number.

    Raises:
        MaskfoldError: the runs are not of one competition, not of the same data, or share no case; or a file is damaged.
    """
    import pandas as pd

    check_same([one, other], "Compare runs of one competition.", "Name two runs.")
    sides = Side.of(one), Side.of(other)
    shared = [case for case in sides[0].oof.fold_of if case in sides[1].oof.fold_of]
    _refuse_other_data(one, other, shared)
    comp = one.exp.competition
    rows = {row.id: row for row in plain_rows(one.cases[one.cases["id"].isin(shared)])}
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in watch(iter(rows.values()), len(rows)):
        for kept, side, found in zip(lines, sides, _case(sides, row, comp), strict=True):
            kept.extend({"id": row.id, "fold": side.oof.fold_of[row.id], **line} for line in found)
    tables = pd.DataFrame(lines[0]), pd.DataFrame(lines[1])
    return Comparison(*sides, tables, rows, _differences(tables, one), _notes(sides, shared))


def _case(sides: tuple[Side, Side], row: Any, comp: Competition) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score rows of one case, by class, of both runs."""
    truth = load_mask(comp, row)
    objects = load_instances(comp, row) if comp.instances else None
    spacing = json.loads(row.spacing)
    there = truth_masks(truth, comp)
    both = []
    for side in sides:
        outcome = side.outcome(row)
        scored = score_case(outcome.masks, truth, comp, spacing, objects, outcome.objects)
        for index, line in enumerate(scored):
            mask = outcome.masks[index] & (truth[0 if comp.labels == "exclusive" else index] != IGNORE)
            line["surface_dice"] = surface_dice(mask, there[index], spacing, comp.metric.tolerance_mm)
            line["hd95"] = hd95(mask, there[index], spacing) if not isnan(line["dice"]) else float("nan")
        both.append(scored)
    for first, second in zip(*both, strict=True):
        for mine, its in ((first, second), (second, first)):
            if isnan(mine["dice"]) and not isnan(its["dice"]):
                mine.update(BEST)
                break
    return both[0], both[1]


def _differences(tables: tuple[pd.DataFrame, pd.DataFrame], run: CvRun) -> list[Difference]:
    comp, seed = run.exp.competition, run.exp.seeds[0]
    groups = dict(zip(run.cases["id"], run.cases["group"], strict=True)) if comp.group else None
    classes = comp.classes if len(comp.classes) > 1 else []
    same = all(np.array_equal(table["score"], table["dice"], equal_nan=True) for table in tables)
    same &= comp.metric.average == "case_class"
    return [
        difference(
            *tables,
            measure,
            comp.metric if measure == "score" else MEAN,
            cls,
            groups,
            seed,
            lower_is_better=measure == "hd95",
        )
        for measure in MEASURES
        if measure != "dice" or not same
        for cls in ("", *classes)
    ]


def _refuse_other_data(one: CvRun, other: CvRun, shared: list[str]) -> None:
    """Raises `MaskfoldError` where the two did not learn from, and are not scored on, the same cases."""
    hashes = [dict(zip(run.cases["id"], run.cases["hash"], strict=True)) for run in (one, other)]
    for case in hashes[0].keys() & hashes[1].keys():
        if hashes[0][case] != hashes[1][case]:
            raise MaskfoldError(
                f"The case {case} is not the same in both runs: its images or masks have changed between "
                f"{one.folder} and {other.folder}.",
                "Compare runs on the same data.",
                status=2,
            )
    if not shared:
        raise MaskfoldError(
            f"No case was predicted out of fold by both {one.folder} and {other.folder}.",
            "Finish the same folds of each, or name other runs.",
            status=2,
        )


def _notes(sides: tuple[Side, Side], shared: list[str]) -> list[str]:
    notes = [f"{letter}: {side.name}; masks with {side.words}" for letter, side in zip("AB", sides, strict=True)]
    counts = [len(side.oof.fold_of) for side in sides]
    if counts != [len(shared)] * 2:
        notes.append(f"A predicted {counts[0]} cases and B {counts[1]}; compared are the {len(shared)} that both did")
    parts = [
        {
            frozenset(case for case in shared if side.oof.fold_of[case] == fold)
            for fold in {side.oof.fold_of[case] for case in shared}
        }
        for side in sides
    ]
    if parts[0] != parts[1]:
        notes.append(
            "the folds differ: the two networks of a case did not learn from the same other cases, which is part "
            "of the difference"
        )
    metrics = [side.run.exp.competition.metric for side in sides]
    if metrics[0] != metrics[1]:
        notes.append("the metrics differ: scores are by A's")
    return notes
