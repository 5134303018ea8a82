"""Prepare the scores of a run for MLflow: metrics, tags and a description in Markdown.

A run can have several score estimates, e.g. with and without tuned post-processing. The final score is the estimate for
the masks that `maskfold submit` would write. MLflow shows it as the metrics `counted_score`, `counted_lower` and
`counted_upper`, and the tag `counting_score` names the estimate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.records import read_metrics_lines
from competition.runs.run import load_run
from competition.runs.summary import TUNING_FILE, RunScores, ScoreEstimate, run_scores, stored_scores
from competition.text import format_count
from competition.tracking.datasets import validated_folds
from competition.tracking.store import (
    MAX_TAG_LENGTH,
    list_member_folders,
    matching_files,
    result_metrics,
    result_tags,
    truncate_text,
)

if TYPE_CHECKING:
    from competition.config.postprocess import PostprocessConfig

COUNTING_TAG = "counting_score"  # tag whose value is the name of the metric with the final score, e.g. nested_score
SCORE_METRICS = {
    "raw": "cv_score",
    "processed": "processed_score",
    "nested": "nested_score",
    "soup": "soup_weights_score",
    "seeds": "all_seeds_score",
}
TITLES = {
    "cv": "without post-processing",
    "processed": "with the post-processing of the YAML",
    "nested": "with post-processing tuned on the other folds",
    "soup_weights": "of averaged checkpoints, on cases that were not used to select them",
    "last_weights": "of the last weights",
    "all_seeds": "of the mean prediction of all seeds",
    "one_seed": "of one seed alone, averaged over the seeds",
}
CURVE_METRICS = ("train/loss", "val/score", "val/dice")  # and the metric `val/dice/<class>` of each class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPage:
    """Hold the metrics, tags and curves that MLflow shows for a run.

    Attributes:
        metrics: value of each final metric.
        tags: the tags; one of them is the description.
        curves: for each metric, its mean over the folds, as (epoch, mean) pairs. Empty until all folds are finished,
            because each further fold would change the means.
    """

    metrics: dict[str, float]
    tags: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]


def read_run_page(folder: Path, summary: Mapping[str, Any], postprocess: PostprocessConfig | None) -> RunPage:
    """Return the metrics, tags and curves that MLflow shows for a run.

    Args:
        folder: the run's folder.
        summary: content of the run's `summary.json`.
        postprocess: the post-processing settings of the current command. If None, those stored with the run are used.
    """
    metrics = result_metrics({key: value for key, value in summary.items() if key not in ("score", "low", "high")})
    tags = result_tags(summary)
    scores = read_run_scores_of(folder, summary, postprocess)
    if scores is not None:
        metrics |= score_metrics(scores)
        tags[COUNTING_TAG] = SCORE_METRICS[scores.counting]
        pages = [path.name for path in matching_files(folder, ("*.html",))]
        tags["mlflow.note.content"] = truncate_text(describe_scores(scores, summary, pages), MAX_TAG_LENGTH)
    finished = {fold["fold"] for fold in summary.get("folds") or [] if isinstance(fold, Mapping) and "fold" in fold}
    is_complete = validated_folds(folder) <= finished
    members = [path for path in list_member_folders(folder) if not path.name.startswith("full")] if is_complete else []
    return RunPage(metrics, tags, mean_curves(members))


def read_run_scores_of(
    folder: Path, summary: Mapping[str, Any], postprocess: PostprocessConfig | None
) -> RunScores | None:
    """Return the score estimates of a run.

    If the run has no stored result of post-processing, the estimates are those in the summary. Otherwise, `run_scores`
    computes them from this result. If this fails, a warning is logged, and the estimates are those in the summary.

    Args:
        folder: the run's folder.
        summary: content of the run's `summary.json`.
        postprocess: the post-processing settings of the current command. If None, those stored with the run are used.

    Returns:
        The estimates; None if there are none.
    """
    if not (folder / TUNING_FILE).exists():
        return stored_scores(summary)
    try:
        run = load_run(folder, None, check_edits=False)
        if postprocess is not None:
            run = replace(run, exp=run.exp.model_copy(update={"postprocess": postprocess}))
        return run_scores(run, summary)
    except (OSError, ValueError, LookupError, TypeError, MaskfoldError) as error:
        logger.warning(
            "The score with post-processing of %s cannot be read, so MLflow shows the score without it: %s",
            folder,
            error,
        )
        return stored_scores(summary)


def named_estimates(scores: RunScores) -> dict[str, ScoreEstimate]:
    """Return the score estimates of a run; a key is the prefix of the estimate's metrics in MLflow, e.g. `nested`."""
    named = {
        "counted": scores.counted,
        "cv": scores.raw,
        "processed": scores.processed,
        "nested": scores.nested,
        "soup_weights": scores.soup,
        "last_weights": scores.last,
        "all_seeds": scores.seeds,
        "one_seed": scores.one_seed,
    }
    return {name: estimate for name, estimate in named.items() if estimate is not None}


