"""Write the sections of a run's HTML report with the scores by fold and class, and with errors by size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
from competition.data.objects import HiddenPixels
from competition.errors import MaskfoldError
from competition.inference.masks import to_masks
from competition.metrics.instances import connected_components, object_areas
from competition.postprocessing.tuning import TuningResult, load_tuning, read_gain
from competition.records import parse_json_object
from competition.report.calibration import describe_sample, sample_evenly
from competition.report.html import (
    ABSENT_LABEL,
    Cell,
    Table,
    format_interval,
    format_score,
    render,
    score_with_interval,
)
from competition.report.results import RunResults
from competition.runs.oof import OofPredictions
from competition.runs.summary import TUNING_FILE, ScoreEstimate, check_search_unedited
from competition.text import format_count
from competition.training.cross_validate import format_seed_gain
from competition.training.soup_selection import format_soup
from competition.viz.overlays import get_ignored_voxels, label_to_class_masks, save_figure
from competition.viz.style import (
    GREY_COLOUR,
    MAX_PANELS,
    TEXT_COLOUR,
    dark_class_colour,
    fold_colour,
    new_figure,
    panel_grid,
    select_drawn_classes,
    set_log_axis,
    show_empty_text,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.runs.run import Run


TEMPLATE = "run.html.j2"
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


# Scores by fold and class


def score_headline(results: RunResults) -> Markup:
    """Return the score of the run in large letters, or the reason why there is no score."""
    if results.table is None:
        return render(TEMPLATE, "headline", score=None, label="", fitted=bool(results.members))
    scores, raw = results.counted(), results.score()
    score = scores.counted
    ends = format_interval(score.low, score.high)
    label = f"{results.metric.label}, out of fold · "
    label += f"95 % interval {ends}" if ends else "too few cases for an interval"
    if scores.is_nested:
        label += f" · {scores.note}; {format_score(raw.value)} without tuned steps"
    elif scores.processed is not None:
        label += f" · {scores.note}; {format_score(raw.value)} without it"
    return render(TEMPLATE, "headline", score=format_score(score.value), label=label, fitted=False)


def scores_section(results: RunResults, folder: Path) -> Markup:
    """Return the section with scores by fold and by class, a figure, and the gain of post-processing.

    Args:
        results: the results of the run.
        folder: folder for the figure.
    """
    picture, is_scored = folder / "scores.png", results.table is not None
    if is_scored:
        draw_scores(results, picture)
    return render(
        TEMPLATE,
        "scores",
        folds=_fold_table(results),
        picture=picture,
        classes=_class_table(results) if is_scored else None,
        dice=_dice_table(results) if len(results.folds) > 1 else None,
        lines=[*format_seed_gain(results.summary.get("seeds")), *format_soup(results.summary.get("soup"))],
        postprocessing=postprocessing_section(results.run),
    )


def _fold_table(results: RunResults) -> Table:
    rows, bold_rows = [], []
    names = {-1: "all cases (fit)"}
    for fold in sorted({result.fold for result in results.members}, key=lambda fold: (fold < 0, fold)):
        members = [result for result in results.members if result.fold == fold]
        score = ScoreEstimate(nan) if fold < 0 else results.score(fold)
        rows.append(
            [
                names.get(fold, str(fold)),
                "" if fold < 0 else str(results.rows(fold)["id"].nunique()),
                "" if fold < 0 else format_score(score.value),
                format_interval(score.low, score.high),
                ", ".join(str(result.epochs) for result in members),
                f"{sum(result.minutes for result in members):.1f}",
                "; ".join(dict.fromkeys(result.stopped for result in members)),
            ]
        )
    if results.table is not None:
        score = results.score()
        bold_rows = [len(rows)]
        rows.append(
            [
                "all",
                str(results.table["id"].nunique()),
                format_score(score.value),
                format_interval(score.low, score.high),
                "",
                f"{sum(result.minutes for result in results.members):.1f}",
                "",
            ]
        )
    header = ["fold", "cases", _metric_label(results), "95 % interval", "epochs", "minutes", "ended"]
    return Table(header, rows, text_columns=(0, 6), bold_rows=bold_rows)


def _class_table(results: RunResults) -> Table:
    names = results.run.exp.competition.classes
    scores, dice = [results.score(cls=name) for name in names], [results.dice(name) for name in names]
    # One column is enough if the metric is Dice; values are compared as text, in which nan equals nan.
    is_dice = str(scores) == str(dice)
    rows: list[list[str | Cell]] = []
    for name, score, class_dice in zip(names, scores, dice, strict=True):
        values = [score_with_interval(*estimate) for estimate in ([class_dice] if is_dice else [score, class_dice])]
        rows.append([name, *values, *map(str, results.presence(name))])
    header = [
        "class",
        *([] if is_dice else [_metric_label(results)]),
        "Dice",
        "cases with it",
        "missed",
        "cases without",
        "false alarms",
    ]
    return Table(header, rows)


def _dice_table(results: RunResults) -> Table:
    rows: list[list[str | Cell]] = [
        [
            name,
            *(score_with_interval(*results.dice(name, fold)) for fold in results.folds),
            score_with_interval(*results.dice(name)),
        ]
        for name in results.run.exp.competition.classes
    ]
    return Table(["class", *(f"fold {fold}" for fold in results.folds), "all"], rows)


def _metric_label(results: RunResults) -> str:
    """Return the label of the competition's metric for tables and figures."""
    return f"score ({results.metric.label})"


