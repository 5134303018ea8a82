"""The page of a cross-validation run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

from competition.report.calibration import calibration_section
from competition.report.cases import cases_section
from competition.report.learning import learning_section
from competition.report.markup import Html, element, facts, joined, paragraph
from competition.report.page import place_pictures, write_page
from competition.report.previous import ended, experiment_section
from competition.report.results import Results
from competition.report.scores import headline, scores_section
from competition.report.sizes import sizes_section
from competition.training.oof import OutOfFold
from competition.training.runs import CvRun


def write_report(run: CvRun, output: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Writes one self-contained page of a run, and its pictures as PNG in a folder of the same name beside it.

    Args:
        run: with finished folds or without; see `competition.training.find.find_run`.
        output: the page, `….html`.
        say: takes lines about the progress.

    Returns:
        The page.

    Raises:
        MaskfoldError: an image or a prediction is missing or damaged, or the page cannot be written.
    """
    folder = place_pictures(output)
    results, oof = Results.of(run), OutOfFold(run)
    sections = {
        "scores": ("Scores", scores_section(results, folder)),
        "learning": ("Learning curves", learning_section(run, folder)),
    }
    if results.table is not None:
        say("pictures of the best, median and worst cases")
        sections["cases"] = ("Cases", cases_section(results, oof, folder))
        sections["calibration"] = ("Calibration", calibration_section(results, oof, folder, say))
        sections["sizes"] = ("Size", sizes_section(results, oof, folder, say))
    sections["experiment"] = ("Experiment", experiment_section(results))
    return write_page(f"{run.name} · {run.folder.name}", _head(results), sections, output)


def _head(results: Results) -> Html:
    """Title, score and the facts of the run."""
    run, members = results.run, results.members
    comp, exp = run.exp.competition, run.exp
    end = ended(run.folder)
    when = f" · finished {datetime.fromtimestamp(end, UTC):%d %B %Y, %H:%M} UTC" if isfinite(end) else ""
    parts = [
        element("h1", run.name),
        paragraph(f"Cross-validation run {run.folder.name}{when}", note=True),
        headline(results),
    ]
    missing = _missing(results)
    if missing:
        parts.append(element("p", missing, class_="warn"))
    predicted = 0 if results.table is None else results.table["id"].nunique()
    known = {
        "competition": comp.name,
        "metric": f"{comp.metric.name}, average {comp.metric.average}",
        "cases": f"{len(run.cases)} ({comp.dimensions}D), {predicted} out of fold",
        "classes": f"{len(comp.classes)} {comp.labels}" + (", counted by object" if comp.instances else ""),
        "network": exp.model.target.rpartition(".")[2],
        "seeds": ", ".join(map(str, exp.seeds)),
        "trained": f"{sum(one.minutes for one in members):.0f} minutes, all folds together",
        "on": "; ".join(dict.fromkeys(f"{one.device}, {one.precision}, torch {one.torch}" for one in members)) or "–",
        "peak memory": f"{max((one.peak_gib for one in members), default=0.0):.1f} GiB",
    }
    return joined([*parts, facts(known)])


def _missing(results: Results) -> str:
    """Which folds are not part of the numbers; empty where all are."""
    if results.table is None:
        return ""
    numbers, seeds = results.run.numbers(), len(results.run.exp.seeds)
    done = Counter(one.fold for one in results.members)
    missing = [fold for fold in numbers if not done[fold]]
    partly = [fold for fold in numbers if 0 < done[fold] < seeds]
    words = []
    if missing:
        words.append(
            f"{len(missing)} of {len(numbers)} folds have no result ({', '.join(map(str, missing))}): all "
            "numbers are of the others."
        )
    if partly:
        words.append(f"Of the folds {', '.join(map(str, partly))} some seeds have no result.")
    return " ".join(words)
