"""The score, and the scores of each fold and class, with their intervals."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.postprocess import Step
from competition.data.records import parsed
from competition.report import markup as html
from competition.report.canvas import GREY, INK, MOST_PANELS, canvas, dress, fold_colour, ink
from competition.report.markup import Html, element, paragraph, section
from competition.report.results import Estimate, Results
from competition.scoring.pictures import save_figure
from competition.scoring.summary import Gain
from competition.submission.remembered import FILE, remembered
from competition.submission.tune import Tuned
from competition.training.seeds import seed_lines
from competition.training.soup_choice import soup_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.training.runs import CvRun


def headline(results: Results) -> Html:
    """The score in large letters; or why there is none."""
    if results.table is None:
        return html.joined(
            [
                paragraph(
                    "This run was fitted on all cases: nothing was predicted out of fold, so it has no score of its own."
                    if results.members
                    else "No fold is finished: there is no score yet."
                )
            ]
        )
    score = results.score()
    ends = html.interval(score.low, score.high)
    words = f"{results.metric.name}, out of fold · "
    words += f"95 % interval {ends}" if ends else "too few cases for an interval"
    return element("div", element("b", html.number(score.value)), element("span", words), class_="score")


def scores_section(results: Results, folder: Path) -> Html:
    """Tables by fold and by class, a figure of both, and what post-processing is worth."""
    parts = [html.joined([_by_fold(results)])]
    if results.table is not None:
        picture = folder / "scores.png"
        draw_scores(results, picture)
        parts += [
            html.figure(
                picture,
                "Each fold's score and Dice per class with its 95 % bootstrap interval over cases; "
                "the last row is all cases together.",
                "Scores per fold and class",
            ),
            _by_class(results),
        ]
        if len(results.folds) > 1:
            parts.append(_dice_by_fold(results))
    parts += [
        paragraph(line)
        for line in (*seed_lines(results.summary.get("seeds")), *soup_lines(results.summary.get("soup")))
    ]
    parts += postprocessing(results.run)
    return section("scores", "Scores", *parts)


def _by_fold(results: Results) -> Html:
    rows, strong = [], []
    names = {-1: "all cases (fit)"}
    for fold in sorted({result.fold for result in results.members}, key=lambda fold: (fold < 0, fold)):
        members = [result for result in results.members if result.fold == fold]
        score = Estimate(nan) if fold < 0 else results.score(fold)
        rows.append(
            [
                names.get(fold, str(fold)),
                "" if fold < 0 else str(results.rows(fold)["id"].nunique()),
                "" if fold < 0 else html.number(score.value),
                html.interval(score.low, score.high),
                ", ".join(str(result.epochs) for result in members),
                f"{sum(result.minutes for result in members):.1f}",
                "; ".join(dict.fromkeys(result.stopped for result in members)),
            ]
        )
    if results.table is not None:
        score = results.score()
        strong = [len(rows)]
        rows.append(
            [
                "all",
                str(results.table["id"].nunique()),
                html.number(score.value),
                html.interval(score.low, score.high),
                "",
                f"{sum(result.minutes for result in results.members):.1f}",
                "",
            ]
        )
    header = ["fold", "cases", _metric(results), "95 % interval", "epochs", "minutes", "ended"]
    return html.table(header, rows, words=(0, 6), strong=strong)


def _by_class(results: Results) -> Html:
    names = results.run.exp.competition.classes
    scores, dice = [results.score(cls=name) for name in names], [results.dice(name) for name in names]
    same = str(scores) == str(dice)  # where the metric is this very Dice, one column says it; nan is nan here
    rows = []
    for name, score, overlap in zip(names, scores, dice, strict=True):
        values = [html.with_interval(*overlap)] if same else [html.with_interval(*score), html.with_interval(*overlap)]
        rows.append([name, *values, *map(str, results.presence(name))])
    header = [
        "class",
        *([] if same else [_metric(results)]),
        "Dice",
        "cases with it",
        "missed",
        "cases without",
        "false alarms",
    ]
    return html.joined(
        [
            element("h3", "By class"),
            html.table(header, rows),
            paragraph(
                "Dice is the mean over the cases that have the class in truth or prediction. Missed: the truth has "
                "the class, and no pixel of it was found. False alarm: the truth has it not, and something was "
                "predicted.",
                note=True,
            ),
        ]
    )


def _dice_by_fold(results: Results) -> Html:
    rows = [
        [
            name,
            *(html.with_interval(*results.dice(name, fold)) for fold in results.folds),
            html.with_interval(*results.dice(name)),
        ]
        for name in results.run.exp.competition.classes
    ]
    return html.joined(
        [
            element("h3", "Dice by class and fold"),
            html.table(["class", *(f"fold {fold}" for fold in results.folds), "all"], rows),
        ]
    )


def _metric(results: Results) -> str:
    """How columns and axes call the competition's metric."""
    return f"score ({results.metric.name})"


