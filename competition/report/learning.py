"""Learning curves of all folds side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.report import markup as html
from competition.report.canvas import MOST_PANELS, dress, fold_colour, legend, log_axis, nothing, panels
from competition.report.markup import Html, section
from competition.scoring.curves import Curve, read_curves
from competition.scoring.pictures import save_figure
from competition.training.job import FoldResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.training.runs import CvRun

Member = tuple[int, int]
SEED_LINES = ("-", "--", ":", "-.")


def learning_section(run: CvRun, folder: Path) -> Html:
    """The curves of every fold that has written any, finished or not."""
    curves = member_curves(run)
    if not any(curves.values()):
        return section("learning", "Learning curves", html.paragraph("No fold has written metrics.jsonl."))
    names = {member: _name(run, member) for member in curves}
    draw_learning(curves, names, folder / "learning.png")
    parts = [
        html.figure(
            folder / "learning.png",
            "Training loss, the competition's metric and the mean Dice on "
            "validation cases, and the learning rate, against the epoch.",
            "Learning curves of all folds",
        )
    ]
    classes = run.exp.competition.classes
    if len(classes) > 1 and any(f"val/dice/{name}" in curve for curve in curves.values() for name in classes):
        draw_classes(curves, names, classes[:MOST_PANELS], folder / "learning_classes.png")
        shown = "" if len(classes) <= MOST_PANELS else f" (the first {MOST_PANELS} of {len(classes)})"
        parts.append(
            html.figure(
                folder / "learning_classes.png",
                f"Dice per class on validation cases{shown}.",
                "Dice per class against the epoch",
            )
        )
    return section("learning", "Learning curves", *parts)


def member_curves(run: CvRun) -> dict[Member, dict[str, Curve]]:
    """The curves of each fold and seed that has any."""
    places = [(fold, seed) for fold in (*run.numbers(), -1) for seed in range(len(run.exp.seeds))]
    found = {place: read_curves(run.member_folder(*place) / "metrics.jsonl") for place in places}
    return {place: curves for place, curves in found.items() if curves}


def draw_learning(curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str], path: Path) -> None:
    """Draws loss, score, mean Dice and learning rate."""
    figure, axes = panels(4, height=2.9, columns=2)
    for one, (metric, title) in zip(
        axes,
        (
            ("train/loss", "training loss"),
            ("val/score", "score on validation cases"),
            ("val/dice", "mean Dice on validation cases"),
            ("lr", "learning rate"),
        ),
        strict=True,
    ):
        dress(one, title, across="epoch")
        _draw(one, metric, curves, names)
        if metric in ("lr", "train/loss"):
            _log_where_wide(one, metric, curves)
    _same_epochs(axes, curves)
    legend(figure, below=True, columns=min(6, len(curves)))
    save_figure(figure, path)


def draw_classes(
    curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str], classes: list[str], path: Path
) -> None:
    """Draws the Dice of each class."""
    figure, axes = panels(len(classes), height=2.6, columns=3)
    for one, cls in zip(axes, classes, strict=True):
        dress(one, f"Dice {cls}", across="epoch")
        _draw(one, f"val/dice/{cls}", curves, names)
    _same_epochs(axes, curves)
    legend(figure, below=True, columns=min(6, len(curves)))
    save_figure(figure, path)


def _draw(axes: Axes, metric: str, curves: Mapping[Member, Mapping[str, Curve]], names: Mapping[Member, str]) -> None:
    drawn = False
    for member, found in curves.items():
        epochs, values = found.get(metric, ([], []))
        known = sum(math.isfinite(value) for value in values)
        # few points are marked, one point alone would else be no line at all; a fold without any keeps its legend entry
        axes.plot(
            epochs,
            values,
            color=fold_colour(member[0]),
            linestyle=SEED_LINES[member[1] % len(SEED_LINES)],
            linewidth=1.5,
            marker="o" if known < 6 else None,
            markersize=4,
            label=f" {names[member]}",
        )
        drawn |= known > 0
    if not drawn:
        nothing(axes, "nothing logged")


def _same_epochs(axes: Sequence[Axes], curves: Mapping[Member, Mapping[str, Curve]]) -> None:
    """All panels from the first epoch to the last: a single validation is then seen at its place."""
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch for found in curves.values() for places, _ in found.values() for epoch in places]
    first, last = min(epochs), max(epochs)
    margin = max(0.3, 0.03 * (last - first))
    for one in axes:
        one.set_xlim(first - margin, last + margin)
        one.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _log_where_wide(axes: Axes, metric: str, curves: Mapping[Member, Mapping[str, Curve]]) -> None:
    values = [value for found in curves.values() for value in found.get(metric, ([], []))[1] if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) > 8 * min(positive):
        log_axis(axes.yaxis, min(positive), max(positive))


def _name(run: CvRun, member: Member) -> str:
    fold, seed = member
    name = "all cases" if fold < 0 else f"fold {fold}"
    if len(run.exp.seeds) > 1:
        name += f", seed {run.exp.seeds[seed]}"
    return name if FoldResult.read(run.member_folder(fold, seed)) is not None else f"{name} (unfinished)"
