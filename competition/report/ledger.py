"""The ledger as a figure and as a page: public scores over out-of-fold scores."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from competition.config import MaskfoldError
from competition.report import markup as html
from competition.report.canvas import GREY, INK, canvas, dress, legend, nothing
from competition.report.markup import Html, element, joined, paragraph, section
from competition.report.page import place_pictures, write_page
from competition.scoring.pictures import save_figure
from competition.submission.board import correlation, scored
from competition.submission.ledger import Record

MOST_LINES = 6  # of changes, in a cell of the page


def write_ledger(
    output: Path,
    name: str,
    records: Sequence[Record],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    changed: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> Path:
    """Writes the plot (`….png`), or the page with plot, table and notes (`….html`).

    Args:
        output: the file; its ending says which.
        name: of the competition.
        records: the uploads, the oldest first.
        header: of the table.
        rows: its cells; the last column holds what changed, in short.
        changed: what changed, whole.
        notes: sentences below.

    Raises:
        MaskfoldError: the ending is neither (status 2), or the file cannot be written.
    """
    if output.suffix == ".png":
        draw_ledger(records, output, name)
        return output
    check_output(output)
    folder = place_pictures(output)
    draw_ledger(records, folder / "cv-public.png", name)
    cells = [[*row[:-1], _several(words)] for row, words in zip(rows, changed, strict=True)]
    body = [
        html.table(header, cells, words=(0, 1, len(header) - 1)),
        html.figure(
            folder / "cv-public.png",
            "Public score over the out-of-fold score. Bars across: 95 % interval of the CV "
            "score; bars up: where 95 % of public boards of that size would score the file.",
            "public over CV",
        ),
        *(paragraph(note) for note in notes),
    ]
    return write_page(
        f"ledger of {name}",
        element("h1", f"{name}: what was handed in"),
        {"uploads": ("Uploads", section("uploads", "Uploads", *body))},
        output,
    )


def check_output(output: Path) -> None:
    """Raises:
    MaskfoldError: it is no name for a plot or a page (status 2).
    """
    if output.suffix not in (".png", ".html") or output.is_dir():
        raise MaskfoldError(
            f"{output} is no name for a plot or a page.", "Name a file that ends in .png or .html.", status=2
        )


def draw_ledger(records: Sequence[Record], path: Path, name: str) -> None:
    """Public over CV, numbered in the order of the uploads, with both intervals and the correlation."""
    known = [record for record in scored(records) if record.score is not None]
    number = {record.id: place for place, record in enumerate(records, 1)}
    figure = canvas(7.2, 6.0)
    axes = figure.subplots()
    dress(axes, f"{name}: public over CV", across="CV, out of fold", up="public score")
    if not known:
        nothing(axes, "no file has both a CV and a public score yet")
        save_figure(figure, path)
        return
    x = np.array([record.score for record in known], np.float64)
    y = np.array([record.public for record in known], np.float64)
    _bars(known, axes, x, y)
    axes.scatter(x, y, s=34, color=(0.05, 0.38, 0.66), zorder=3)
    for record, across, up in zip(known, x, y, strict=True):
        axes.annotate(
            str(number[record.id]), (across, up), xytext=(5, 5), textcoords="offset points", fontsize=9, color=INK
        )
    limits = axes.get_xlim(), axes.get_ylim()
    ends = [max(limits[0][0], limits[1][0]), min(limits[0][1], limits[1][1])]
    if ends[0] < ends[1]:
        axes.plot(ends, ends, color=GREY, linewidth=0.9, linestyle="--", label="public = CV")
    found = correlation(known)
    if isfinite(found.r):
        slope, level = np.polyfit(x, y, 1)
        line = np.array([x.min(), x.max()])
        axes.plot(
            line,
            slope * line + level,
            color=(0.84, 0.39, 0.08),
            linewidth=1.4,
            label=f"r {found.r:+.3f} ({found.low:+.3f} to {found.high:+.3f})",
        )
    axes.set(xlim=limits[0], ylim=limits[1])
    legend(figure, below=True, columns=3)
    save_figure(figure, path)


def _bars(known: Sequence[Record], axes: object, x: np.ndarray, y: np.ndarray) -> None:
    """The CV's interval across, and upright through the CV's own value where the board is expected."""
    labels: set[str] = set()
    for record, across, up in zip(known, x, y, strict=True):
        low, high = record.cv.get("low"), record.cv.get("high")
        if low is not None and high is not None:
            _bar(axes, [low, high], [up, up], "95 % of CV", labels)
        low, high = record.expected.get("low"), record.expected.get("high")
        if low is not None and high is not None:
            _bar(axes, [across, across], [low, high], "95 % of public boards", labels, light=True)


def _bar(axes: object, x: list[float], y: list[float], label: str, labels: set[str], light: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=(0.55, 0.75, 0.9) if light else (0.05, 0.38, 0.66),
        linewidth=3.5 if light else 1.1,
        alpha=0.6,  # type: ignore[attr-defined]
        solid_capstyle="butt",
        zorder=1 if light else 2,
        label=None if label in labels else label,
    )
    labels.add(label)


def _several(words: Sequence[str]) -> Html:
    shown = [element("small", word) for word in words[:MOST_LINES]]
    if len(words) > MOST_LINES:
        shown.append(element("small", f"and {len(words) - MOST_LINES} more"))
    return joined(shown)
