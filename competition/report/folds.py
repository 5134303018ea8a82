"""Write the section of a run's HTML report that compares the folds of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from competition.config.metric import Direction
from competition.report.html import ABSENT_LABEL, Table, format_interval, format_score, render
from competition.report.results import RunResults
from competition.runs.imported import is_imported
from competition.viz.overlays import save_figure
from competition.viz.style import fold_colour, new_figure, style_axes

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "run.html.j2"
MAX_CLASSES = 20  # maximum number of classes in the table


def folds_section(results: RunResults, folder: Path) -> Markup:
    """Return the section with a table that has one column per fold, and a figure with the score of each case.

    Args:
        results: the results of the run.
        folder: folder for the figure.
    """
    scores = _case_scores(results)
    picture = None
    if any(len(values) for values in scores.values()):
        picture = folder / "folds.png"
        draw_folds(scores, results.metric.label, picture)
    return render(TEMPLATE, "folds", table=_table(results, scores), picture=picture)


def _case_scores(results: RunResults) -> dict[int, pd.Series]:
    """Return the score of each case (its mean over classes) by case id, for each fold."""
    return {
        fold: (rows := results.rows(fold))[rows["dice"].notna()].groupby("id")["score"].mean().dropna()
        for fold in results.folds
    }


def _table(results: RunResults, scores: dict[int, pd.Series]) -> Table:
    folds, classes = results.folds, results.run.exp.competition.classes
    members = {fold: [one for one in results.members if one.fold == fold] for fold in folds}
    estimates = {fold: results.score(fold) for fold in folds}
    rows = [
        ["cases", *(str(results.rows(fold)["id"].nunique()) for fold in folds)],
        [results.metric.label, *(format_score(estimates[fold].value) for fold in folds)],
        ["95 % interval", *(format_interval(estimates[fold].low, estimates[fold].high) for fold in folds)],
    ]
    for name in classes[:MAX_CLASSES]:
        rows.append([f"Dice {name}", *(format_score(results.dice(name, fold).value) for fold in folds)])
    is_lower_better = results.metric.direction is Direction.LOWER
    worst = {
        fold: ABSENT_LABEL if series.empty else str(series.idxmax() if is_lower_better else series.idxmin())
        for fold, series in scores.items()
    }
    rows += [
        ["median score of a case", *(format_score(float(scores[fold].median())) for fold in folds)],
        ["case with the worst score", *(worst[fold] for fold in folds)],
    ]
    training = [
        ["steps", *(", ".join(str(one.steps) for one in members[fold]) for fold in folds)],
        ["epochs", *(", ".join(str(one.epochs) for one in members[fold]) for fold in folds)],
        ["minutes", *(f"{sum(one.minutes for one in members[fold]):.1f}" for fold in folds)],
        ["peak memory, GiB", *(f"{max(one.peak_gib for one in members[fold]):.1f}" for fold in folds)],
        ["device", *("; ".join(dict.fromkeys(one.device for one in members[fold])) for fold in folds)],
    ]
    if not is_imported(results.run.exp):
        rows += training
    return Table(["", *(f"fold {fold}" for fold in folds)], rows)


def draw_folds(scores: dict[int, pd.Series], label: str, path: Path) -> None:
    """Draw the score of each case as a point, in one column for each fold, with a line at the median of the fold.

    Args:
        scores: scores of the cases of each fold.
        label: label of the vertical axis.
        path: path of the figure.
    """
    figure = new_figure(min(10.0, 2.0 + 1.1 * len(scores)), 3.0)
    axes = figure.subplots()
    style_axes(axes, "score of each case", xlabel="fold", ylabel=label)
    generator = np.random.default_rng(0)
    for place, (fold, series) in enumerate(scores.items()):
        across = place + generator.uniform(-0.22, 0.22, len(series))
        axes.scatter(across, series, s=14, alpha=0.55, color=fold_colour(fold), linewidths=0)
        if len(series):
            axes.plot([place - 0.3, place + 0.3], [series.median()] * 2, color=fold_colour(fold), linewidth=2.2)
    axes.set_xticks(range(len(scores)), [str(fold) for fold in scores])
    axes.set_xlim(-0.6, len(scores) - 0.4)
    save_figure(figure, path)
