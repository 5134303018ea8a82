"""Define the common style of figures in reports."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.viz.overlays import RGB, class_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TEXT_COLOUR: RGB = (0.11, 0.14, 0.19)
GREY_COLOUR: RGB = (0.55, 0.59, 0.64)
MAX_PANELS = 12  # maximum number of classes in a figure; tables list all classes
MAX_LEGEND_ENTRIES = 24
FOLD_COLOURS: tuple[RGB, ...] = tuple(
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


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with automatic layout; width and height are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(h_pad=0.09, w_pad=0.09)  # type: ignore[call-arg]
    return figure


def panel_grid(count: int, height: float = 3.1, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of equal panels, and the panels.

    If it has several columns, the figure is as wide as the HTML report.

    Args:
        count: number of panels.
        height: height of a row in inches.
        columns: maximum number of panels in a row.
    """
    n_columns = min(count, columns)
    n_rows = -(-count // n_columns)
    figure = new_figure(11.0 if n_columns > 1 else 6.4, height * n_rows + (1.0 if n_columns < 3 else 0.0))
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for unused in grid[count:]:
        unused.set_axis_off()
    return figure, grid[:count]


def style_axes(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Set title and axis labels of a panel, draw a light grid, and remove the box around the panel.

    The title may contain a $, because it is not read as a formula.
    """
    axes.set_title(_shorten(title), fontsize=10.5, loc="left", color=TEXT_COLOUR, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=9, color=TEXT_COLOUR)
    axes.set_ylabel(ylabel, fontsize=9, color=TEXT_COLOUR)
    axes.tick_params(labelsize=8.5, colors=TEXT_COLOUR, length=3)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY_COLOUR)


def show_empty_text(axes: Axes, text: str) -> None:
    """Write a text into an empty panel, e.g. the reason why it is empty."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=GREY_COLOUR,
        fontsize=9.5,
        parse_math=False,
    )
    axes.set_xticks([])
    axes.set_yticks([])


def set_log_axis(axis: Axis, low: float, high: float) -> None:
    """Make an axis logarithmic from `low` to `high`, with four to eight ticks in decimal notation.

    Both limits must be above 0.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 4:  # for less than a factor of two, use linear steps
        ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 9]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))


def format_tick(value: float) -> str:
    """Format a number on an axis, such as 1,500, 0.002 or 1e-7."""
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def add_legend(target: Any, below: bool = False, columns: int = 1) -> None:
    """Add a legend to a figure or to a panel.

    Args:
        target: a figure if `below` is True, otherwise a panel.
        below: whether to draw the legend of the figure's first panel below all panels. If False, the legend is drawn
            inside the panel.
        columns: number of columns of the legend.
    """
    if below:
        handles, labels = target.axes[0].get_legend_handles_labels()
        handles, labels = handles[:MAX_LEGEND_ENTRIES], labels[:MAX_LEGEND_ENTRIES]
        drawn = target.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    else:
        drawn = target.legend(
            loc="lower center", fontsize=8.5, ncols=columns, facecolor="white", edgecolor="none", framealpha=0.9
        )
    for text in drawn.get_texts():
        text.set_parse_math(False)  # a class may be called $x


def dark_class_colour(index: int) -> RGB:
    """Return the colour of a class on a white background: a darker shade of the class's colour on images."""
    hue, light, saturation = colorsys.rgb_to_hls(*class_colour(index))
    return colorsys.hls_to_rgb(hue, min(light, 0.40), saturation * 0.9)


def fold_colour(fold: int) -> RGB:
    """Return the colour of a fold; for a negative number (a network trained on all cases), the colour of text."""
    return TEXT_COLOUR if fold < 0 else FOLD_COLOURS[fold % len(FOLD_COLOURS)]


def select_drawn_classes(sizes: Sequence[float]) -> list[int]:
    """Return the indices of the classes to draw, in ascending order.

    These are the `MAX_PANELS` classes with the largest values in `sizes`, which has one value for each class.
    """
    order = np.argsort(-np.asarray(sizes, np.float64), kind="stable")[:MAX_PANELS]
    return sorted(int(index) for index in order)


def _shorten(title: str) -> str:
    return title if len(title) <= 44 else title[:42] + "…"
