"""Score the out-of-fold masks of two runs case by case, and compare the scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.competition import Competition
from competition.config.metric import Direction
from competition.config.postprocess import PostprocessConfig
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import PLAIN_MEAN, PairedDifference, mean_score_per_case, paired_difference
from competition.metrics.scoring import IGNORE_LABEL, score_case, split_classes
from competition.metrics.surface import hd95, surface_dice
from competition.postprocessing.case import CasePrediction
from competition.postprocessing.pipeline import postprocess
from competition.postprocessing.tuning import TuningResult, load_tuning, tuning_parts
from competition.runs.blend import check_same_competition
from competition.runs.oof import OofPredictions
from competition.runs.run import Run
from competition.text import format_count

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("score", "dice", "surface_dice", "hd95")
# Values of the measures for a mask that is empty as it should be.
BEST_VALUES = {"dice": 1.0, "surface_dice": 1.0, "hd95": 0.0}
ProgressWrapper = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class ComparedRun:
    """Hold one of the two runs that are compared, with its predictions and post-processing.

    Attributes:
        run: the run.
        oof: out-of-fold predictions of the run.
        settings: the post-processing for cases that are not in `nested`.
        description: text about the post-processing, for the report.
        nested: post-processing for each case, by id, which was tuned on the folds that do not contain the case. Empty
            if all cases get `settings`.
    """

    run: Run
    oof: OofPredictions
    settings: PostprocessConfig
    description: str
    nested: Mapping[str, PostprocessConfig] = field(default_factory=dict)

    @classmethod
    def from_run(cls, run: Run, tuned: TuningResult | None = None) -> ComparedRun:
        """Prepare a run for the comparison, so that no case gets post-processing that was tuned on this case.

        Args:
            run: the run.
            tuned: tuning result of the run. If `tuned.kept` is True, each case gets the steps that were tuned on the
                other folds. If it is False, or if `tuned` is None, all cases get the steps of the YAML.
        """
        settings, oof = run.exp.postprocess, run.oof()
        own = "the steps of its YAML" if settings.has_own_steps else "no post-processing"
        if tuned is None:
            return cls(run, oof, settings, own)
        if not tuned.kept:
            return cls(run, oof, tuned.settings, f"{own}, because the gain of the tuned steps was not significant")
        part_of = tuning_parts(run.rows(oof.fold_of), oof.fold_of, run.exp.seeds[0])
        by_part = {part: tuned.nested_settings(part) for part in set(part_of.values())}
        nested = {case: by_part[part] for case, part in part_of.items()}
        return cls(run, oof, tuned.settings, "steps tuned on the other folds", nested)

    @property
    def name(self) -> str:
        """The name of the run with its hash, e.g. `hippocampus-unet3d/2cb50ff146c0`."""
        return self.run.full_name

    def predict(self, row: Any) -> CasePrediction:
        """Return the masks of a case after post-processing; `row` is its row in the case table."""
        settings, comp = self.nested.get(row.id, self.settings), self.run.exp.competition
        needs_presence = any(step.step.needs_presence for name in comp.classes for step in settings.steps_for(name))
        presence = self.oof.presence(row.id) if needs_presence else None
        return postprocess(self.oof.read(row.id), comp, settings, row, presence)


def _on_same_footing(run_a: Run, run_b: Run) -> tuple[tuple[ComparedRun, ComparedRun], str]:
    """Prepare both runs for the comparison with the same kind of post-processing.

    If both runs have tuned steps, each case gets the steps that were tuned on the other folds. Otherwise, both runs get
    the steps of their YAML, because tuned steps would give one of them an unfair advantage.

    Returns:
        The two prepared runs, and a note for the user about their post-processing.
    """
    runs = run_a, run_b
    tuned = [load_tuning(run) if run.exp.postprocess.tune else None for run in runs]
    usable = [result is not None and (not result.kept or bool(result.part_steps)) for result in tuned]
    if all(usable):
        sides = ComparedRun.from_run(run_a, tuned[0]), ComparedRun.from_run(run_b, tuned[1])
        return sides, (
            "both runs have the post-processing that `maskfold submit` would use: each case gets the steps that were "
            "tuned on the other folds"
        )
    note = "both runs have the post-processing steps of their YAML, none of which was tuned on these cases"
    missing = [letter for letter, is_usable in zip("AB", usable, strict=True) if not is_usable]
    if any(run.exp.postprocess.tune for run in runs):
        note += (
            f". Tuned steps are compared only if both runs have them, but {' and '.join(missing)} "
            f"{'has' if len(missing) == 1 else 'have'} none. To tune the steps, set postprocess.tune to true and run "
            "`maskfold submit`"
        )
    return (ComparedRun.from_run(run_a), ComparedRun.from_run(run_b)), note


@dataclass(frozen=True)
class Comparison:
    """Hold the comparison of two runs, A and B, on the cases that both runs have predicted.

    Attributes:
        a: run A.
        b: run B.
        tables: table of each run, with one row per case and class. Columns: id, fold, class, score (the competition's
            metric), dice, surface_dice, hd95 (mm), tp, fp, fn.
        rows: rows of the case table by id.
        differences: difference B − A of each measure, for each class and over all classes. The name of the class is
            empty for the difference over all classes.
        notes: remarks that the user needs to interpret the differences.
    """

    a: ComparedRun
    b: ComparedRun
    tables: tuple[pd.DataFrame, pd.DataFrame]
    rows: dict[str, Any]
    differences: list[PairedDifference]
    notes: list[str]

    @property
    def comp(self) -> Competition:
        """The competition of the runs."""
        return self.a.run.exp.competition

    def most_changed(self, count: int) -> list[tuple[str, float]]:
        """Return the cases whose scores differ most between the runs.

        The change of a case is its score with B minus its score with A, averaged over the classes. The score is the
        competition's metric, or Dice if the case has no value of the metric. Cases without a change are left out.

        Args:
            count: maximum number of cases.

        Returns:
            (case id, change) of each case, the largest absolute change first.
        """
        change = mean_score_per_case(self.tables[1]) - mean_score_per_case(self.tables[0])
        dice = mean_score_per_case(self.tables[1].assign(score=self.tables[1]["dice"])) - mean_score_per_case(
            self.tables[0].assign(score=self.tables[0]["dice"])
        )
        change = change.fillna(dice).dropna()
        order = change.abs().sort_values(ascending=False, kind="stable").index
        return [(str(case), float(change[case])) for case in order if change[case] != 0][:count]

    def table(self) -> pd.DataFrame:
        """Return a table with one row per case and class.

        Columns: id, class, fold_a, fold_b, and for each measure `<measure>_a`, `<measure>_b` and
        `<measure>_difference`.
        """
        a, b = self.tables
        joined = a[["id", "class"]].assign(fold_a=a["fold"], fold_b=b["fold"])
        for measure in MEASURES:
            joined[f"{measure}_a"], joined[f"{measure}_b"] = a[measure], b[measure]
            joined[f"{measure}_difference"] = b[measure] - a[measure]
        return joined


def compare_two_runs(run_a: Run, run_b: Run, watch: ProgressWrapper = lambda rows, _: rows) -> Comparison:
    """Compare two runs on the cases of which both have an out-of-fold prediction; one case is in memory at a time.

    Both runs get the same kind of post-processing, so that the comparison is fair: steps that were tuned on the other
    folds, or the steps of their YAML. `Comparison.notes` states which.

    If the labels of a case do not contain a class, and only one run predicts this class, the other run gets the best
    value of Dice, surface Dice and HD95. If neither run predicts the class, these three measures have no value.

    Args:
        run_a: the first run.
        run_b: the second run.
        watch: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator and
            the number of cases, and returns an iterator.

    Raises:
        MaskfoldError: the runs differ in competition or data, or have no case in common; or a file is damaged.
    """
    import pandas as pd

    check_same_competition([run_a, run_b], "Name two runs of the same competition.", "Name two runs.")
    sides, footing = _on_same_footing(run_a, run_b)
    shared = [case for case in sides[0].oof.fold_of if case in sides[1].oof.fold_of]
    _check_same_data(run_a, run_b, shared)
    comp = run_a.exp.competition
    rows = run_a.rows(shared)
    scores: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in watch(iter(rows.values()), len(rows)):
        for side_scores, side, case_scores in zip(scores, sides, _score_case(sides, row, comp), strict=True):
            side_scores.extend({"id": row.id, "fold": side.oof.fold_of[row.id], **score} for score in case_scores)
    tables = pd.DataFrame(scores[0]), pd.DataFrame(scores[1])
    return Comparison(*sides, tables, rows, _differences(tables, run_a), [*_notes(sides, shared), footing])


def _score_case(
    sides: tuple[ComparedRun, ComparedRun], row: Any, comp: Competition
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the scores of one case for both runs: for each run, one dictionary per class.

    Args:
        sides: the two runs.
        row: row of the case table.
        comp: the competition.
    """
    truth = load_unchanged_mask(comp, row)
    objects = load_unchanged_objects(comp, row) if comp.instances else None
    spacing = json.loads(row.spacing)
    class_masks = split_classes(truth, comp)
    scores = []
    for side in sides:
        prediction = side.predict(row)
        side_scores = score_case(prediction.masks, truth, comp, spacing, objects, prediction.objects)
        for index, score in enumerate(side_scores):
            mask = prediction.masks[index] & (truth[0 if comp.labels == "exclusive" else index] != IGNORE_LABEL)
            score["surface_dice"] = surface_dice(mask, class_masks[index], spacing, comp.metric.tolerance_mm)
            score["hd95"] = hd95(mask, class_masks[index], spacing) if not isnan(score["dice"]) else float("nan")
        scores.append(side_scores)
    for score_a, score_b in zip(*scores, strict=True):
        if isnan(score_a["dice"]) and not isnan(score_b["dice"]):
            score_a.update(BEST_VALUES)
        elif isnan(score_b["dice"]) and not isnan(score_a["dice"]):
            score_b.update(BEST_VALUES)
    return scores[0], scores[1]


