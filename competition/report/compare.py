"""Write the HTML page that compares two runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
from markupsafe import Markup

from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask
from competition.ensembling.compare import Comparison
from competition.metrics.bootstrap import PairedDifference
from competition.report.html import Table, format_score, render, staged_figures, write_page
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import Run
from competition.tables import write_table
from competition.viz.overlays import draw_comparison, save_figure
from competition.viz.preview import load_unchanged_picture
from competition.viz.style import (
    GREY_COLOUR,
    add_legend,
    dark_class_colour,
    panel_grid,
    select_drawn_classes,
    style_axes,
)

TEMPLATE = "compare.html.j2"
MEASURE_DIGITS = {"hd95": 3}


def write_comparison(comparison: Comparison, folder: Path, count: int = 10, context: Context = Context()) -> Path:
    """Write an HTML page that compares two runs: `compare.html`, with figures in `compare/` and the table `cases.csv`.

    Args:
        comparison: the result of `competition.ensembling.compare.compare_two_runs`.
        folder: the output folder.
        count: number of cases to draw. The cases whose scores differ most between the two runs are drawn.
        context: context whose log receives progress messages.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    page = folder / "compare.html"
    check_comparison_output(folder, [comparison.a.run, comparison.b.run])
    with staged_figures(page, r"case_\d+\.png") as pictures:
        draw_differences(comparison, pictures / "differences.png")
        if count:
            context.say("drawing the cases whose scores differ most")
        sections = {
            "differences": ("Differences", _differences(comparison, pictures)),
            "cases": ("Cases", _cases(comparison, pictures, count)),
        }
        write_table(comparison.table(), folder / "cases.csv")
        names = f"{comparison.a.name} and {comparison.b.name}"
        head = render(TEMPLATE, "head", competition=comparison.comp.name, notes=comparison.notes)
        return write_page(names, head, sections, page)


def check_comparison_output(folder: Path, runs: Sequence[Run]) -> None:
    """Check that the files of a comparison overwrite neither files of a run nor data.

    Args:
        folder: the output folder.
        runs: the runs that are compared.

    Raises:
        MaskfoldError: a file would be overwritten (status 2).
    """
    names = ("compare", "compare.html", "cases.csv")
    check_output([folder, *(folder / name for name in names)], competitions_of(runs))


def measure_label(difference: PairedDifference, comparison: Comparison) -> str:
    """Return the name and the unit of the measure that a difference compares, e.g. `HD95, mm`."""
    metric = comparison.comp.metric
    unit = "mm" if comparison.comp.dimensions == 3 else "pixels" if _has_no_spacing(comparison) else "mm"
    return {
        "score": f"{metric.label} ({metric.average})",
        "dice": "Dice",
        "surface_dice": f"surface Dice, {metric.tolerance_mm:g} {unit}",
        "hd95": f"HD95, {unit}",
    }[difference.measure]


def difference_cells(difference: PairedDifference, comparison: Comparison) -> tuple[str, ...]:
    """Return the cells of one difference for a table with the columns `DIFFERENCE_HEADER`."""
    digits = MEASURE_DIGITS.get(difference.measure, 4)
    low, high, p = difference.low, difference.high, difference.p
    interval = "" if isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"
    p_value = "" if isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
    change = "" if isnan(difference.value) else f"{difference.value:+.{digits}f}"
    return (
        measure_label(difference, comparison),
        difference.cls or "all",
        format_score(difference.a, digits),
        format_score(difference.b, digits),
        change,
        interval,
        p_value,
        f"{difference.better} / {difference.worse}",
    )


DIFFERENCE_HEADER = ("measure", "class", "A", "B", "B − A", "95 %", "p", "better / worse")


def draw_differences(comparison: Comparison, path: Path) -> None:
    """Draw two panels for each class: each case's Dice in run B against its Dice in run A, and the same for HD95."""
    comp = comparison.comp
    sizes = [float((comparison.tables[0]["class"] == name).sum()) for name in comp.classes]
    shown = select_drawn_classes(sizes)
    figure, axes = panel_grid(2 * len(shown), height=3.4, columns=4 if len(shown) > 1 else 2)
    for row, index in enumerate(shown):
        name = comp.classes[index]
        for column, (measure, label) in enumerate((("dice", "Dice"), ("hd95", "HD95"))):
            panel = axes[2 * row + column]
            a, b = (table.loc[table["class"] == name, measure].to_numpy(np.float64) for table in comparison.tables)
            style_axes(panel, f"{label}: {name}", xlabel="A", ylabel="B")
            panel.scatter(a, b, s=14, alpha=0.5, color=dark_class_colour(index), linewidths=0)
            both = np.concatenate([a, b])
            both = both[np.isfinite(both)]
            if both.size:
                pad = 0.03 * float(np.ptp(both)) or 0.01
                ends = [float(both.min()) - pad, float(both.max()) + pad]
                panel.plot(
                    ends, ends, color=GREY_COLOUR, linewidth=0.9, label="equal" if not row and not column else None
                )
                panel.set(xlim=ends, ylim=ends, aspect="equal")
    add_legend(figure, below=True)
    save_figure(figure, path)


def _differences(comparison: Comparison, folder: Path) -> Markup:
    rows = [difference_cells(difference, comparison) for difference in comparison.differences]
    bold_rows = [i for i, line in enumerate(comparison.differences) if line.measure == "score" and not line.cls]
    return render(
        TEMPLATE,
        "differences",
        count=len(comparison.rows),
        table=Table(DIFFERENCE_HEADER, rows, text_columns=(0, 1), bold_rows=bold_rows),
        picture=folder / "differences.png",
    )


def _cases(comparison: Comparison, folder: Path, count: int) -> Markup:
    cases = []
    for number, (case, change) in enumerate(comparison.most_changed(count), 1):
        path, row = folder / f"case_{number}.png", comparison.rows[case]
        image = load_unchanged_picture(comparison.comp, row)
        masks = comparison.a.predict(row).masks, comparison.b.predict(row).masks
        class_dice = [table.loc[table["id"] == case].set_index("class")["dice"] for table in comparison.tables]
        dice = ", ".join(
            f"{name} {format_score(class_dice[0][name], 3)} → {format_score(class_dice[1][name], 3)}"
            for name in comparison.comp.classes
            if not isnan(class_dice[0][name])
        )
        title = f"{case}: {comparison.comp.metric.name} {change:+.4f}"
        draw_comparison(
            path,
            image.array,
            load_unchanged_mask(comparison.comp, row),
            masks,
            comparison.comp,
            title,
            (f"A: {comparison.a.run.name}", f"B: {comparison.b.run.name}"),
            json.loads(row.spacing),
            image.affine,
        )
        cases.append({"picture": path, "alt": f"case {case}", "title": title, "text": f" · Dice {dice}"})
    return render(TEMPLATE, "cases", cases=cases)


def _has_no_spacing(comparison: Comparison) -> bool:
    return all(set(json.loads(row.spacing)) == {1.0} for row in comparison.rows.values())