def draw_scores(results: Results, path: Path) -> None:
    """Draws the metric by fold, and the Dice of each class by fold, as dots with intervals."""
    folds, classes = results.folds, results.run.exp.competition.classes[:MOST_PANELS]
    names = [*(f"fold {fold}" for fold in folds), "all"]
    keys = [*folds, None]
    figure = canvas(11.0, 1.1 + 0.26 * max(len(names), 3) + 0.10 * len(names) * min(len(classes), 6))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, fold in enumerate(keys):
        _dot(left, results.score(fold), row, INK if fold is None else fold_colour(fold))
    for index, name in enumerate(classes):
        shift = 0.0 if len(classes) == 1 else 0.56 * (index / (len(classes) - 1) - 0.5)
        for row, fold in enumerate(keys):
            _dot(right, results.dice(name, fold), row + shift, ink(index), f" {name}" if row == 0 else "")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    dress(left, _metric(results))
    dress(right, "Dice per class" if len(classes) > 1 else f"Dice {classes[0]}")
    for axes in (left, right):
        axes.axhline(len(folds) - 0.5, color=GREY, linewidth=0.7)
        axes.grid(axis="y", visible=False)
        for row in range(0, len(keys), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=GREY, alpha=0.10, linewidth=0)
    if len(classes) > 1:
        from matplotlib.patches import Patch

        drawn = figure.legend(
            handles=[Patch(color=ink(index), label=f" {name}") for index, name in enumerate(classes)],
            loc="outside lower right",
            ncols=min(4, len(classes)),
            fontsize=9,
            frameon=False,
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)
    save_figure(figure, path)


def _dot(axes: Axes, score: Estimate, row: float, colour: tuple[float, float, float], label: str = "") -> None:
    if isnan(score.value):
        return
    if not isnan(score.low):
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.8, alpha=0.55, solid_capstyle="round")
    axes.plot([score.value], [row], "o", color=colour, markersize=5.5)


def postprocessing(run: CvRun) -> list[Html]:
    """What a search for post-processing steps found, in its own words; nothing where there was none."""
    if not (run.folder / FILE).exists():
        return []
    tuned, note = remembered(run), ""
    if tuned is None:
        tuned = _older(run)
        note = "This search was for an earlier state of the run: its folds or its settings have changed since."
    if tuned is None:
        return [element("h3", "Post-processing"), paragraph(f"{FILE} cannot be read.", note=True)]
    return [
        element("h3", "Post-processing"),
        element("pre", "\n".join(tuned.lines())),
        *([paragraph(note, note=True)] if note else []),
        paragraph(
            "Nested: each fold's cases with the steps found on the other folds. All other numbers and pictures "
            "of this page are before post-processing.",
            note=True,
        ),
    ]


def _older(run: CvRun) -> Tuned | None:
    """What is in the file, whatever it was found for."""
    import pandas as pd

    try:
        plain = parsed((run.folder / FILE).read_bytes())
        found = {name: tuple(Step.model_validate(step) for step in steps) for name, steps in plain["found"].items()}
        return Tuned(
            run.exp.postprocess,
            found,
            plain["before"],
            plain["after"],
            plain["nested"],
            Gain(**plain["gain"]),
            plain["kept"],
            pd.DataFrame(),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
