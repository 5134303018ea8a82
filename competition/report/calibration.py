"""Calibration and threshold curves."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.report import markup as html
from competition.report.canvas import GREY, INK, MOST_PANELS, drawn_classes, dress, ink, legend, nothing, panels
from competition.report.markup import Html, section
from competition.report.reliability import BINS, THRESHOLDS, Tally, counted, evenly, tally
from competition.report.results import Results
from competition.scoring.pictures import save_figure
from competition.training.oof import OutOfFold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABSENT_HERE = "absent from the truth of these cases"
RELIABILITY = (
    "On the diagonal, of the pixels with probability p a share p is of the class; below it the class is rarer "
    "than the network says, above it more frequent. The grey bars count the pixels of each bin, on a log axis."
)
ERRORS = (
    "ECE, the expected calibration error, is the mean distance from the diagonal over all pixels. Doubtful pixels "
    f"are those outside of the first and the last bin (1/{BINS} < p ≤ {BINS - 1}/{BINS}): easy background would else "
    "hide them. The best threshold is chosen on these very cases, so its Dice flatters a little."
)


def calibration_section(results: Results, oof: OutOfFold, folder: Path, say: Callable[[str], None]) -> Html:
    """Reliability diagrams with the calibration error, and Dice against the threshold."""
    comp = results.run.exp.competition
    cases = evenly(list(oof.fold_of))
    say(f"calibration over {len(cases)} cases")
    tallies, now = tally(oof, cases), scored_dice(results, cases)
    shown = drawn_classes([float(one.hits.sum()) for one in tallies])
    exclusive = comp.labels == "exclusive"
    draw_reliability(tallies, comp.classes, shown, folder / "calibration.png")
    draw_thresholds(tallies, comp.classes, shown, now, exclusive, folder / "thresholds.png")
    words = f"Pixel probabilities of {counted(cases, oof)}, in {BINS} bins."
    if results.run.exp.prepare.boundary is not None:
        words += " The boundary class is shared out among the classes."
    if len(shown) < len(tallies):
        words += f" The {MOST_PANELS} classes with the most pixels are drawn; the table has all."
    header = [
        "class",
        "pixels of it",
        "ECE",
        "ECE of doubtful pixels",
        "best threshold",
        "Dice there",
        f"Dice at {'argmax' if exclusive else '0.5'}",
    ]
    rows = [_row(name, one, value) for name, one, value in zip(comp.classes, tallies, now, strict=True)]
    return section(
        "calibration",
        "Calibration and thresholds",
        html.paragraph(words, note=True),
        html.figure(folder / "calibration.png", RELIABILITY, "Reliability diagram per class"),
        html.table(header, rows),
        html.paragraph(ERRORS, note=True),
        html.figure(folder / "thresholds.png", _curves(tallies, exclusive), "Dice against the threshold per class"),
    )


def _curves(tallies: list[Tally], exclusive: bool) -> str:
    """The caption of the threshold curves."""
    text = (
        "Mean Dice, over the cases that have the class, of the pixels above a threshold of its probability. The ring "
        f"is what was scored ({'most probable class' if exclusive else 'threshold 0.5'})."
    )
    if any(one.left_empty for one in tallies):
        text += " Dotted: of the cases without the class, the share in which nothing is above the threshold."
    return text


def scored_dice(results: Results, cases: list[str]) -> list[float]:
    """Of each class, the mean Dice as it was scored, over those of the cases whose truth has it; nan where none has."""
    rows = results.rows()
    rows = rows[rows["id"].isin(cases) & (rows["tp"] + rows["fn"] > 0)]
    means = rows.groupby("class")["dice"].mean()
    return [float(means.get(name, nan)) for name in results.run.exp.competition.classes]


def _row(name: str, one: Tally, now: float) -> list[str]:
    if one.absent:
        return [name, html.ABSENT, html.ABSENT, html.ABSENT, html.ABSENT, html.ABSENT, html.ABSENT]
    curve = one.mean_dice()
    best = int(np.argmax(curve))
    return [
        name,
        f"{int(one.hits.sum()):,}",
        f"{one.ece():.4f}",
        html.number(one.ece(inner=True)),
        f"{THRESHOLDS[best]:.2f}",
        f"{curve[best]:.4f}",
        html.number(now),
    ]


def draw_reliability(tallies: list[Tally], classes: list[str], shown: list[int], path: Path) -> None:
    """Draws for each class the share of pixels that are of it against their mean probability."""
    figure, axes = panels(len(shown), height=3.2, columns=3)
    for one, index in zip(axes, shown, strict=True):
        found = tallies[index]
        if found.absent:
            dress(one, classes[index])
            nothing(one, ABSENT_HERE)
            continue
        dress(one, f"{classes[index]} · ECE {found.ece():.4f}", across="probability", up="share of the class")
        pixels, mean, share = found.bins()
        behind = one.twinx()
        behind.bar((np.arange(BINS) + 0.5) / BINS, pixels, width=0.85 / BINS, color=GREY, alpha=0.22, linewidth=0)
        behind.set_yscale("log")
        behind.set_ylim(max(0.5, min(pixels[pixels > 0]) / 10), float(pixels.max()) * 300)
        _quiet(behind)
        one.set_zorder(behind.get_zorder() + 1)
        one.patch.set_visible(False)
        one.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        one.plot(mean, share, "o-", color=ink(index), linewidth=1.6, markersize=4.5)
        one.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    save_figure(figure, path)


def _quiet(axes: Axes) -> None:
    """Bars whose axis has no numbers: their shape is what counts."""
    axes.set_yticks([])
    axes.minorticks_off()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def draw_thresholds(
    tallies: list[Tally], classes: list[str], shown: list[int], now: list[float], exclusive: bool, path: Path
) -> None:
    """Draws for each class the Dice against the threshold, and marks what was scored."""
    figure, axes = panels(len(shown), height=2.9, columns=3)
    for one, index in zip(axes, shown, strict=True):
        dress(one, classes[index], across="threshold", up="mean Dice")
        found, kept = tallies[index], tallies[index].share_left_empty()
        if found.absent and kept is None:
            nothing(one, ABSENT_HERE)
            continue
        one.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
        if not found.absent:
            one.plot(
                THRESHOLDS, found.mean_dice(), "o-", color=ink(index), linewidth=1.6, markersize=3.5, label=" Dice"
            )
            one.plot(
                [0.5],
                [now[index]],
                "o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.5,
                label=f" {'argmax' if exclusive else '0.5'}: {now[index]:.4f}",
            )
        else:
            one.set_title(f"{classes[index]}: {ABSENT_HERE}", fontsize=9.5, loc="left", parse_math=False)
        if kept is not None:
            one.plot(
                THRESHOLDS,
                kept,
                ":",
                color=ink(index),
                linewidth=1.8,
                label=f" empty cases left empty ({len(found.left_empty)})",
            )
        one.set_xlim(0, 1)
        legend(one)
    save_figure(figure, path)
