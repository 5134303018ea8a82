"""Draw the learning curves of a fold as one PNG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.metric import Direction
from competition.records import read_metrics_lines
from competition.text import format_amount
from competition.viz.overlays import class_colour, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[list[float], list[float]]  # epochs, and the value at each epoch

LOSS_COLOUR = (0.15, 0.15, 0.15)
SCORE_COLOUR = (0.0, 0.0, 0.0)


def plot_fold_curves(path: Path, metrics_jsonl: Path, direction: Direction = Direction.HIGHER) -> None:
    """Draw a fold's loss, score and learning rate against the epoch.

    Args:
        path: the PNG file, written atomically.
        metrics_jsonl: file with lines `{"step", "epoch", "time", "metrics": {name: value}}`. The last line is skipped
            if it is incomplete, e.g. because the training was killed. If the file is missing or empty, the figure
            shows the text "nothing logged".
        direction: whether higher or lower scores are better.
    """
    from matplotlib.figure import Figure

    curves = read_curves(metrics_jsonl)
    figure = Figure(figsize=(13.0, 4.2), dpi=110, layout="constrained")
    loss, score, rate = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.7))
    _draw(loss, "loss", _losses(curves))
    _draw(score, "score on validation cases", _scores(curves))
    _draw(rate, "learning rate", {"lr": (curves["lr"], LOSS_COLOUR, 1.6)} if "lr" in curves else {})
    rates = [value for value in curves.get("lr", ([], []))[1] if value > 0]
    if rates and max(rates) > 10 * min(rates):
        rate.set_yscale("log")
    figure.suptitle(" · ".join(_title_parts(metrics_jsonl, curves, direction)), fontsize=11, parse_math=False)
    save_figure(figure, path)


def read_curves(metrics_jsonl: Path) -> dict[str, Curve]:
    """Read the values of each metric by epoch.

    The metrics and epochs are in the order of the file. If a metric has several values in one epoch, they are
    averaged. A non-finite value becomes nan, which leaves a gap in the curve.
    """
    values: dict[str, dict[float, list[float]]] = {}
    for line in read_metrics_lines(metrics_jsonl):
        for name, value in line.metrics.items():
            values.setdefault(name, {}).setdefault(line.epoch, []).append(value)
    return {
        name: (list(by_epoch), [sum(numbers) / len(numbers) for numbers in by_epoch.values()])
        for name, by_epoch in values.items()
    }


def _losses(curves: Mapping[str, Curve]) -> dict[str, tuple[Curve, tuple[float, float, float], float]]:
    names = [name for name in curves if name.startswith("train/") and name != "train/loss"]
    drawn = {name.removeprefix("train/"): (curves[name], class_colour(index), 1.2) for index, name in enumerate(names)}
    if "train/loss" in curves:
        drawn["total" if names else "loss"] = (curves["train/loss"], LOSS_COLOUR, 1.8)
    return drawn


def _scores(curves: Mapping[str, Curve]) -> dict[str, tuple[Curve, tuple[float, float, float], float]]:
    """Return the curves of the Dice of each class, of the mean Dice and of the competition's metric.

    Each curve has a label, a colour and a line width. Classes have the same colours as in `draw_case`.
    """
    names = [name for name in curves if name.startswith("val/dice/")]
    drawn = {
        f"Dice {name.removeprefix('val/dice/')}": (curves[name], class_colour(index), 1.2)
        for index, name in enumerate(names)
    }
    if "val/dice" in curves and len(names) != 1:
        drawn["Dice, mean"] = (curves["val/dice"], (0.5, 0.5, 0.5), 1.8)
    if "val/score" in curves:
        drawn["score"] = (curves["val/score"], SCORE_COLOUR, 2.2)
    return drawn


def _draw(axes: Axes, title: str, curves: Mapping[str, tuple[Curve, tuple[float, float, float], float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for label, ((epochs, values), colour, width) in curves.items():
        is_single_point = sum(math.isfinite(value) for value in values) < 2  # a line needs two points
        # The space is needed because matplotlib omits labels that begin with an underscore from the legend.
        axes.plot(
            epochs,
            values,
            color=colour,
            linewidth=width,
            marker="o" if is_single_point else None,
            markersize=4,
            label=f" {label}",
        )
    if not curves:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", color="grey")
    elif len(curves) > 1:
        legend = axes.legend(fontsize=8, ncols=1 + len(curves) // 12)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be called $x


def _title_parts(metrics_jsonl: Path, curves: Mapping[str, Curve], direction: Direction) -> Sequence[str]:
    """Return the parts of the figure's title: the fold, its epochs, its best score and its speed."""
    parts = [metrics_jsonl.parent.name]
    epochs = max((epochs[-1] for epochs, _ in curves.values()), default=0)
    parts.append(format_amount(epochs, "epoch"))
    scores = [
        (value, epoch) for epoch, value in zip(*curves.get("val/score", ([], [])), strict=True) if math.isfinite(value)
    ]
    if scores:
        best, epoch = max(scores, key=lambda point: (direction.rank(point[0]), point[1]))
        parts.append(f"best score {best:.4f} at epoch {epoch:g}, last {scores[-1][0]:.4f}")
    seconds = [value for value in curves.get("time/epoch_seconds", ([], []))[1] if math.isfinite(value)]
    if seconds:
        parts.append(f"{sum(seconds) / len(seconds):.3g} s per epoch")
    return parts