def draw_scores(results: RunResults, path: Path) -> None:
    """Draw the competition's metric and the Dice of each class, for each fold and for all cases, with intervals."""
    folds, classes = results.folds, results.run.exp.competition.classes[:MAX_PANELS]
    names = [*(f"fold {fold}" for fold in folds), "all"]
    fold_rows = [*folds, None]
    figure = new_figure(11.0, 1.1 + 0.26 * max(len(names), 3) + 0.10 * len(names) * min(len(classes), 6))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, fold in enumerate(fold_rows):
        _dot(left, results.score(fold), row, TEXT_COLOUR if fold is None else fold_colour(fold))
    for index, name in enumerate(classes):
        shift = 0.0 if len(classes) == 1 else 0.56 * (index / (len(classes) - 1) - 0.5)
        for row, fold in enumerate(fold_rows):
            _dot(right, results.dice(name, fold), row + shift, dark_class_colour(index), f" {name}" if row == 0 else "")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    style_axes(left, _metric_label(results))
    style_axes(right, "Dice per class" if len(classes) > 1 else f"Dice {classes[0]}")
    for axes in (left, right):
        axes.axhline(len(folds) - 0.5, color=GREY_COLOUR, linewidth=0.7)
        axes.grid(axis="y", visible=False)
        for row in range(0, len(fold_rows), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=GREY_COLOUR, alpha=0.10, linewidth=0)
    if len(classes) > 1:
        from matplotlib.patches import Patch

        class_legend = figure.legend(
            handles=[Patch(color=dark_class_colour(index), label=f" {name}") for index, name in enumerate(classes)],
            loc="outside lower right",
            ncols=min(4, len(classes)),
            fontsize=9,
            frameon=False,
        )
        for text in class_legend.get_texts():
            text.set_parse_math(False)
    save_figure(figure, path)


def _dot(axes: Axes, score: ScoreEstimate, row: float, colour: tuple[float, float, float], label: str = "") -> None:
    if isnan(score.value):
        return
    if not isnan(score.low):
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.8, alpha=0.55, solid_capstyle="round")
    axes.plot([score.value], [row], "o", color=colour, markersize=5.5)


def postprocessing_section(run: Run) -> Markup:
    """Return a paragraph with the score of the post-processing; an empty text if the run stores no such score."""
    if not (run.folder / TUNING_FILE).exists():
        return Markup()
    tuned = load_tuning(run)
    outdated = tuned is None
    if tuned is None:  # the result is outdated, or its file was edited; an edited result is not shown
        tuned = _read_outdated(run)
    if tuned is None:
        return render(TEMPLATE, "postprocessing", lines=[], outdated=False, tuned=False, unreadable=TUNING_FILE)
    lines, is_tuned = tuned.report_lines(), tuned.settings.tune
    return render(TEMPLATE, "postprocessing", lines=lines, outdated=outdated, tuned=is_tuned, unreadable="")


