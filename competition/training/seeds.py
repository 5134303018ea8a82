"""What several seeds of each fold are worth: the score of the mean of their predictions beside that of each alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from competition.scoring.score_table import read_scores
from competition.scoring.summary import cv_score, gain_interval
from competition.training.job import FoldResult
from competition.training.runs import CvRun

if TYPE_CHECKING:
    import pandas as pd


def worth(
    run: CvRun, results: list[FoldResult], blended: pd.DataFrame, groups: Mapping[str, str] | None
) -> dict[str, Any] | None:
    """The score of each seed alone and of all together, over the folds that have all of their seeds.

    Args:
        run: the run.
        results: of its finished members.
        blended: score rows of the means over seeds.
        groups: the group of each case, for the interval.

    Returns:
        `alone`: by seed, `score` and `dice` per class; `one`: the score of one seed, the mean over seeds; `blended`; `gain`:
        blended minus one, with `low` and `high` of its paired 95 % interval over cases; `folds`: how many these are of.
        None for one seed, or while no fold has all.
    """
    from competition.training.cv import fold_scores
    from competition.training.validation import dice_per_class

    seeds, comp = run.exp.seeds, run.exp.competition
    whole = [fold for fold in run.numbers() if sum(one.fold == fold for one in results) == len(seeds)]
    if len(seeds) < 2 or not whole:
        return None
    import pandas as pd

    tables = [
        pd.concat(
            [fold_scores(run, one.fold, [one]) for one in results if one.fold in whole and one.seed == index],
            ignore_index=True,
        )
        for index in range(len(seeds))
    ]
    numbers = [name for name in tables[0].columns if name not in ("id", "class", "fold")]
    one = (
        pd.concat(tables).groupby(["id", "class"], sort=False)[numbers].mean().reset_index()
    )  # a class is absent where it is in all
    both = blended[blended["fold"].isin(whole)]
    gain = gain_interval(one, both, comp.metric, seed=seeds[0], groups=groups)
    ends = [end if isfinite(end) else None for end in gain[1:]]
    return {
        "alone": {
            str(seed): {"score": cv_score(table, comp.metric), "dice": dice_per_class(table, comp.classes)}
            for seed, table in zip(seeds, tables, strict=True)
        },
        "one": cv_score(one, comp.metric),
        "blended": cv_score(both, comp.metric),
        "gain": gain.value,
        "low": ends[0],
        "high": ends[1],
        "folds": len(whole),
    }


def held_out(run: CvRun, members: list[FoldResult]) -> pd.DataFrame | None:
    """Score rows of the share that nobody trained on: by a fold's member, or the mean of its members' probabilities.

    None where there is no such share.
    """
    import numpy as np
    import pandas as pd
    import torch

    from competition.inference.store import OofStore
    from competition.training.validation import Judge

    places = [(run.member_folder(one.fold, one.seed), one.prefix) for one in members]
    if not places or not (run.folds["fold"] == -2).any():
        return None
    if len(places) == 1:
        folder, prefix = places[0]
        return read_scores(folder / f"{prefix}test_scores.csv")
    stores = [OofStore(folder / f"{prefix}test", run.exp.inference.store) for folder, prefix in places]
    cases = run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == -2, "id"])]
    judge = Judge(run.exp, cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    lines: list[dict[str, Any]] = []
    for row in judge.rows():
        mean = np.asarray(np.mean([store.read(row.id) for store in stores], axis=0, dtype=np.float32), np.float16)
        lines += judge.score(mean, row, -2)[0]
    return pd.DataFrame(lines)


def seed_lines(seeds: Mapping[str, Any] | None) -> list[str]:
    """What to tell of it: nothing for one seed."""
    if seeds is None:
        return []
    ends = f", 95 % {seeds['low']:+.4f} to {seeds['high']:+.4f} over cases" if seeds["low"] is not None else ""
    alone = ", ".join(f"seed {seed} {found['score']:.4f}" for seed, found in seeds["alone"].items())
    return [
        f"{len(seeds['alone'])} seeds: {seeds['blended']:.4f} together, {seeds['one']:.4f} one alone on average "
        f"(gain {seeds['gain']:+.4f}{ends}); {alone}"
    ]
