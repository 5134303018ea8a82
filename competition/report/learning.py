"""Write the sections of a run's HTML report with the learning curves, and with the best, median and worst cases."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from competition.config.metric import Direction
from competition.data.content.unchanged import load_unchanged_mask
from competition.inference.masks import to_masks
from competition.report.html import format_score, render
from competition.report.results import RunResults
from competition.runs.oof import OofPredictions
from competition.viz.curves import Curve, read_curves
from competition.viz.overlays import draw_case, save_figure
from competition.viz.preview import load_unchanged_picture
from competition.viz.style import (
    MAX_PANELS,
    add_legend,
    fold_colour,
    panel_grid,
    set_log_axis,
    show_empty_text,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.runs.run import Run


# Learning curves

TEMPLATE = "run.html.j2"
Member = tuple[int, int]  # (fold, seed); fold -1 is the training on all cases
SEED_LINES = ("-", "--", ":", "-.")  # line styles, one for each seed


def learning_section(run: Run, folder: Path) -> Markup:
    """Return the section with the learning curves of all folds, including unfinished folds.

    Args:
        run: the run.
        folder: folder for the figures.
    """
    curves, picture, class_picture = read_member_curves(run), None, None
    classes = run.exp.competition.classes
    if any(curves.values()):
        picture = folder / "learning.png"
        names = {member: _member_name(run, member) for member in curves}
        draw_learning_curves(curves, names, picture)
        if len(classes) > 1 and any(f"val/dice/{name}" in curve for curve in curves.values() for name in classes):
            class_picture = folder / "learning_classes.png"
            draw_class_curves(curves, names, classes[:MAX_PANELS], class_picture)
    shown = "" if len(classes) <= MAX_PANELS else f" (the first {MAX_PANELS} of {len(classes)})"
    return render(TEMPLATE, "learning", picture=picture, class_picture=class_picture, shown=shown)


def read_member_curves(run: Run) -> dict[Member, dict[str, Curve]]:
    """Return the learning curves by name of the metric, for each (fold, seed) that has values in `metrics.jsonl`."""
    all_curves = {
        member: read_curves(run.member_folder(*member) / "metrics.jsonl") for member in run.possible_members()
    }
    return {member: curves for member, curves in all_curves.items() if curves}


def draw_learning_curves(curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str], path: Path) -> None:
    """Draw the curves of training loss, validation score, mean Dice and learning rate.

    Args:
        curves: curves of each (fold, seed), by name of the metric.
        names: name of each (fold, seed) in the legend.
        path: path of the figure.
    """
    figure, grid = panel_grid(4, height=2.9, columns=2)
    for axes, (metric, title) in zip(
        grid,
        (
            ("train/loss", "training loss"),
            ("val/score", "score on validation cases"),
            ("val/dice", "mean Dice on validation cases"),
            ("lr", "learning rate"),
        ),
        strict=True,
    ):
        style_axes(axes, title, xlabel="epoch")
        _draw(axes, metric, curves, names)
        if metric in ("lr", "train/loss"):
            _set_log_axis(axes, metric, curves)
    _set_epoch_axis(grid, curves)
    add_legend(figure, below=True, columns=min(6, len(curves)))
    save_figure(figure, path)


def draw_class_curves(
    curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str], classes: list[str], path: Path
) -> None:
    """Draw the curves of the validation Dice of each class, in one panel per class.

    Args:
        curves: curves of each (fold, seed), by name of the metric.
        names: name of each (fold, seed) in the legend.
        classes: names of the classes.
        path: path of the figure.
    """
    figure, grid = panel_grid(len(classes), height=2.6, columns=3)
    for axes, cls in zip(grid, classes, strict=True):
        style_axes(axes, f"Dice {cls}", xlabel="epoch")
        _draw(axes, f"val/dice/{cls}", curves, names)
    _set_epoch_axis(grid, curves)
    add_legend(figure, below=True, columns=min(6, len(curves)))
    save_figure(figure, path)


def _draw(axes: Axes, metric: str, curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str]) -> None:
    drawn = False
    for member, metrics in curves.items():
        epochs, values = metrics.get(metric, ([], []))
        n_finite = sum(math.isfinite(value) for value in values)
        # Draw markers if there are few points, because a line needs at least two. Folds without points are still listed
        # in the legend.
        axes.plot(
            epochs,
            values,
            color=fold_colour(member[0]),
            linestyle=SEED_LINES[member[1] % len(SEED_LINES)],
            linewidth=1.5,
            marker="o" if n_finite < 6 else None,
            markersize=4,
            label=f" {names[member]}",
        )
        drawn |= n_finite > 0
    if not drawn:
        show_empty_text(axes, "no values were logged")


def _set_epoch_axis(grid: Sequence[Axes], curves: Mapping[Member, Mapping[str, Curve]]) -> None:
    """Give all panels the same range of epochs, with a margin, so that even a single epoch has a valid range."""
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch for metrics in curves.values() for x_values, _ in metrics.values() for epoch in x_values]
    first, last = min(epochs), max(epochs)
    margin = max(0.3, 0.03 * (last - first))
    for axes in grid:
        axes.set_xlim(first - margin, last + margin)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _set_log_axis(axes: Axes, metric: str, curves: Mapping[Member, Mapping[str, Curve]]) -> None:
    """Set a logarithmic vertical axis if the largest value of a metric is more than 8 times the smallest one."""
    values = [value for metrics in curves.values() for value in metrics.get(metric, ([], []))[1]]
    values = [value for value in values if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) > 8 * min(positive):
        set_log_axis(axes.yaxis, min(positive), max(positive))


def _member_name(run: Run, member: Member) -> str:
    fold, seed = member
    name = "all cases" if fold < 0 else f"fold {fold}"
    if len(run.exp.seeds) > 1:
        name += f", seed {run.exp.seeds[seed]}"
    return name if run.result(fold, seed) is not None else f"{name} (unfinished)"


# Best, median and worst cases

SELECTED_COUNTS = {"best": 2, "median": 2, "worst": 3}
MAX_CAPTION_CLASSES = 12
MAX_WORST_ROWS = 20


@dataclass(frozen=True)
class SelectedCase:
    """Describe a case whose figure is on the page.

    Attributes:
        case: id of the case.
        kind: best, median or worst.
        rank: rank of the case by its score; 1 is the best.
        score: mean of the competition's metric over the classes of the case.
    """

    case: str
    kind: str
    rank: int
    score: float


def cases_section(results: RunResults, oof: OofPredictions, folder: Path, in_viewer: Sequence[str] = ()) -> Markup:
    """Return the section with a table of the worst cases, and figures of selected cases with labels and prediction.

    Args:
        results: the results of the run.
        oof: the run's out-of-fold predictions.
        folder: folder for the figures.
        in_viewer: ids of the cases in the page's viewer, in the viewer's order. The table links these cases to the
            viewer.
    """
    comp = results.run.exp.competition
    for old in folder.glob("case_*_*.png"):  # remove figures of an earlier report
        if re.fullmatch(r"case_\d+_(best|median|worst)\.png", old.name):
            old.unlink()
    ranking = rank_cases(results)
    total = len(ranking)
    cases = []
    by_id = oof.rows()
    for number, chosen in enumerate(select_cases(ranking), 1):
        path = folder / f"case_{number}_{chosen.kind}.png"
        rows = results.rows()
        case_rows = rows[rows["id"] == chosen.case]
        class_dice = dict(zip(case_rows["class"], case_rows["dice"], strict=True))
        _draw_case(path, by_id[chosen.case], oof, comp, class_dice, chosen, total)
        shown = [f"{name} {value:.4f}" for name, value in class_dice.items() if not math.isnan(value)]
        dice = ", ".join(shown[:MAX_CAPTION_CLASSES]) + (" …" if len(shown) > MAX_CAPTION_CLASSES else "")
        cases.append(
            {
                "picture": path,
                "alt": f"{chosen.kind} case {chosen.case}",
                "title": f"{chosen.kind}, rank {chosen.rank} of {total}",
                "text": f" · case {chosen.case} · fold {oof.fold_of[chosen.case]}"
                f" · {comp.metric.name} {chosen.score:.4f} · Dice: {dice}",
            }
        )
    n_cases = len(oof.fold_of)
    return render(
        TEMPLATE,
        "cases",
        metric=comp.metric.name,
        cases=cases,
        unranked=n_cases - total,
        total=n_cases,
        worst=_worst_rows(results, oof, ranking, {case: number for number, case in enumerate(in_viewer)}),
        classes=comp.classes[:MAX_CAPTION_CLASSES],
    )


def _worst_rows(
    results: RunResults, oof: OofPredictions, ranking: list[tuple[str, float]], in_viewer: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return the rows of the table of the worst cases, the worst first.

    Args:
        results: the results of the run.
        oof: the run's out-of-fold predictions.
        ranking: (case id, score) of each case, the best first.
        in_viewer: number of each case in the page's viewer, by case id.
    """
    classes, rows = results.run.exp.competition.classes[:MAX_CAPTION_CLASSES], []
    for case, score in ranking[::-1][:MAX_WORST_ROWS]:
        table = results.rows()
        table = table[table["id"] == case]
        dice = dict(zip(table["class"], table["dice"], strict=True))
        rows.append(
            {
                "case": case,
                "viewer": in_viewer.get(case),
                "fold": oof.fold_of[case],
                "score": f"{score:.4f}",
                "dice": [format_score(float(dice.get(name, math.nan))) for name in classes],
            }
        )
    return rows