def _read_outdated(run: Run) -> TuningResult | None:
    """Return the stored tuning result of a run even if it is outdated; None if the file is invalid or was edited."""
    import pandas as pd

    try:
        check_search_unedited(run)
        plain = parse_json_object((run.folder / TUNING_FILE).read_bytes())
        found = {
            name: tuple(StepConfig.model_validate(step) for step in steps) for name, steps in plain["found"].items()
        }
        return TuningResult(
            PostprocessConfig.model_validate(plain["settings"]),
            found,
            float(plain["before"]),
            float(plain["after"]),
            float(plain["nested"]),
            read_gain(plain["gain"]),
            plain["kept"],
            pd.DataFrame(),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MaskfoldError):
        return None


# Errors by size

MAX_GROUPS = 8  # maximum number of groups, with equal numbers of values, for which the line of medians has a point
MIN_GROUP_SIZE = 5  # minimum number of values in a group
OBJECT_HEADER = [
    "class",
    "true objects",
    "predicted",
    "recall, IoU > 0.5",
    "recall, IoU > 0.75",
    "precision, IoU > 0.5",
    "median IoU",
]


class SizeError(NamedTuple):
    """Hold the sizes and scores of one class, either for n true objects or for the masks of n cases.

    Attributes:
        sizes: (n,) true size of each object or mask, in pixels, voxels or mm³.
        values: (n,) for objects, the highest IoU of each true object with a predicted one; for cases, the Dice.
        predicted: (m,) highest IoU of each predicted object with a true one; empty for cases.
    """

    sizes: Floats
    values: Floats
    predicted: Floats


def sizes_section(results: RunResults, oof: OofPredictions, folder: Path, context: Context) -> Markup:
    """Return the section about errors by size.

    If the competition scores objects, their sizes are used. Otherwise, the sizes of the cases' masks are used.

    Args:
        results: the results of the run.
        oof: the run's out-of-fold predictions.
        folder: folder for the figure.
        context: context whose log receives progress messages.
    """
    comp = results.run.exp.competition
    unit = size_unit(comp, [json.loads(str(spacing)) for spacing in results.run.cases["spacing"]])
    picture, sample, objects = folder / "sizes.png", "", None
    what, xlabel = "object" if comp.instances else "case", f"size in truth, {unit}"
    if comp.instances:
        cases = sample_evenly(list(oof.fold_of))
        context.say(f"matching the objects of {format_count(len(cases), 'case')}")
        sized, sample = object_size_errors(oof, cases), describe_sample(cases, oof)
        draw_size_errors(sized, comp.classes, "best IoU of an object", xlabel, picture)
        objects = Table(OBJECT_HEADER, [_objects_row(*columns) for columns in zip(comp.classes, sized, strict=True)])
    else:
        sized = case_size_errors(results)
        draw_size_errors(sized, comp.classes, "Dice of a case", xlabel, picture)
    return render(
        TEMPLATE,
        "sizes",
        picture=picture,
        unit=unit,
        objects=objects,
        sample=sample,
        thirds=_thirds_table(sized, comp.classes, unit, what),
        drawn=MAX_PANELS if len(comp.classes) > MAX_PANELS else None,
    )


def size_unit(comp: Competition, spacings: Sequence[Sequence[float]]) -> str:
    """Return the unit of the sizes of objects and masks.

    Args:
        comp: the competition.
        spacings: voxel size of each case. If it is 1 mm for all stacks of slice files, the voxel size is unknown.
    """
    if comp.dimensions == 2:
        return "pixels"
    is_unknown = "{z}" in str(comp.train.images) and all(set(spacing) == {1.0} for spacing in spacings)
    return "voxels" if is_unknown else "mm³"


