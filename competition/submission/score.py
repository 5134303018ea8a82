"""Score a submission file (CSV) with the competition's metric, against the host's solution or the training masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config.competition import Competition
from competition.config.profiles import FORMAT_ONLY, Profile, profile_of
from competition.data.cases import case_table
from competition.data.masks import load_mask, load_objects
from competition.data.objects import CaseObjects
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import bootstrap_interval, class_scores, cv_score
from competition.metrics.instances import connected_components
from competition.metrics.scoring import Mask, score_class
from competition.submission.mask_file import MaskFile, RowIndex, solution_profile
from competition.submission.writer import resize_to_grid
from competition.text import same_problem

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoreCard:
    """Hold the score of a submission file.

    Attributes:
        metric: name of the competition's metric.
        score: score over all cases; nan if no case has a score.
        low: lower end of the 95 % bootstrap interval over cases, or over groups if training cases have groups. nan for
            fewer than two cases or groups.
        high: upper end of this interval.
        classes: score by class; nan for a class that no case has.
        dice: mean Dice by class, over the cases that have the class in their true mask or in the file; nan for a class
            that no case has.
        cases: number of cases.
        table: table with one row per case and class. Columns: id, class, score, dice, iou, tp, fp, fn.
    """

    metric: str
    score: float
    low: float
    high: float
    classes: dict[str, float]
    dice: dict[str, float]
    cases: int
    table: pd.DataFrame


def score_submission(path: str | Path, comp: Competition, solution: str | Path | None = None) -> ScoreCard:
    """Score a submission file with the competition's metric; one case is in memory at a time.

    Rows may be in any order. Each case in the file must have all its classes and slices.

    A metric that scores objects uses the objects in the file. If the file format has no objects, the metric uses the
    connected components of the masks; slices are first assembled to volumes.

    Args:
        path: path of the CSV.
        comp: the competition.
        solution: CSV with the true masks of the test cases, in the format of a submission; additional columns are
            ignored. A relative path is searched in the working folder, then in the competition's data folder. None if
            the file contains out-of-fold predictions of training cases, which are compared with the training masks.

    Returns:
        The score, its interval, and the table of scores.

    Raises:
        MaskfoldError: the file or the solution is invalid (the message names the line), they contain different cases,
            the metric is not available (status 2), or no image is found (status 2).
    """
    path, profile = Path(path), profile_of(comp)
    _check_profile(comp, profile)
    table = case_table(comp, "train" if solution is None else "test")
    index = RowIndex.from_table(table, profile, "training" if solution is None else "test")
    submission = MaskFile.read(path, profile, index, strict=True)
    truth = None
    if solution is not None:
        solution = Path(solution) if Path(solution).exists() else Path(comp.root) / solution
        truth = MaskFile.read(solution, solution_profile(solution, profile), index, strict=False)
        _check_same_cases(submission, truth)
    scores = [
        {"id": row.id, **score}
        for row in index.rows.values()
        if row.id in submission.rows
        for score in _score(row, submission, truth, comp)
    ]
    groups = dict(zip(table["id"], table["group"], strict=True)) if comp.group and truth is None else None
    return _score_card(scores, comp, groups)


def _score(row: Any, submission: MaskFile, solution: MaskFile | None, comp: Competition) -> list[dict[str, Any]]:
    """Return the scores of one case, one dictionary per class.

    Args:
        row: row of the case table.
        submission: the submission.
        solution: the host's solution; None to compare with the training masks.
        comp: the competition.
    """
    grid = submission.layout.grid
    shape = grid or tuple(json.loads(row.shape))
    truth = (
        _truth_from_masks(row, comp, submission.layout)
        if solution is None
        else _truth_from_solution(row, solution, shape, comp)
    )
    spacing = json.loads(row.spacing) if grid is None else None  # the host's own grid has an unknown spacing
    rows = []
    for index, name in enumerate(comp.classes):
        mask, objects = submission.class_mask(row.id, name, shape)
        if objects is not None and comp.has_ignored_pixels and _are_components(mask, objects):
            # Let the metric compute the components, as in cross-validation, because ignored pixels may cut a component
            # into two.
            objects = None
        rows.append(score_class(mask, truth.masks, truth.comp, index, spacing, truth.objects[index], objects))
    return rows


def _are_components(mask: Mask, objects: CaseObjects) -> bool:
    """Return whether objects are exactly the connected components of a mask."""
    if objects.hidden:
        return False
    connected, labels = connected_components(mask), objects.labels
    pairs = np.unique(connected[mask].astype(np.int64) * (int(labels.max(initial=0)) + 1) + labels[mask])
    return len(pairs) == int(connected.max(initial=0)) == len(np.unique(labels[mask]))


class _Truth(NamedTuple):
    """Hold the true masks of a case.

    Attributes:
        masks: (M, *spatial) uint8, in the form that `competition.data.masks.load_mask` returns.
        objects: objects of each class; None for a class without stored objects.
        comp: the competition. Its key `labels` says whether the classes in `masks` are exclusive or overlapping.
    """

    masks: np.ndarray[Any, Any]
    objects: list[CaseObjects | None]
    comp: Competition


def _truth_from_masks(row: Any, comp: Competition, profile: Profile) -> _Truth:
    """Return the training masks and objects of a case, as cross-validation reads them.

    If all masks of the file format have a fixed size (`profile.grid`), the training masks are resized to it, and the
    objects are None. The metric then takes the connected components of the masks as objects.
    """
    masks = load_mask(comp, row)
    if profile.grid is not None:
        resized = np.zeros((len(masks), *profile.grid), np.uint8)
        for target, mask in zip(resized, masks, strict=True):
            # The values are sorted in ascending order, so that 255 (ignored) overwrites the other values.
            for value in np.unique(mask[mask != 0]):
                target[resize_to_grid(mask == value, profile)] = value
        masks = resized
    objects = load_objects(comp, row) if comp.instances and profile.grid is None else None
    return _Truth(masks, [objects] * len(comp.classes), comp)


def _truth_from_solution(row: Any, solution: MaskFile, shape: tuple[int, ...], comp: Competition) -> _Truth:
    """Return the masks and objects of a case in the host's solution.

    The classes in a solution may overlap, even if `labels` in the YAML is `exclusive`. So `labels` of the returned
    competition is `overlapping`.
    """
    masks = np.zeros((len(comp.classes), *shape), np.uint8)
    objects: list[CaseObjects | None] = []
    for index, name in enumerate(comp.classes):
        masks[index], class_objects = solution.class_mask(row.id, name, shape)
        objects.append(class_objects)
    return _Truth(masks, objects, comp.model_copy(update={"labels": "overlapping"}))


def _score_card(scores: list[dict[str, Any]], comp: Competition, groups: Mapping[str, str] | None) -> ScoreCard:
    import pandas as pd

    table = pd.DataFrame(scores)
    low, high = bootstrap_interval(table, comp.metric, groups=groups)
    means = table.groupby("class")["dice"].mean()
    return ScoreCard(
        comp.metric.name,
        cv_score(table, comp.metric),
        low,
        high,
        class_scores(table, comp.metric),
        {name: float(means[name]) for name in comp.classes},
        int(table["id"].nunique()),
        table,
    )


def _check_profile(comp: Competition, profile: Profile) -> None:
    """Check that submission files of a competition can be scored.

    Raises:
        MaskfoldError: the metric is not available, or the format has no class column although there are several
            classes (status 2).
    """
    if comp.submission.profile is not None and profile.metric == FORMAT_ONLY and "metric" not in comp.model_fields_set:
        raise MaskfoldError(
            f"Maskfold knows the file format of the profile {profile.name}, but not its metric, and competition.yaml "
            "sets no metric.",
            "Set `metric` in competition.yaml, for example `metric: {name: dice}`.",
            status=2,
        )
    if len(comp.classes) > 1 and not profile.rows_have_class:
        raise MaskfoldError(
            f"The profile {profile.name} has no column for the class, but competition.classes has "
            f"{len(comp.classes)} classes.",
            "Set submission.columns.class, and remove submission.profile. Or reduce competition.classes to one class.",
            status=2,
        )


def _check_same_cases(submission: MaskFile, solution: MaskFile) -> None:
    """Check that a submission and the solution contain the same cases.

    Raises:
        MaskfoldError: a case is in only one of the two files; the message names the line of the case.
    """
    for file, other, hint in (
        (solution, submission, "Predict every case; write an empty mask if nothing is found."),
        (submission, solution, "Remove the rows of such ids, or give a solution that contains them."),
    ):
        missing = [case_id for case_id in file.rows if case_id not in other.rows]
        if missing:
            line = file.first_line(missing[0])
            raise MaskfoldError(
                f"{file.path}, line {line}: the id {missing[0]} has no row in {other.path}."
                f"{same_problem(len(missing) - 1, 'id')}",
                hint,
            )
