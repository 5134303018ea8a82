"""Make the figures of README.md and the documentation from a finished run.

    python docs/images/make.py mlruns/runs/demo2d-unet2d/HASH
    python docs/images/make.py RUN competition.root=/where/the/data/are

Writes `overview.png`, `prediction.png`, `scores.png` and `report.png` next to this file. `report.png` is a screenshot
of the top of the report page; without Chromium or Chrome it is not written.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from rich.console import Console

from competition.cli.console import cv_table
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.inference.masks import to_masks
from competition.report.learning import rank_cases
from competition.report.results import RunResults
from competition.report.run import write_report
from competition.runs.oof import OofPredictions
from competition.runs.run import Run, load_run
from competition.training.cross_validate import CvSummary
from competition.viz.overlays import draw_case, save_figure
from competition.viz.style import GREY_COLOUR, TEXT_COLOUR, new_figure

FOLDER = Path(__file__).parent
TABLE_WIDTH = 88  # characters
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGE_SIZE = (1060, 1400)  # pixels of the browser window: width, height
STAGES = (  # title, what it contains, fill colour; one row of the diagram each
    (
        ("your folder", "images, masks or\nan RLE table,\nsample submission", "#e8f0fa"),
        ("case table", "ids, shapes, groups,\nhashes; faults are\nreported first", "#e8f0fa"),
        ("folds", "groups and identical\nimages are never\nsplit", "#e8f0fa"),
        ("training", "one network per\nfold, resumable,\ntracked in MLflow", "#fdeedd"),
    ),
    (
        ("out-of-fold\npredictions", "each case, by the\nnetwork that never\nsaw it", "#fdeedd"),
        ("score", "the host's metric,\n95 % interval, report\npage", "#e6f4e8"),
        ("ensemble and\npost-processing", "fitted and scored\non different folds", "#e6f4e8"),
        ("submission CSV", "decoded again and\nvalidated against\nthe sample", "#e6f4e8"),
    ),
)


def draw_overview(path: Path) -> None:
    """Draw the steps from the competition's folder to the CSV, in two rows of boxes."""
    figure = new_figure(10.0, 3.9)
    axes = figure.subplots()
    width, height, gap, row_step = 2.1, 1.3, 0.5, 1.8
    step = width + gap
    for row, stages in enumerate(STAGES):
        bottom = (len(STAGES) - 1 - row) * row_step
        for column, (title, text, colour) in enumerate(stages):
            left = column * step
            axes.add_patch(
                FancyBboxPatch(
                    (left, bottom), width, height, "round,pad=0,rounding_size=0.12", fc=colour, ec=GREY_COLOUR
                )
            )
            centre = left + width / 2
            upper, lower = bottom + 0.98, bottom + 0.38  # middles of the title and of the text
            axes.text(centre, upper, title, ha="center", va="center", fontsize=11, weight="bold", color=TEXT_COLOUR)
            axes.text(centre, lower, text, ha="center", va="center", fontsize=9, color=TEXT_COLOUR)
            if column:
                _draw_arrow(axes, (left - gap, bottom + height / 2), (left, bottom + height / 2))
    last, middle = (len(STAGES[0]) - 1) * step + width / 2, height + (row_step - height) / 2
    axes.plot([last, last, width / 2], [row_step, middle, middle], color=TEXT_COLOUR, linewidth=1.4)
    _draw_arrow(axes, (width / 2, middle), (width / 2, height))
    axes.set_xlim(-0.1, len(STAGES[0]) * step - gap + 0.1)
    axes.set_ylim(-0.1, row_step + height + 0.1)
    axes.set_axis_off()
    save_figure(figure, path)


def _draw_arrow(axes: object, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": TEXT_COLOUR, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.4}
    axes.annotate("", end, start, arrowprops=style)  # type: ignore[attr-defined]


def draw_prediction(run: Run, path: Path) -> None:
    """Draw the median case among those with all classes: image, truth and out-of-fold prediction."""
    comp, oof, results = run.exp.competition, OofPredictions(run), RunResults.load(run)
    present = results.rows()[results.rows()["dice"].notna()].groupby("id")["class"].nunique()
    ranking = [case for case, _ in rank_cases(results) if present[case] == present.max()]
    case = ranking[len(ranking) // 2]
    row = next(row for row in oof.cases.itertuples(index=False) if row.id == case)
    image = load_image(comp, row)
    masks = to_masks(oof.read(case), comp)
    title = f"{case}, predicted out of fold (fold {oof.fold_of[case]})"
    draw_case(path, image.array, load_mask(comp, row), masks, comp, title, json.loads(row.spacing), affine=image.affine)


def draw_scores(run: Run, path: Path) -> None:
    """Draw the table that `maskfold cv` prints for a finished run."""
    summary = CvSummary(**json.loads((run.folder / "summary.json").read_text()))
    console = Console(file=io.StringIO(), width=TABLE_WIDTH, record=True, force_terminal=False)
    console.print(cv_table(summary, run))
    lines = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    figure = Figure(figsize=(0.078 * max(map(len, lines)) + 0.2, 0.16 * len(lines) + 0.2), dpi=130)
    figure.text(
        0.5,
        0.5,
        "\n".join(lines),
        ha="center",
        va="center",
        family="DejaVu Sans Mono",
        fontsize=9,
        linespacing=1.1,  # larger values interrupt the vertical lines of the table
        multialignment="left",
        color=TEXT_COLOUR,
        parse_math=False,
    )
    save_figure(figure, path)


def draw_report(run: Run, path: Path) -> None:
    """Take a screenshot of the top of the run's report page; only print a message if no browser is installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"{path.name} is not made: install one of {', '.join(BROWSERS)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(run, Path(folder) / "report.html", print)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses a sandbox to root
        options = [
            "--headless",
            *sandbox,
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}",
            f"--screenshot={path}",
        ]
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True, timeout=300)


def main(folder: str, *overrides: str) -> None:
    """Make all figures from a run's folder."""
    run = load_run(Path(folder), overrides=overrides)
    draw_overview(FOLDER / "overview.png")
    draw_prediction(run, FOLDER / "prediction.png")
    draw_scores(run, FOLDER / "scores.png")
    draw_report(run, FOLDER / "report.png")  # not reduced: the dots of the folds would get the wrong colours
    for name in ("overview", "prediction", "scores"):
        _reduce_colours(FOLDER / f"{name}.png")


def _reduce_colours(path: Path) -> None:
    """Write a PNG again with a palette of 256 colours, a third of the size."""
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256)
    reduced.save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
