"""Optuna's figures of a study as PNG."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from competition.study.search import Search

logger = logging.getLogger(__name__)


def draw(search: Search) -> list[Path]:
    """History, importance, parallel coordinates and slices; with several objectives the Pareto front too.

    Returns:
        The files, in the study's folder. A figure that Optuna cannot draw yet, as it needs more trials, is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as figures

    several = len(search.study.objectives) > 1
    drawn: list[Path] = []
    for place, objective in enumerate(search.study.objectives):
        how: dict[str, Any] = {"target_name": objective}
        if several:
            how["target"] = lambda trial, place=place: trial.values[place]
        end = f"_{objective}" if several else ""
        for name, figure in (
            ("history", figures.plot_optimization_history),
            ("importance", figures.plot_param_importances),
            ("parallel", figures.plot_parallel_coordinate),
            ("slice", figures.plot_slice),
        ):
            _save(search, f"{name}{end}", lambda figure=figure, how=how: figure(search.optuna, **how), drawn, plt)
    if several and len(search.study.objectives) <= 3:
        _save(
            search,
            "pareto",
            lambda: figures.plot_pareto_front(search.optuna, target_names=search.study.objectives),
            drawn,
            plt,
        )
    return drawn


def _save(search: Search, name: str, make: Any, drawn: list[Path], plt: Any) -> None:
    path = search.folder / f"{name}.png"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = make()
            one = axes.flat[0] if hasattr(axes, "flat") else axes
            figure = one.figure
            width = max(8.0, 3.2 * len(search.study.space)) if name.startswith(("slice", "parallel")) else 8.0
            figure.set_size_inches(width, 5.0)
            if name.startswith("history"):
                one.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # of trials
            complete = sum(trial.state.name == "COMPLETE" for trial in search.finished)
            figure.text(0.99, -0.02, f"{complete} complete trials", ha="right", va="top", fontsize="small")
            figure.savefig(path, dpi=110, bbox_inches="tight")
        drawn.append(path)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        logger.info("no figure %s: %s", name, error)
    finally:
        plt.close("all")
