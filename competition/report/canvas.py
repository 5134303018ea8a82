"""How figures look: one hand for all of them."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.scoring.pictures import class_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

RGB = tuple[float, float, float]

INK: RGB = (0.11, 0.14, 0.19)
GREY: RGB = (0.55, 0.59, 0.64)
MOST_PANELS = 12  # classes drawn; tables have them all
MOST_ENTRIES = 24  # of a legend
FOLDS: tuple[RGB, ...] = tuple(
    (r / 255, g / 255, b / 255)
    for r, g, b in (
        (31, 119, 180),
        (214, 100, 20),
        (44, 140, 70),
        (190, 50, 60),
        (130, 95, 180),
        (140, 86, 75),
        (200, 90, 160),
        (90, 90, 90),
        (150, 150, 20),
        (20, 160, 175),
    )
)


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches, that arranges its panels by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(h_pad=0.09, w_pad=0.09)  # type: ignore[call-arg]
    return figure


def panels(count: int, height: float = 3.1, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels alike, in rows of at most `columns`; as wide as the page."""
    across = min(count, columns)
    down = -(-count // across)
    figure = canvas(11.0 if across > 1 else 6.4, height * down + (1.0 if across < 3 else 0.0))
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in grid[count:]:
        spare.set_axis_off()
    return figure, grid[:count]


def dress(axes: Axes, title: str, across: str = "", up: str = "") -> None:
    """Title, names of the axes, a light grid, no box. Names may hold a $."""
    axes.set_title(_short(title), fontsize=10.5, loc="left", color=INK, parse_math=False)
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=3)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)


def nothing(axes: Axes, words: str) -> None:
    """Says in an empty panel why it is empty."""
    axes.text(
        0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9.5, parse_math=False
    )
    axes.set_xticks([])
    axes.set_yticks([])


def log_axis(axis: Axis, low: float, high: float) -> None:
    """A log axis from `low` to `high` (both above 0) with four to eight ticks, written as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 4:  # hardly a factor of two: even steps
        ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 9]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """A number on an axis: 1,500, 0.002, 1e-7."""
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def legend(target: Any, below: bool = False, columns: int = 1) -> None:
    """A quiet legend, below a figure or inside of a panel."""
    if below:
        handles, labels = target.axes[0].get_legend_handles_labels()
        handles, labels = handles[:MOST_ENTRIES], labels[:MOST_ENTRIES]
        drawn = target.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    else:
        drawn = target.legend(
            loc="lower center", fontsize=8.5, ncols=columns, facecolor="white", edgecolor="none", framealpha=0.9
        )
    for text in drawn.get_texts():
        text.set_parse_math(False)  # a class may be called $x


def ink(index: int) -> RGB:
    """The colour of a class on white paper: that of its pictures, darker."""
    hue, light, saturation = colorsys.rgb_to_hls(*class_colour(index))
    return colorsys.hls_to_rgb(hue, min(light, 0.40), saturation * 0.9)


def fold_colour(fold: int) -> RGB:
    """The colour of a fold; a fit on all cases is black."""
    return INK if fold < 0 else FOLDS[fold % len(FOLDS)]


def drawn_classes(sizes: Sequence[float]) -> list[int]:
    """The classes to draw, in order: all, or where there are too many those with the most pixels or objects."""
    order = np.argsort(-np.asarray(sizes, np.float64), kind="stable")[:MOST_PANELS]
    return sorted(int(index) for index in order)


def _short(title: str) -> str:
    return title if len(title) <= 44 else title[:42] + "…"