def score_metrics(scores: RunScores) -> dict[str, float]:
    """Return the MLflow metrics `<name>_score`, `<name>_lower` and `<name>_upper` of each score estimate.

    `<name>_lower` and `<name>_upper` are the ends of the 95 % interval; ends that are not finite are left out.
    `counted_score` repeats the score of the masks that would be submitted.

    MLflow sorts columns by name. With these names, the columns `counted_…` come first, and each score stands between
    the ends of its interval.

    Example:
        >>> score = ScoreEstimate(0.9, 0.8, 0.95)
        >>> list(score_metrics(RunScores("dice", "raw", score, score)))
        ['counted_score', 'counted_lower', 'counted_upper', 'cv_score', 'cv_lower', 'cv_upper']
    """
    return {
        f"{name}_{part}": value
        for name, estimate in named_estimates(scores).items()
        for part, value in zip(("score", "lower", "upper"), estimate, strict=True)
        if isfinite(value)
    }


def describe_scores(scores: RunScores, summary: Mapping[str, Any], files: Iterable[str] = ()) -> str:
    """Return the description of a run for its page in MLflow, in Markdown.

    The description has the score of the masks that would be submitted, a table of all score estimates, and a table of
    the folds.

    Args:
        scores: the score estimates of the run.
        summary: content of the run's `summary.json`.
        files: names of artifacts of the run that the description lists.
    """
    counted = scores.counted
    text = f"**{counted.value:.4f}** {scores.metric}"
    if isfinite(counted.low):
        text += f" (95 % interval {counted.low:.4f} to {counted.high:.4f})"
    text += f" on {format_count(scores.cases, 'out-of-fold case')}" if scores.cases else ""
    counting = SCORE_METRICS[scores.counting].removesuffix("_score")
    rows = [
        [f"**{TITLES[name]}**" if name == counting else TITLES[name], f"{estimate.value:.4f}", _interval(estimate)]
        for name, estimate in named_estimates(scores).items()
        if name != "counted"
    ]
    parts = [text, _table([scores.metric, "score", "95 % interval"], rows)]
    if len(rows) > 1:
        parts.append("The score in bold letters is that of the masks that `maskfold submit` writes.")
    if folds := _fold_rows(summary):
        classes = list(summary.get("dice") or {})
        parts.append(_table(["fold", "score", *(f"Dice {name}" for name in classes), "epochs", "minutes"], folds))
        parts.append("Each fold is a child run, whose network is a logged model.")
    if names := ", ".join(f"`{name}`" for name in files):
        parts.append(f"Artifacts: {names}.")
    return "\n\n".join(parts)


def _fold_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for fold in summary.get("folds") or []:
        if not isinstance(fold, Mapping) or "fold" not in fold:
            continue
        name = "all cases" if fold["fold"] < 0 else str(fold["fold"])
        name += f", seed {fold['seed']}" if fold.get("seed") else ""
        dice = fold.get("dice") or {}
        rows.append(
            [
                name,
                _number(fold.get("score")),
                *(_number(dice.get(name)) for name in summary.get("dice") or {}),
                str(fold.get("epochs", "")),
                _number(fold.get("minutes"), 1),
            ]
        )
    return rows


def _interval(estimate: ScoreEstimate) -> str:
    return f"{estimate.low:.4f} to {estimate.high:.4f}" if isfinite(estimate.low) else ""


def _number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def mean_curves(folders: Iterable[Path]) -> dict[str, list[tuple[int, float]]]:
    """Return the mean of each training curve over the folds of a run.

    A fold that has never logged a metric does not count for the curve of this metric. An epoch is in the curve only if
    all folds that count have logged a value in it. So all means of a curve are over the same folds.

    Args:
        folders: folders of the folds, with `metrics.jsonl`.

    Returns:
        (epoch, mean) pairs in the order of the epochs, by name of the metric, e.g. `val/dice`.
    """
    by_name: dict[str, list[dict[int, float]]] = {}
    for folder in folders:
        own: dict[str, dict[int, float]] = {}
        for line in read_metrics_lines(folder / "metrics.jsonl"):
            for name, value in line.metrics.items():
                if name in CURVE_METRICS or name.startswith("val/dice/"):
                    own.setdefault(name, {})[int(line.epoch)] = value
        for name, curve in own.items():
            by_name.setdefault(name, []).append(curve)
    curves = {}
    for name, several in by_name.items():
        epochs = sorted(set.intersection(*(set(curve) for curve in several)))
        curves[name] = [(epoch, sum(curve[epoch] for curve in several) / len(several)) for epoch in epochs]
    return curves
