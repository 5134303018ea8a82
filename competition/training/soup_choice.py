"""Whether the average of the best checkpoints predicts, or the plain weights: the out-of-fold scores say so, and say it nested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from competition.config import Metric
from competition.scoring.summary import cv_score, gain_interval
from competition.training.checkpoint import write_json
from competition.training.cv import fold_scores, results_of
from competition.training.job import PLAIN, SOUP, FoldResult
from competition.training.runs import CvRun
from competition.training.soup import halves

if TYPE_CHECKING:
    import pandas as pd


def choose(run: CvRun) -> dict[str, Any] | None:
    """Hold the soups of a run's finished folds against its plain weights, and write into each `result.json` what predicts.

    All folds and seeds have the same answer. It may change while folds are added; whatever reads predictions, scores or
    weights of a member follows its `result.json`.

    Args:
        run: with some finished folds.

    Returns:
        See `weigh`, and `k`, `fewest` (checkpoints in a member's soup: a budget may end before k are validated), `flattered`
        (the mean over members of what weights score on the cases that chose them) and
        `members` (the mean over members of what cross-fitted weights score); None where there is no soup.
    """
    import pandas as pd

    members = [result for result in results_of(run) if result.soup is not None]
    if not members:
        return None
    by_fold = {fold: [one for one in members if one.fold == fold] for fold in sorted({one.fold for one in members})}
    plain, soup = (
        pd.concat([fold_scores(run, fold, found, weights) for fold, found in by_fold.items()], ignore_index=True)
        for weights in (PLAIN, SOUP)
    )
    cases, seed = run.cases, run.exp.seeds[0]
    groups = dict(zip(cases["id"], cases["group"], strict=True)) if run.exp.competition.group else None
    folds = {case: fold for case, fold in zip(run.folds["id"], run.folds["fold"], strict=True) if fold in by_fold}
    part_of = folds if len(by_fold) > 1 else halves(cases[cases["id"].isin(list(folds))], next(iter(by_fold)), seed)
    found = weigh(plain, soup, run.exp.competition.metric, part_of, seed, groups)
    for one in members:
        _answer(run, one, found["kept"])
    for name, key in (("flattered", "flattered"), ("members", "score")):
        values = [float(one.soup[key]) for one in members if one.soup is not None]
        found[name] = sum(values) / len(values)
    fewest = min(len(one.soup["epochs"]) for one in members if one.soup is not None)
    return {"k": run.exp.training.soup, "fewest": fewest, **found}


def weigh(
    plain: pd.DataFrame,
    soup: pd.DataFrame,
    metric: Metric,
    part_of: Mapping[str, int],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The rule, asked of all cases, and for each part of them of the others alone.

    The soup predicts where its paired gain over the plain weights is above 0 with the whole 95 % interval.

    Args:
        plain: score rows of the plain weights.
        soup: of the same cases, by averages that they did not choose.
        metric: the competition's.
        part_of: the part of each case: its fold, or its half where there is one fold.
        seed: of the bootstrap.
        groups: the group of each case, for the interval.

    Returns:
        `plain` and `soup`, their scores; `gain`, `low` and `high`, paired; `nested`: the score where the others chose for each
        part; `chosen`: the parts for which they chose the soup; `kept`: the rule's answer on all cases.
    """
    import pandas as pd

    parts = sorted(set(part_of.values()))
    pieces, chosen = [], []
    for part in parts:
        mine = [table["id"].map(part_of) == part for table in (plain, soup)]
        better, _ = _rule(plain[~mine[0]], soup[~mine[1]], metric, seed, groups)
        pieces.append(soup[mine[1]] if better else plain[mine[0]])
        chosen += [part] * better
    kept, gain = _rule(plain, soup, metric, seed, groups)
    low, high = (end if isfinite(end) else None for end in gain[1:])
    return {
        "plain": cv_score(plain, metric),
        "soup": cv_score(soup, metric),
        "gain": gain[0],
        "low": low,
        "high": high,
        "nested": cv_score(pd.concat(pieces), metric),
        "chosen": chosen,
        "parts": len(parts),
        "kept": kept,
    }


def _rule(
    plain: pd.DataFrame, soup: pd.DataFrame, metric: Metric, seed: int, groups: Mapping[str, str] | None
) -> tuple[bool, tuple[float, float, float]]:
    gain = gain_interval(plain, soup, metric, seed=seed, groups=groups)
    return bool(gain.low > 0), (gain.value, gain.low, gain.high)


def _answer(run: CvRun, one: FoldResult, kept: bool) -> None:
    """A member's `result.json` with the weights that predict, and their scores."""
    assert one.soup is not None
    scored = one.soup if kept else one.soup["plain"]
    now = replace(one, weights=SOUP if kept else PLAIN, score=scored["score"], dice=scored["dice"])
    if now != one:
        write_json(run.member_folder(one.fold, one.seed) / "result.json", now.__dict__)


def soup_lines(soup: Mapping[str, Any] | None) -> list[str]:
    """What to tell of it: nothing without a soup."""
    if soup is None:
        return []
    ends = f", 95 % {soup['low']:+.4f} to {soup['high']:+.4f}" if soup["low"] is not None else ""
    fewer = f" (in one fold only {soup['fewest']} were validated)" if soup.get("fewest", soup["k"]) < soup["k"] else ""
    return [
        f"soup of the {soup['k']} best checkpoints{fewer}: {soup['soup']:.4f} on cases that did not choose them, "
        f"{soup['plain']:.4f} with the last weights (gain {soup['gain']:+.4f}{ends}), {soup['nested']:.4f} nested",
        f"  one network's soup: {soup['members']:.4f} on cases that did not choose it, {soup['flattered']:.4f} on those that did",
        "  kept: the soups predict"
        if soup["kept"]
        else "  dropped: the last weights predict, since the gain is not beyond its noise",
    ]
