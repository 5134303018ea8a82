"""Write the HTML page of a study: its trials, the best trial, and Optuna's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from markupsafe import Markup

from competition.io import atomic_write
from competition.report.html import Table, create_figure_folder, format_score, output_lock, render, write_page

TEMPLATE = "study.html.j2"
TRIAL_KEYS = ("number", "state", "values", "minutes", "params", "run", "own")
FIGURE_NAMES = ("history", "importance", "parallel", "slice", "pareto")  # figures in the order of the page


def write_study_page(folder: Path, output: Path) -> Path:
    """Write the page of a study from the trials and the figures in its folder.

    Args:
        folder: folder of the study, `mlruns/studies/<name>`.
        output: path of the page, which ends in `.html`.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: no trial has ended yet; the page cannot be written; or the page would be in the study's folder
            and another process writes there.
    """
    from competition.study.study import read_trials

    record = read_trials(folder)
    with output_lock(folder, output):
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
    """Write the page of a study, a single HTML file that contains its figures, from given trials.

    The figures are also copied into a folder with the name of the page.

    Args:
        folder: folder of the study.
        title: title of the page.
        trials: one dictionary for each trial, a result of `competition.study.study.write_trials`. Keys that are not in
            `TRIAL_KEYS` become additional columns.
        figures: PNG files; if a file is missing, the page says so.
        output: path of the page, which ends in `.html`.
        objectives: names of the objectives.
        best: number of the best trial; with several objectives, numbers of the trials on the Pareto front.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    pictures = create_figure_folder(output)
    sections = {"trials": ("Trials", _trials(trials, objectives, best))}
    if figures:
        copies = [_copy_figure(path, pictures) for path in figures]
        sections["figures"] = ("Figures", render(TEMPLATE, "figures", figures=copies))
    return write_page(title, _head(folder, title, trials, objectives, best), sections, output)


def _head(
    folder: Path, title: str, trials: list[dict[str, Any]], objectives: Sequence[str], best: Sequence[int]
) -> Markup:
    states = Counter(_state(trial) for trial in trials)
    top = next((trial for trial in trials if trial["number"] in best), None)
    single, unchanged = None, None
    if top is not None and len(objectives) == 1:
        value = top["values"][0]
        single = {"score": format_score(value), "number": top["number"]}
        first = next((trial for trial in trials if trial.get("own")), min(trials, key=lambda trial: trial["number"]))
        if first is not top and _state(first) == "complete":
            first_value = first["values"][0]
            unchanged = {
                "number": first["number"],
                "score": format_score(first_value),
                "difference": f"{value - first_value:+.4f}",
            }
    minutes = sum(trial["minutes"] for trial in trials if _numeric(trial.get("minutes")))
    facts = {
        "trials": str(len(trials)),
        **{state: str(count) for state, count in sorted(states.items())},
        "minutes in total": f"{minutes:.1f}",
    }
    return render(
        TEMPLATE,
        "head",
        title=title,
        folder=folder,
        objectives=objectives,
        best=single,
        unchanged=unchanged,
        front=len(best),
        facts=facts,
    )


def _trials(trials: list[dict[str, Any]], objectives: Sequence[str], best: Sequence[int]) -> Markup:
    if not trials:
        return render(TEMPLATE, "trials", table=None, single=True)
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
    table = Table(header, rows, text_columns, bold_rows)
    return render(TEMPLATE, "trials", table=table, single=len(objectives) == 1)


def _copy_figure(path: Path, pictures: Path) -> dict[str, Any]:
    """Copy a figure into the page's folder, and return a dictionary with its copy, name and file for the template.

    If the file of the figure is missing, `picture` of the dictionary is None.

    Args:
        path: path of the figure.
        pictures: the page's folder.
    """
    name, copy = path.stem.replace("_", " "), pictures / path.name
    try:
        content = path.read_bytes()
    except OSError:
        return {"picture": None, "name": name, "file": path.name}
    if copy.resolve() != path.resolve():
        atomic_write(copy, lambda file: file.write(content))
    return {"picture": copy, "name": name, "file": path.name}


def _state(trial: dict[str, Any]) -> str:
    """Return the state of a trial in lower case, e.g. `complete`. `trial["state"]` is text or Optuna's enum value."""
    return str(getattr(trial.get("state"), "name", trial.get("state"))).lower()


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