def rank_cases(results: RunResults) -> list[tuple[str, float]]:
    """Return (case id, score) of each case, from the best to the worst.

    The score of a case is its mean over classes. Cases whose labels and prediction are both empty are left out: their
    figures would show nothing.
    """
    is_ascending = results.metric.direction is Direction.LOWER
    rows = results.rows()
    rows = rows[rows["dice"].notna()]
    means = rows.groupby("id")["score"].mean().dropna().sort_values(ascending=is_ascending, kind="stable")
    return [(str(case), float(score)) for case, score in means.items()]


def select_cases(ranking: list[tuple[str, float]]) -> list[SelectedCase]:
    """Select the two best, two median and three worst cases; if there are fewer than seven cases, one of each kind.

    Args:
        ranking: (case id, score) of each case, the best first.

    Returns:
        The selected cases, the best first.
    """
    count = len(ranking)
    counts = SELECTED_COUNTS if count >= sum(SELECTED_COUNTS.values()) else dict.fromkeys(SELECTED_COUNTS, 1)
    middle = (count - counts["median"]) // 2
    indices = {
        "best": range(counts["best"]),
        "median": range(middle, middle + counts["median"]),
        "worst": range(count - counts["worst"], count),
    }
    kinds: dict[int, str] = {}
    for kind in ("best", "worst", "median"):  # if there are only one or two cases, best and worst take precedence
        for index in indices[kind]:
            if 0 <= index < count:
                kinds.setdefault(index, kind)
    return [SelectedCase(ranking[index][0], kinds[index], index + 1, ranking[index][1]) for index in sorted(kinds)]


def _draw_case(
    path: Path, row: Any, oof: OofPredictions, comp: Any, dice: dict[str, float], chosen: SelectedCase, total: int
) -> None:
    masks = to_masks(oof.read(row.id), comp)
    image = load_unchanged_picture(comp, row)
    draw_case(
        path,
        image.array,
        load_unchanged_mask(comp, row),
        masks,
        comp,
        f"{row.id} · {chosen.kind}, rank {chosen.rank} of {total}",
        spacing=json.loads(row.spacing),
        dice=dice,
        affine=image.affine,
    )
