"""Page of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from competition.report import html
from competition.report.html import Html, create_figure_folder, element, join_html, paragraph, section, write_page

TRIAL_KEYS = ("number", "state", "values", "minutes", "params", "run", "own")
FIGURE_NAMES = ("history", "importance", "parallel", "slice", "pareto")  # in the order of the page


def write_study_page(folder: Path, output: Path) -> Path:
    """Write the page of a study from the finished trials and the figures in its folder.

    Args:
        folder: folder of the study, `mlruns/studies/<name>`.
        output: the page, `….html`.

    Returns:
        The page.

    Raises:
        MaskfoldError: no trial has finished yet, or the page cannot be written.
    """
    from competition.study.study import read_trials

    record = read_trials(folder)
    figures = [path for name in FIGURE_NAMES for path in sorted(folder.glob(f"{name}*.png"))]
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
    """Write a self-contained page of a study, and its figures into a folder with the page's name.

    Args:
        folder: folder of the study.
        title: title of the page.
        trials: for each trial `number`, `state`, `values` (one per objective, or None), `minutes` (or None) and
            `params`, a dictionary; `own` marks the unchanged YAML. Other keys become additional columns.
        figures: PNG files; the page lists missing files.
        output: the page, `….html`.
        objectives: names of the objectives.
        best: number of the best trial; for several objectives the trials on the Pareto front.

    Returns:
        The page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    pictures = create_figure_folder(output)
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
                element("b", html.format_score(value)),
                element("span", f"best {objectives[0]}, trial {top['number']}"),
                class_="score",
            )
        )
        first = next((trial for trial in trials if trial.get("own")), min(trials, key=lambda trial: trial["number"]))
        if first is not top and _state(first) == "complete":
            parts.append(
                paragraph(
                    f"Trial {first['number']}, the unchanged YAML, has {html.format_score(first['values'][0])}. The "
                    f"best trial differs by {value - first['values'][0]:+.4f} on the same folds; as the best of many "
                    "trials it is optimistic."
                )
            )
    elif best:
        parts.append(
            paragraph(
                f"{len(best)} trials are on the Pareto front of {' and '.join(objectives)}: no trial is better "
                "in all objectives."
            )
        )
    minutes = sum(trial["minutes"] for trial in trials if _numeric(trial.get("minutes")))
    entries = {
        "trials": str(len(trials)),
        **{state: str(count) for state, count in sorted(states.items())},
        "minutes in total": f"{minutes:.1f}",
    }
    return join_html([*parts, html.definition_list(entries)])


def _trials(trials: list[dict[str, Any]], objectives: Sequence[str], best: Sequence[int]) -> Html:
    if not trials:
        return section("trials", "Trials", paragraph("No trial has started."))
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("params") or {}))
    extra_keys = [key for key in dict.fromkeys(key for trial in trials for key in trial) if key not in TRIAL_KEYS]
    first, rows, bold_rows = 3 + len(objectives), [], []
    for row, trial in enumerate(sorted(trials, key=lambda trial: trial["number"])):
        params, values = trial.get("params") or {}, trial.get("values") or [None] * len(objectives)
        rows.append(
            [
                str(trial["number"]),
                _state(trial),
                *(f"{value:.4f}" if _numeric(value) else "" for value in values),
                f"{trial['minutes']:.1f}" if _numeric(trial.get("minutes")) else "",
                *(_cell(params.get(key)) for key in keys),
                *(_cell(trial.get(key)) for key in extra_keys),
            ]
        )
        bold_rows += [row] if trial["number"] in best else []
    header = [
        "trial",
        "state",
        *objectives,
        "minutes in total" if "minutes" in objectives else "minutes",
        *keys,
        *extra_keys,
    ]
    text_params = [
        column
        for column, key in enumerate(keys, first)
        if any(not _numeric((trial.get("params") or {}).get(key)) for trial in trials)
    ]
    text_columns = (1, *text_params, *range(first + len(keys), len(header)))
    note = "A pruned trial was stopped early, so its score is not comparable."
    if bold_rows:
        note += " The best trial is in bold." if len(objectives) == 1 else " The Pareto front is in bold."
    return section(
        "trials", "Trials", html.html_table(header, rows, text_columns, bold_rows), paragraph(note, note=True)
    )


def _figure(path: Path, pictures: Path) -> Html:
    name = path.stem.replace("_", " ")
    try:
        content = path.read_bytes()
    except OSError:
        return paragraph(f"The figure {path.name} is missing.", note=True)
    copy = pictures / path.name
    if copy.resolve() != path.resolve():
        copy.write_bytes(content)
    return html.embedded_figure(copy, name, name, scale=1.0)


def _state(trial: dict[str, Any]) -> str:
    """Return the state in lower case, for Optuna's enum or a string."""
    return str(getattr(trial.get("state"), "name", trial.get("state"))).lower()


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