def case_size_errors(results: RunResults) -> list[SizeError]:
    """Return, for each class, the size of the true mask and the Dice of each case whose labels contain the class."""
    comp = results.run.exp.competition
    scale = {
        row.id: float(np.prod(json.loads(str(row.spacing)))) if comp.dimensions == 3 else 1.0
        for row in results.run.rows().values()
    }
    sized = []
    for name in comp.classes:
        rows = results.rows(cls=name)
        rows = rows[rows["tp"] + rows["fn"] > 0]
        sizes = (rows["tp"] + rows["fn"]).to_numpy(np.float64) * rows["id"].map(scale).to_numpy(np.float64)
        sized.append(SizeError(sizes, rows["dice"].to_numpy(np.float64), np.empty(0)))
    return sized


def object_size_errors(oof: OofPredictions, cases: list[str]) -> list[SizeError]:
    """Return the sizes of true objects, and the best IoUs of true and predicted objects, for each class.

    One case is in memory at a time.

    Args:
        oof: the run's out-of-fold predictions.
        cases: ids of the cases.
    """
    comp = oof.run.exp.competition
    rows = oof.rows()
    collected: list[tuple[list[Floats], list[Floats], list[Floats]]] = [([], [], []) for _ in comp.classes]
    for case in cases:
        truth, objects = load_unchanged_mask(comp, rows[case]), load_unchanged_objects(comp, rows[case])
        masks, truth_masks = to_masks(oof.read(case), comp), label_to_class_masks(truth, comp)
        ignored = get_ignored_voxels(truth, comp)
        voxel = float(np.prod(json.loads(str(rows[case].spacing)))) if comp.dimensions == 3 else 1.0
        for index, (sizes, values, predicted) in enumerate(collected):
            mask = masks[index] if ignored is None else masks[index] & ~ignored
            true = objects.of_class(truth_masks[index], index)
            matched = match_objects(connected_components(mask), true.labels, true.hidden)
            sizes.append(matched.sizes.astype(np.float64) * voxel)
            values.append(matched.ious)
            predicted.append(matched.predicted)
    return [SizeError(*(np.concatenate(parts) if parts else np.empty(0) for parts in lists)) for lists in collected]


