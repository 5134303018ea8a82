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

KNOWN = ("number", "state", "score", "minutes", "params")


def write_study_report(folder: Path, title: str, trials: list[dict[str, Any]], figures: list[Path],
                       output: Path) -> Path:
    """Writes one self-contained page of a study, and its figures in a folder of the same name beside it.

    Args:
        folder: of the study; figures with relative paths are below it.
        title: of the page.
        trials: of each trial `number`, `state`, `score` (a number, a list of several objectives' values, or None),
            `minutes` (or None) and `params`, a dictionary. Other keys become columns of their own.
        figures: PNG files. One that is missing is named on the page.
        output: the page, `….html`.

    Returns:
        The page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    pictures = place_pictures(output)
    sections = {"trials": ("Trials", _trials(trials))}
    if figures:
        sections["figures"] = ("Figures", section("figures", "Figures", *(
            _figure(path if path.is_absolute() else folder / path, pictures) for path in figures)))
    return write_page(title, _head(folder, title, trials), sections, output)


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The complete trial with the highest score, the first of equals; None where there are several objectives."""
    done = [trial for trial in trials if _complete(trial) and _numeric(trial.get("score"))]
    return max(done, key=lambda trial: trial["score"], default=None)


def _head(folder: Path, title: str, trials: list[dict[str, Any]]) -> Html:
    states = Counter(_state(trial) for trial in trials)
    parts = [element("h1", title), paragraph(f"Study in {folder}", note=True)]
    best = best_trial(trials)
    if best is not None:
        parts.append(element("div", element("b", html.number(best["score"])),
                             element("span", f"the best score, of trial {best['number']}"), class_="score"))
        first = min(trials, key=lambda trial: trial["number"])
        if first is not best and _complete(first) and _numeric(first.get("score")):
            parts.append(paragraph(
                f"Trial {first['number']}, the first, scored {html.number(first['score'])}: the best gains "
                f"{best['score'] - first['score']:+.4f} on the same folds, which flatters the best of many."))
    minutes = sum(trial["minutes"] for trial in trials if _numeric(trial.get("minutes")))
    known = {"trials": str(len(trials)), **{state: str(count) for state, count in sorted(states.items())},
             "minutes, all together": f"{minutes:.1f}"}
    return joined([*parts, html.facts(known)])


def _trials(trials: list[dict[str, Any]]) -> Html:
    if not trials:
        return section("trials", "Trials", paragraph("No trial has begun."))
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("params") or {}))
    others = [key for key in dict.fromkeys(key for trial in trials for key in trial) if key not in KNOWN]
    best, rows, strong = best_trial(trials), [], []
    for place, trial in enumerate(sorted(trials, key=lambda trial: trial["number"])):
        params = trial.get("params") or {}
        rows.append([str(trial["number"]), _state(trial), _score(trial.get("score")),
                     f"{trial['minutes']:.1f}" if _numeric(trial.get("minutes")) else "",
                     *(_shown(params.get(key)) for key in keys), *(_shown(trial.get(key)) for key in others)])
        strong += [place] if trial is best else []
    header = ["trial", "state", "score", "minutes", *keys, *others]
    text = [column for column, key in enumerate(keys, 4)
            if any(not _numeric((trial.get("params") or {}).get(key)) for trial in trials)]
    words = (1, *text, *range(4 + len(keys), len(header)))
    note = "A pruned trial was stopped early, so its score is not comparable." + \
        (" The line in bold is the best." if strong else "")
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


def _complete(trial: dict[str, Any]) -> bool:
    return _state(trial) == "complete"


def _state(trial: dict[str, Any]) -> str:
    """In lower case, whether Optuna's own or a string."""
    return str(getattr(trial.get("state"), "name", trial.get("state"))).lower()


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


def _score(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_score(one) for one in value)
    return f"{value:.4f}" if _numeric(value) else ""


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
