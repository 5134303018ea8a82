"""Draw the public score of each upload in the ledger against its out-of-fold score, in a figure or an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.errors import MaskfoldError
from competition.leaderboard.ledger import UploadRecord
from competition.leaderboard.noise import cv_lb_correlation, with_public_score
from competition.report.html import Cell, Table, create_figure_folder, render, write_page
from competition.text import and_more
from competition.viz.overlays import save_figure
from competition.viz.style import GREY_COLOUR, TEXT_COLOUR, add_legend, new_figure, show_empty_text, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = "ledger.html.j2"
MAX_LINES = 6  # maximum number of changes in a table cell


def write_ledger(
    output: Path,
    name: str,
    records: Sequence[UploadRecord],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    changed: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> Path:
    """Write the ledger as a figure (`.png`), or as an HTML page with figure, table and notes (`.html`).

    Args:
        output: path of the file, whose suffix selects figure or page.
        name: name of the competition.
        records: the uploads, the oldest first.
        header: names of the columns of the table.
        rows: cells of the table, one row for each upload. `changed` replaces the cells of the last column.
        changed: for each upload, descriptions of the changes since the previous upload.
        notes: paragraphs below the figure.

    Returns:
        The path of the file.

    Raises:
        MaskfoldError: the suffix is invalid (status 2), or the file cannot be written.
    """
    if output.suffix == ".png":
        draw_ledger(records, output, name)
        return output
    check_ledger_output(output)
    folder = create_figure_folder(output)
    draw_ledger(records, folder / "cv-public.png", name)
    cells: list[list[str | Cell]] = [
        [*row[:-1], _change_cell(changes)] for row, changes in zip(rows, changed, strict=True)
    ]
    body = render(
        TEMPLATE,
        "uploads",
        table=Table(header, cells, text_columns=(0, 1, len(header) - 1)),
        picture=folder / "cv-public.png",
        notes=notes,
    )
    head = render(TEMPLATE, "head", name=name)
    return write_page(f"ledger of {name}", head, {"uploads": ("Uploads", body)}, output)


def check_ledger_output(output: Path) -> None:
    """Check that the name of the output file ends in `.png` or `.html`.

    Raises:
        MaskfoldError: the name has another suffix, or a folder has this name (status 2).
    """
    if output.suffix not in (".png", ".html") or output.is_dir():
        raise MaskfoldError(
            f"--output: found {'the folder ' if output.is_dir() else ''}{output}, expected a file name that "
            "ends in .png or .html.",
            "Give the name of a file, for example --output ledger.png.",
            status=2,
        )


def draw_ledger(records: Sequence[UploadRecord], path: Path, name: str) -> None:
    """Draw the public score of each upload against its CV score, with the intervals of both, and their correlation.

    Args:
        records: the uploads, the oldest first.
        path: path of the figure.
        name: name of the competition.
    """
    points = [record for record in with_public_score(records) if record.score is not None]
    number = {record.id: index for index, record in enumerate(records, 1)}
    figure = new_figure(7.2, 6.0)
    axes = figure.subplots()
    style_axes(axes, f"{name}: public against CV score", xlabel="CV score, out of fold", ylabel="public score")
    if not points:
        show_empty_text(axes, "no upload has both a CV and a public score yet")
        save_figure(figure, path)
        return
    x = np.array([record.score for record in points], np.float64)
    y = np.array([record.public for record in points], np.float64)
    _interval_bars(points, axes, x, y)
    axes.scatter(x, y, s=34, color=(0.05, 0.38, 0.66), zorder=3)
    for record, cv, public in zip(points, x, y, strict=True):
        axes.annotate(
            str(number[record.id]),
            (cv, public),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=9,
            color=TEXT_COLOUR,
        )
    limits = axes.get_xlim(), axes.get_ylim()
    ends = [max(limits[0][0], limits[1][0]), min(limits[0][1], limits[1][1])]
    if ends[0] < ends[1]:
        axes.plot(ends, ends, color=GREY_COLOUR, linewidth=0.9, linestyle="--", label="public = CV")
    fit = cv_lb_correlation(points)
    if isfinite(fit.r):
        slope, intercept = np.polyfit(x, y, 1)
        line = np.array([x.min(), x.max()])
        axes.plot(
            line,
            slope * line + intercept,
            color=(0.84, 0.39, 0.08),
            linewidth=1.4,
            label=f"r {fit.r:+.3f} ({fit.low:+.3f} to {fit.high:+.3f})",
        )
    axes.set(xlim=limits[0], ylim=limits[1])
    add_legend(figure, below=True, columns=3)
    save_figure(figure, path)


def _interval_bars(points: Sequence[UploadRecord], axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw each CV score's interval as a horizontal bar, and the public score's expected range as a vertical bar.

    Args:
        points: the uploads with both scores.
        axes: the axes.
        x: CV score of each upload.
        y: public score of each upload.
    """
    labels: set[str] = set()
    for record, cv, public in zip(points, x, y, strict=True):
        low, high = record.cv.get("low"), record.cv.get("high")
        if low is not None and high is not None:
            _bar(axes, [low, high], [public, public], "95 % interval of CV", labels)
        low, high = record.expected.get("low"), record.expected.get("high")
        if low is not None and high is not None:
            _bar(axes, [cv, cv], [low, high], "95 % of public test sets", labels, light=True)


def _bar(axes: Axes, x: list[float], y: list[float], label: str, labels: set[str], light: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=(0.55, 0.75, 0.9) if light else (0.05, 0.38, 0.66),
        linewidth=3.5 if light else 1.1,
        alpha=0.6,
        solid_capstyle="butt",
        zorder=1 if light else 2,
        label=None if label in labels else label,
    )
    labels.add(label)


def _change_cell(changes: Sequence[str]) -> Cell:
    more = and_more(len(changes), MAX_LINES, "change").strip()
    return Cell("", [*changes[:MAX_LINES], *([more] if more else [])])
