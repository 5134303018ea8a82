"""The score of a finished file: its masks are decoded, and compared with the host's solution or the training masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config import Competition, MaskfoldError
from competition.data.table import case_table, load_instances, load_mask
from competition.scoring.cases import Mask, score_class
from competition.scoring.instances import Labels, components
from competition.scoring.summary import bootstrap_interval, class_scores, cv_score
from competition.submission.file import MaskFile, Places, wider
from competition.submission.profiles import FORMAT_ONLY, Profile, profile_of
from competition.submission.writer import on_grid

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoreCard:
    """What a file scores.

    Attributes:
        metric: the competition's.
        score: over all cases; nan where nothing was scored.
        low: lower end of the 95 % bootstrap interval over cases (of training cases: over groups, where there are
            groups); nan for fewer than two.
        high: upper end of it.
        classes: the metric of each class; nan for a class that no case has.
        dice: mean Dice of each class over the cases that have it in truth or file; nan likewise.
        cases: how many.
        table: a row per case and class: id, class, score, dice, iou, tp, fp, fn.
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
    """Scores a submission file with the competition's metric, one case in memory at a time.

    Rows may stand in any order. A case that is in the file must be there whole, with all its classes and slices. Volumes
    are put together from rows of slices. Rows of one object each are the objects, as long as they are not slices: of
    those, connected components of the volume.

    Args:
        path: the CSV.
        comp: the competition.
        solution: the truth of the test cases, a CSV like the submission's; further columns are passed over. It is looked
            for in the working folder, then in the competition's. None: the file holds training cases, predicted out of
            fold, and the truth is their masks.

    Returns:
        The score, its interval, and the rows behind it.

    Raises:
        MaskfoldError: the file, or the solution, is not sound (with its line), or they are not of the same cases; status
            2 where there is no metric or no image to score with.
    """
    path, profile = Path(path), profile_of(comp)
    _refuse_profile(comp, profile)
    table = case_table(comp, "train" if solution is None else "test")
    places = Places.of(table, profile, "training" if solution is None else "test")
    written = MaskFile.read(path, profile, places, strict=True)
    truth = None
    if solution is not None:
        solution = Path(solution) if Path(solution).exists() else Path(comp.root) / solution
        truth = MaskFile.read(solution, wider(solution, profile), places, strict=False)
        _refuse_other_cases(written, truth)
    lines = [
        {"id": row.id, **line}
        for row in places.rows.values()
        if row.id in written.cells
        for line in _score(row, written, truth, comp)
    ]
    groups = dict(zip(table["id"], table["group"], strict=True)) if comp.group and truth is None else None
    return _card(lines, comp, groups)


def _score(row: Any, written: MaskFile, solution: MaskFile | None, comp: Competition) -> list[dict[str, Any]]:
    """The rows of one case, class by class."""
    grid = written.layout.grid
    shape = grid or tuple(json.loads(row.shape))
    truth = _trained(row, comp, written.layout) if solution is None else _solved(row, solution, shape, comp)
    spacing = json.loads(row.spacing) if grid is None else None  # the mm of the host's own grid are not known
    rows = []
    for index, name in enumerate(comp.classes):
        mask, objects = written.layer(row.id, name, shape)
        if objects is not None and comp.ignore is not None and _connected(mask, objects):
            objects = None  # as in cross-validation: pixels that count nowhere may cut a component in two
        rows.append(score_class(mask, truth.masks, truth.comp, index, spacing, truth.objects[index], objects))
    return rows


def _connected(mask: Mask, objects: Labels) -> bool:
    """Whether the objects are just the connected components of their mask."""
    found = components(mask)
    pairs = np.unique(found[mask].astype(np.int64) * (int(objects.max(initial=0)) + 1) + objects[mask])
    return len(pairs) == int(found.max(initial=0)) == len(np.unique(objects[mask]))


class _Truth(NamedTuple):
    """The truth of a case: (M, *spatial) uint8, objects (*spatial) of each class or None, and how to read them."""

    masks: np.ndarray[Any, Any]
    objects: list[Labels | None]
    comp: Competition


def _trained(row: Any, comp: Competition, profile: Profile) -> _Truth:
    """The training masks, exactly as cross-validation looks at them; on the host's grid, objects are components."""
    masks = load_mask(comp, row)
    if profile.grid is not None:
        small = np.zeros((len(masks), *profile.grid), np.uint8)
        for channel, whole in zip(small, masks, strict=True):
            for value in np.unique(whole[whole != 0]):  # rising, so that 255, ignored, is last
                channel[on_grid(whole == value, profile)] = value
        masks = small
    objects = load_instances(comp, row) if comp.instances and profile.grid is None else None
    return _Truth(masks, [objects] * len(comp.classes), comp)


def _solved(row: Any, solution: MaskFile, shape: tuple[int, ...], comp: Competition) -> _Truth:
    """The rows of a solution; a host's classes may overlap, whatever the YAML says of the network's."""
    masks = np.zeros((len(comp.classes), *shape), np.uint8)
    objects: list[Labels | None] = []
    for index, name in enumerate(comp.classes):
        masks[index], found = solution.layer(row.id, name, shape)
        objects.append(found)
    return _Truth(masks, objects, comp.model_copy(update={"labels": "overlapping"}))


def _card(lines: list[dict[str, Any]], comp: Competition, groups: Mapping[str, str] | None) -> ScoreCard:
    import pandas as pd

    table = pd.DataFrame(lines)
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


def _refuse_profile(comp: Competition, profile: Profile) -> None:
    """Raises `MaskfoldError` (status 2) for files that cannot be scored."""
    if comp.submission.profile is not None and profile.metric == FORMAT_ONLY and "metric" not in comp.model_fields_set:
        raise MaskfoldError(
            f"The profile {profile.name} is format only: its host's metric cannot be computed here.",
            "Name another metric in the competition's YAML, e.g. `metric: {name: dice}`, to score by it.",
            status=2,
        )
    if len(comp.classes) > 1 and not profile.classed:
        raise MaskfoldError(
            f"A file of {profile.name} does not say of which class a mask is, and there are "
            f"{len(comp.classes)} classes.",
            "Set submission.columns.class, or one competition.classes.",
            status=2,
        )


def _refuse_other_cases(written: MaskFile, solution: MaskFile) -> None:
    """Raises `MaskfoldError` where a file and its solution are not of the same cases."""
    for one, other, cure in (
        (solution, written, "Predict every case, with an empty mask where nothing is found."),
        (written, solution, "Remove the row, or name the solution of these cases."),
    ):
        missing = [case_id for case_id in one.cells if case_id not in other.cells]
        if missing:
            more = f" (and {len(missing) - 1} more cases)" if len(missing) > 1 else ""
            raise MaskfoldError(
                f"{one.path}, line {one.first_line(missing[0])}: the id {missing[0]} has no row in {other.path}{more}.",
                cure,
            )
