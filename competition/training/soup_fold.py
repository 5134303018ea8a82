"""What a fold's soup predicts, beside its plain weights: the run's out-of-fold scores choose between the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.inference.store import OofStore
from competition.inference.weights import load_weights
from competition.scoring.summary import cv_score
from competition.training.batch_norm import settle
from competition.training.checkpoint import save_weights, write_table
from competition.training.job import SOUP, FoldResult, Job
from competition.training.loop import Training
from competition.training.runs import CvRun
from competition.training.soup import ALL, HALVES
from competition.training.validation import dice_per_class

if TYPE_CHECKING:
    import pandas as pd

SERVED = FoldResult.prefix_of(SOUP)


def predict_soup(
    job: Job, run: CvRun, training: Training, score: float | None, dice: dict[str, float | None]
) -> dict[str, Any] | None:
    """Write a fold's soup and what it predicts out of fold; the plain weights' files stay as they are.

    Each half of the validation cases is predicted by the average of the checkpoints that the other half found best, so
    its scores were not used to choose what predicts it. The weights that are written are those that all cases chose.

    Args:
        job: the fold.
        run: its run.
        training: has ended.
        score: of the plain weights.
        dice: of the plain weights, per class.

    Returns:
        For `result.json`: `epochs` (of the weights that are written), `score` and `dice` (of the halves), `plain`, and
        `flattered`: what the written weights score on the cases that chose them. None without `training.soup`.
    """
    soup, judge = training.soup, training.judge
    if judge is None or not soup.on:
        return None
    comp, network, kind = run.exp.competition, training.bare, run.exp.inference.store
    half = judge.cases["id"].map(soup.half_of)
    store, tables = OofStore(job.folder / f"{SERVED}oof", kind), []
    for mine, other in (HALVES, HALVES[::-1]):
        network.load_state_dict(soup.average(other))
        settle(network, training)
        tables.append(replace(judge, cases=judge.cases[half == mine]).predict_out_of_fold(network, store, job.fold))
    scores = _ordered(tables, judge.cases["id"])
    write_table(scores, job.folder / f"{SERVED}scores.csv")
    _write(job.folder / SOUP, training)
    chosen = [soup.epochs(one) for one in (ALL, *HALVES)]
    flattered = cv_score(
        scores if chosen[0] == chosen[1] == chosen[2] else judge.validate(network, job.fold), comp.metric
    )
    if (run.folds["fold"] == -2).any():
        held_out = run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == -2, "id"])]
        write_table(
            replace(judge, cases=held_out).predict_out_of_fold(
                network, OofStore(job.folder / f"{SERVED}test", kind), -2
            ),
            job.folder / f"{SERVED}test_scores.csv",
        )
    return {
        "epochs": chosen[0],
        "score": cv_score(scores, comp.metric),
        "dice": dice_per_class(scores, comp.classes),
        "flattered": flattered,
        "plain": {"score": score, "dice": dice},
    }


def _write(path: Path, training: Training) -> None:
    """The average of the checkpoints that all cases found best, into the file and into the network."""
    if not path.exists():
        training.bare.load_state_dict(training.soup.average(ALL))
        settle(training.bare, training)
        save_weights(path, training.bare.state_dict())
    load_weights(training.bare, path)
    training.bare.eval()


def _ordered(tables: list[pd.DataFrame], ids: pd.Series[str]) -> pd.DataFrame:
    """The rows of both halves in the cases' order."""
    import pandas as pd

    place = {case: number for number, case in enumerate(ids)}
    both = pd.concat(tables, ignore_index=True)
    return both.sort_values("id", key=lambda column: column.map(place), kind="stable", ignore_index=True)
