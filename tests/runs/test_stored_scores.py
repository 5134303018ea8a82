"""Which stored score of a run counts: raw, of the soup, of the seeds; the nested score is tested in `test_best.py`."""

from __future__ import annotations

import math

import pytest

from competition.runs.summary import ScoreEstimate, stored_scores

SOUP = {"plain": 0.7, "soup": 0.8, "plain_low": 0.6, "plain_high": 0.75, "soup_low": 0.7, "soup_high": 0.85}
SEEDS = {"one": 0.7, "one_low": 0.6, "one_high": 0.8, "blended": 0.75, "blended_low": 0.65, "blended_high": 0.8}
PLAIN = {"metric": "dice", "score": 0.8, "low": 0.7, "high": 0.9, "cases": 20}


@pytest.mark.parametrize(
    ("more", "counting"),
    [
        ({}, "raw"),
        ({"soup": {**SOUP, "kept": True}}, "soup"),
        ({"soup": {**SOUP, "kept": False}}, "raw"),
        ({"seeds": SEEDS}, "seeds"),
        ({"seeds": SEEDS, "soup": {**SOUP, "kept": True}}, "soup"),
        ({"seeds": None, "soup": None}, "raw"),
    ],
)
def test_the_score_of_the_summary_counts_and_its_kind_is_named(more: dict, counting: str) -> None:
    scores = stored_scores({**PLAIN, **more})
    assert scores is not None and scores.counting == counting
    assert scores.counted == scores.raw == ScoreEstimate(0.8, 0.7, 0.9) and scores.cases == 20
    if more.get("soup"):
        assert scores.soup == ScoreEstimate(0.8, 0.7, 0.85) and scores.last == ScoreEstimate(0.7, 0.6, 0.75)
    if more.get("seeds"):
        assert scores.seeds == ScoreEstimate(0.75, 0.65, 0.8) and scores.one_seed == ScoreEstimate(0.7, 0.6, 0.8)


def test_a_summary_of_an_older_version_has_no_interval_of_its_soup() -> None:
    scores = stored_scores({**PLAIN, "soup": {"plain": 0.7, "soup": 0.8, "kept": True}})
    assert scores is not None and scores.soup is not None
    assert scores.soup.value == 0.8 and math.isnan(scores.soup.low)


@pytest.mark.parametrize("score", [None, math.nan, "0.8", True])
def test_a_summary_without_a_number_has_no_score(score: object) -> None:
    assert stored_scores({**PLAIN, "score": score}) is None