def group_quartiles(sizes: Floats, values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Sort values by size, form groups of about equally many values, and return the quartiles of each group.

    Args:
        sizes: (n,) sizes.
        values: (n,) values.

    Returns:
        For each group, the geometric mean of the sizes, and the lower quartile, median and upper quartile of the
        values. Four empty arrays if there are too few values for two groups.
    """
    groups = min(MAX_GROUPS, len(sizes) // MIN_GROUP_SIZE)
    if groups < 2:
        return np.empty(0), np.empty(0), np.empty(0), np.empty(0)
    parts = np.array_split(np.argsort(sizes, kind="stable"), groups)
    quartiles = np.array([np.quantile(values[part], (0.25, 0.5, 0.75)) for part in parts])
    return np.array([np.exp(np.log(sizes[part]).mean()) for part in parts]), *quartiles.T


def draw_size_errors(sized: list[SizeError], classes: list[str], ylabel: str, xlabel: str, path: Path) -> None:
    """Draw the scores of cases or objects against their sizes, in one panel for each of at most `MAX_PANELS` classes.

    Args:
        sized: sizes and scores of each class.
        classes: names of the classes.
        ylabel: label of the scores.
        xlabel: label of the sizes.
        path: path of the figure.
    """
    shown = select_drawn_classes([len(class_sizes.sizes) for class_sizes in sized])
    figure, grid = panel_grid(len(shown), height=3.0, columns=3)
    for axes, index in zip(grid, shown, strict=True):
        style_axes(axes, classes[index], xlabel=xlabel, ylabel=ylabel)
        if not len(sized[index].sizes):
            show_empty_text(axes, "absent")
            continue
        _scatter(axes, sized[index], dark_class_colour(index))
    save_figure(figure, path)


def _scatter(axes: Axes, sized: SizeError, colour: tuple[float, float, float]) -> None:
    size, alpha = (7, 0.25) if len(sized.sizes) > 400 else (16, 0.5)
    axes.scatter(sized.sizes, sized.values, s=size, color=colour, alpha=alpha, linewidths=0)
    middle, low, median, high = group_quartiles(sized.sizes, sized.values)
    axes.fill_between(middle, low, high, color=TEXT_COLOUR, alpha=0.10, linewidth=0)
    axes.plot(middle, median, "o-", color=TEXT_COLOUR, linewidth=1.6, markersize=4)
    smallest, largest = float(sized.sizes.min()), float(sized.sizes.max())
    set_log_axis(axes.xaxis, smallest / 1.05, largest * 1.05)
    axes.set_xlim(smallest / 1.15, largest * 1.15)
    lowest = float(sized.values.min())
    axes.set_ylim(max(-0.03, lowest - 0.06), 1.02)


def _objects_row(name: str, sized: SizeError) -> list[str]:
    if not len(sized.sizes):
        return [name, ABSENT_LABEL, f"{len(sized.predicted):,}", ABSENT_LABEL, ABSENT_LABEL, ABSENT_LABEL, ABSENT_LABEL]
    precision = f"{(sized.predicted > 0.5).mean():.3f}" if len(sized.predicted) else ABSENT_LABEL
    return [
        name,
        f"{len(sized.sizes):,}",
        f"{len(sized.predicted):,}",
        f"{(sized.values > 0.5).mean():.3f}",
        f"{(sized.values > 0.75).mean():.3f}",
        precision,
        f"{np.median(sized.values):.3f}",
    ]


def _thirds_table(sized_by_class: list[SizeError], classes: list[str], unit: str, what: str) -> Table:
    """Return a table with the mean Dice, or the recall of objects, for the smallest, middle and largest third of sizes.

    Args:
        sized_by_class: sizes and scores of each class.
        classes: names of the classes.
        unit: unit of the sizes.
        what: `object` or `case`.
    """
    rows: list[list[str | Cell]] = []
    for name, sized in zip(classes, sized_by_class, strict=True):
        if len(sized.sizes) < 3 * MIN_GROUP_SIZE:
            rows.append([name, ABSENT_LABEL if not len(sized.sizes) else f"only {len(sized.sizes)} {what}s", "", ""])
            continue
        cells: list[str | Cell] = [name]
        for part in np.array_split(np.argsort(sized.sizes, kind="stable"), 3):
            values = sized.values[part]
            value = f"recall {(values > 0.5).mean():.3f}" if what == "object" else f"Dice {values.mean():.4f}"
            low, high = sized.sizes[part].min(), sized.sizes[part].max()
            cells.append(Cell(value, [f"{low:,.0f} to {high:,.0f} {unit}"]))
        rows.append(cells)
    return Table(["class", "smallest third", "middle third", "largest third"], rows)


class ObjectMatch(NamedTuple):
    """Hold how well n true and m predicted objects of one class match.

    Attributes:
        sizes: (n,) number of pixels of each true object.
        ious: (n,) highest IoU of each true object with a predicted object; 0 if none overlaps it.
        predicted: (m,) highest IoU of each predicted object with a true object; 0 if none overlaps it.
    """

    sizes: NDArray[np.int64]
    ious: NDArray[np.float64]
    predicted: NDArray[np.float64]


def match_objects(predicted: Labels, truth: Labels, hidden: Sequence[HiddenPixels] = ()) -> ObjectMatch:
    """Return the highest IoU of each true object with a predicted one, and of each predicted object with a true one.

    Args:
        predicted: label image of the predicted objects: integers of any shape, 0 for background.
        truth: label image of the true objects, with the same shape.
        hidden: pixels of true objects that are not in `truth`, because later objects cover them there.
    """
    predicted_areas, true_areas, pair_areas = object_areas(predicted, truth, (), hidden)
    true_labels, pred_labels = sorted(true_areas), sorted(predicted_areas)
    rows, columns = ({label: place for place, label in enumerate(labels)} for labels in (true_labels, pred_labels))
    best_true, best_pred = np.zeros(len(true_labels)), np.zeros(len(pred_labels))
    for (pred, true), shared in pair_areas.items():
        iou = shared / (true_areas[true] + predicted_areas[pred] - shared)
        best_true[rows[true]] = max(best_true[rows[true]], iou)
        best_pred[columns[pred]] = max(best_pred[columns[pred]], iou)
    return ObjectMatch(np.array([true_areas[label] for label in true_labels], np.int64), best_true, best_pred)
