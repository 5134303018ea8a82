"""The page of a study, from plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from competition.report import markup as html
from competition.report.markup import Html, element, joined, paragraph, section
from competition.report.page import place_pictures, write_page

KNOWN = ("number", "state", "values", "minutes", "params", "run", "own")
FIGURES = ("history", "importance", "parallel", "slice", "pareto")  # in the order of the page


def write_study_page(folder: Path, output: Path) -> Path:
    """Writes the page of a study's folder: of the trials that have ended, and of the figures that lie there.

    Args:
        folder: of the study, `mlruns/studies/<name>`.
        output: the page, `….html`.

    Returns:
        The page.

    Raises:
        MaskfoldError: no trial has ended yet, or the page cannot be written.
    """
    from competition.study.record import read_trials

    record = read_trials(folder)
    figures = [path for name in FIGURES for path in sorted(folder.glob(f"{name}*.png"))]
    return write_study_report(
        folder,
        f"Study {folder.resolve().name}",
        record["trials"],
        figures,
        output,
        record["objectives"],
        record["best"],
    )


def write_study_report(
    folder: Path,
    title: str,
    trials: list[dict[str, Any]],
    figures: Sequence[Path],
    output: Path,
    objectives: Sequence[str] = ("score",),
    best: Sequence[int] = (),
) -> Path:
    """Writes one self-contained page of a study, and its figures in a folder of the same name beside it.

    Args:
        folder: of the study.
        title: of the page.
        trials: of each trial `number`, `state`, `values` (one of each objective, or None), `minutes` (or None) and
            `params`, a dictionary; `own` marks the YAML as it is. Other keys become columns of their own.
        figures: PNG files. One that is missing is named on the page.
        output: the page, `….html`.
        objectives: their names.
        best: the number of the best trial; with several objectives, of those on the Pareto front.

    Returns:
        The page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    pictures = place_pictures(output)
    sections = {"trials": ("Trials", _trials(trials, objectives, best))}
    if figures:
        sections["figures"] = ("Figures", section("figures", "Figures", *(_figure(path, pictures) for path in figures)))
    return write_page(title, _head(folder, title, trials, objectives, best), sections, output)


def _head(
    folder: Path, title: str, trials: list[dict[str, Any]], objectives: Sequence[str], best: Sequence[int]
) -> Html:
    states = Counter(_state(trial) for trial in trials)
    parts = [element("h1", title), paragraph(f"Study in {folder}", note=True)]
    top = next((trial for trial in trials if trial["number"] in best), None)
    if top is not None and len(objectives) == 1:
        value = top["values"][0]
        parts.append(
            element(
                "div",
                element("b", html.number(value)),
                element("span", f"the best {objectives[0]}, of trial {top['number']}"),
                class_="score",
            )
        )
        first = next((trial for trial in trials if trial.get("own")), min(trials, key=lambda trial: trial["number"]))
        if first is not top and _state(first) == "complete":
            parts.append(
                paragraph(
                    f"Trial {first['number']}, the YAML as it is, has {html.number(first['values'][0])}: the best differs by "
                    f"{value - first['values'][0]:+.4f} on the same folds, which flatters the best of many."
                )
            )
    elif best:
        parts.append(
            paragraph(
                f"{len(best)} trials are on the Pareto front of {' and '.join(objectives)}: none is better "
                "in all of them at once."
            )
        )
    minutes = sum(trial["minutes"] for trial in trials if _numeric(trial.get("minutes")))
    known = {
        "trials": str(len(trials)),
        **{state: str(count) for state, count in sorted(states.items())},
        "minutes, all together": f"{minutes:.1f}",
    }
    return joined([*parts, html.facts(known)])


def _trials(trials: list[dict[str, Any]], objectives: Sequence[str], best: Sequence[int]) -> Html:
    if not trials:
        return section("trials", "Trials", paragraph("No trial has begun."))
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("params") or {}))
    others = [key for key in dict.fromkeys(key for trial in trials for key in trial) if key not in KNOWN]
    first, rows, strong = 3 + len(objectives), [], []
    for place, trial in enumerate(sorted(trials, key=lambda trial: trial["number"])):
        params, values = trial.get("params") or {}, trial.get("values") or [None] * len(objectives)
        rows.append(
            [
                str(trial["number"]),
                _state(trial),
                *(f"{value:.4f}" if _numeric(value) else "" for value in values),
                f"{trial['minutes']:.1f}" if _numeric(trial.get("minutes")) else "",
                *(_shown(params.get(key)) for key in keys),
                *(_shown(trial.get(key)) for key in others),
            ]
        )
        strong += [place] if trial["number"] in best else []
    header = [
        "trial",
        "state",
        *objectives,
        "minutes, all in all" if "minutes" in objectives else "minutes",
        *keys,
        *others,
    ]
    text = [
        column
        for column, key in enumerate(keys, first)
        if any(not _numeric((trial.get("params") or {}).get(key)) for trial in trials)
    ]
    words = (1, *text, *range(first + len(keys), len(header)))
    note = "A pruned trial was stopped early, so its score is not comparable."
    if strong:
        note += " The line in bold is the best." if len(objectives) == 1 else " The lines in bold are the Pareto front."
    return section("trials", "Trials", html.table(header, rows, words=words, strong=strong), paragraph(note, note=True))


def _figure(path: Path, pictures: Path) -> Html:
    name = path.stem.replace("_", " ")
    try:
        content = path.read_bytes()
    except OSError:
        return paragraph(f"The figure {path.name} is missing.", note=True)
    copy = pictures / path.name
    if copy.resolve() != path.resolve():
        copy.write_bytes(content)
    return html.figure(copy, name, name, scale=1.0)


def _state(trial: dict[str, Any]) -> str:
    """In lower case, whether Optuna's own or a string."""
    return str(getattr(trial.get("state"), "name", trial.get("state"))).lower()


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
