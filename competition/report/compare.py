"""The page of two runs, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isnan
from pathlib import Path

import numpy as np

from competition.data.table import load_image, load_mask
from competition.report import markup as html
from competition.report.canvas import GREY, drawn_classes, dress, ink, legend, panels
from competition.report.markup import Html, element, joined, paragraph, section
from competition.report.page import place_pictures, write_page
from competition.scoring.compared_pictures import compared_picture
from competition.scoring.paired import Difference
from competition.scoring.pictures import save_figure
from competition.submission.compare import Comparison
from competition.training.checkpoint import write_table

DIGITS = {"hd95": 3}


def write_comparison(
    found: Comparison, folder: Path, count: int = 10, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Writes `compare.html`, its pictures in `compare/`, and `cases.csv` with a row per case and class.

    Args:
        found: of `competition.submission.compare.compare`.
        folder: where.
        count: how many of the cases that changed most are drawn.
        say: takes lines about the progress.

    Returns:
        The page.

    Raises:
        MaskfoldError: it cannot be written.
    """
    page = folder / "compare.html"
    pictures = place_pictures(page)
    write_table(found.table(), folder / "cases.csv")
    draw_differences(found, pictures / "differences.png")
    if count:
        say("pictures of the cases that changed most")
    sections = {
        "differences": ("Differences", _differences(found, pictures)),
        "cases": ("Cases", _cases(found, pictures, count)),
    }
    names = f"{found.a.name} and {found.b.name}"
    head = joined([element("h1", f"{found.comp.name}: A and B"), *(paragraph(note, note=True) for note in found.notes)])
    return write_page(names, head, sections, page)


def measure_words(one: Difference, found: Comparison) -> str:
    """What a line of the table is of, e.g. `HD95, mm`."""
    metric = found.comp.metric
    unit = "mm" if found.comp.dimensions == 3 else "pixels" if _no_spacing(found) else "mm"
    return {
        "score": f"{metric.name} ({metric.average})",
        "dice": "Dice",
        "surface_dice": f"surface Dice, {metric.tolerance_mm:g} {unit}",
        "hd95": f"HD95, {unit}",
    }[one.measure]


def difference_cells(one: Difference, found: Comparison) -> tuple[str, ...]:
    """A line of the table: measure, class, A, B, B − A, interval, p, better and worse cases."""
    digits = DIGITS.get(one.measure, 4)
    ends = "" if isnan(one.low) else f"{one.low:+.{digits}f} to {one.high:+.{digits}f}"
    p = "" if isnan(one.p) else "< 0.0001" if one.p < 0.0001 else f"{one.p:.4f}"
    change = "" if isnan(one.value) else f"{one.value:+.{digits}f}"
    return (
        measure_words(one, found),
        one.cls or "all",
        html.number(one.a, digits),
        html.number(one.b, digits),
        change,
        ends,
        p,
        f"{one.better} / {one.worse}",
    )


HEADER = ("measure", "class", "A", "B", "B − A", "95 %", "p", "better / worse")


def draw_differences(found: Comparison, path: Path) -> None:
    """Per class: Dice of each case, B over A, and HD95 likewise."""
    comp, (one, other) = found.comp, found.tables
    sizes = [float((one["class"] == name).sum()) for name in comp.classes]
    shown = drawn_classes(sizes)
    figure, axes = panels(2 * len(shown), height=3.4, columns=4 if len(shown) > 1 else 2)
    for place, index in enumerate(shown):
        name = comp.classes[index]
        for offset, (measure, words) in enumerate((("dice", "Dice"), ("hd95", "HD95"))):
            panel = axes[2 * place + offset]
            a, b = (table.loc[table["class"] == name, measure].to_numpy(np.float64) for table in (one, other))
            dress(panel, f"{words}: {name}", across="A", up="B")
            panel.scatter(a, b, s=14, alpha=0.5, color=ink(index), linewidths=0)
            both = np.concatenate([a, b])
            both = both[np.isfinite(both)]
            if both.size:
                pad = 0.03 * float(np.ptp(both)) or 0.01
                ends = [float(both.min()) - pad, float(both.max()) + pad]
                panel.plot(ends, ends, color=GREY, linewidth=0.9, label="equal" if not place and not offset else None)
                panel.set(xlim=ends, ylim=ends, aspect="equal")
    legend(figure, below=True)
    save_figure(figure, path)


def _differences(found: Comparison, folder: Path) -> Html:
    rows = [difference_cells(one, found) for one in found.differences]
    strong = [place for place, one in enumerate(found.differences) if one.measure == "score" and not one.cls]
    note = (
        f"{len(found.rows)} cases, each predicted by networks that never saw it. Intervals are paired bootstraps over "
        "cases (over groups, where there are groups), p is Wilcoxon's signed-rank test of the cases' differences; "
        "neither is corrected for the number of lines. Better and worse count cases of B. A class that only one run "
        "finds, or misses, has a Dice of 0 there, and the image's diagonal as HD95."
    )
    return section(
        "differences",
        "Differences",
        paragraph(note, note=True),
        html.table(HEADER, rows, words=(0, 1), strong=strong),
        html.figure(
            folder / "differences.png",
            "Each point is a case. Dice: above the line B is better; HD95: below it.",
            "Measures of each case, B over A",
        ),
    )


def _cases(found: Comparison, folder: Path, count: int) -> Html:
    for old in folder.glob("case_*.png"):  # of an earlier page
        if re.fullmatch(r"case_\d+\.png", old.name):
            old.unlink()
    parts: list[Html] = []
    for place, (case, change) in enumerate(found.most_changed(count), 1):
        path, row = folder / f"case_{place}.png", found.rows[case]
        image = load_image(found.comp, row)
        masks = found.a.outcome(row).masks, found.b.outcome(row).masks
        lines = [table.loc[table["id"] == case].set_index("class")["dice"] for table in found.tables]
        dice = ", ".join(
            f"{name} {html.number(lines[0][name], 3)} → {html.number(lines[1][name], 3)}"
            for name in found.comp.classes
            if not isnan(lines[0][name])
        )
        words = f"{case}: {found.comp.metric.name} {change:+.4f}"
        compared_picture(
            path,
            image.array,
            load_mask(found.comp, row),
            masks,
            found.comp,
            words,
            (f"A: {found.a.run.name}", f"B: {found.b.run.name}"),
            json.loads(row.spacing),
            image.affine,
        )
        parts.append(html.figure(path, joined([element("strong", words), f" · Dice {dice}"]), f"case {case}"))
    if not parts:
        parts.append(paragraph("No case changed."))
    return section("cases", "The cases that changed most", *parts)


def _no_spacing(found: Comparison) -> bool:
    return all(set(json.loads(row.spacing)) == {1.0} for row in found.rows.values())