def _differences(tables: tuple[pd.DataFrame, pd.DataFrame], run: Run) -> list[PairedDifference]:
    comp, seed, groups = run.exp.competition, run.exp.seeds[0], run.groups()
    classes = comp.classes if len(comp.classes) > 1 else []
    same_as_score = [
        measure
        for measure in MEASURES[1:]
        if comp.metric.average == "case_class"
        and all(np.array_equal(table["score"], table[measure], equal_nan=True) for table in tables)
    ]
    return [
        paired_difference(
            *tables,
            measure,
            comp.metric if measure == "score" else PLAIN_MEAN,
            cls,
            groups,
            seed,
            Direction.LOWER if measure == "hd95" else None,
        )
        for measure in MEASURES
        if measure not in same_as_score
        for cls in ("", *classes)
    ]


def _check_same_data(run_a: Run, run_b: Run, shared: list[str]) -> None:
    """Check that two runs have predicted common cases, and that common cases have the same files in both runs.

    Args:
        run_a: the first run.
        run_b: the second run.
        shared: ids of the cases of which both runs have a prediction.

    Raises:
        MaskfoldError: the images or masks of a case differ, or `shared` is empty (status 2).
    """
    hashes = [dict(zip(run.cases["id"], run.cases["hash"], strict=True)) for run in (run_a, run_b)]
    for case in hashes[0].keys() & hashes[1].keys():
        if hashes[0][case] != hashes[1][case]:
            raise MaskfoldError(
                f"The images or masks of case {case} differ between {run_a.folder} and {run_b.folder}.",
                "Compare runs that were trained on the same data.",
                status=2,
            )
    if not shared:
        raise MaskfoldError(
            f"{run_a.folder} and {run_b.folder} have no out-of-fold case in common.",
            "Finish the same folds of each run, or name other runs.",
            status=2,
        )


def _notes(sides: tuple[ComparedRun, ComparedRun], shared: list[str]) -> list[str]:
    notes = [
        f"{letter}: {side.name}; post-processing of the masks: {side.description}"
        for letter, side in zip("AB", sides, strict=True)
    ]
    counts = [len(side.oof.fold_of) for side in sides]
    if counts != [len(shared)] * 2:
        notes.append(
            f"A predicted {format_count(counts[0], 'case')}, and B predicted {format_count(counts[1], 'case')}; the "
            f"comparison uses the {format_count(len(shared), 'case')} that both runs predicted"
        )
    partitions = [
        {
            frozenset(case for case in shared if side.oof.fold_of[case] == fold)
            for fold in {side.oof.fold_of[case] for case in shared}
        }
        for side in sides
    ]
    if partitions[0] != partitions[1]:
        notes.append(
            "the folds of the runs differ: the two networks that predicted a case were trained on "
            "different cases, and this causes a part of the difference between the scores"
        )
    metrics = [side.run.exp.competition.metric for side in sides]
    if metrics[0] != metrics[1]:
        notes.append("the metrics of the runs differ, so A's metric is used for both")
    return notes
