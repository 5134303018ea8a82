"""Noise and correlation of leaderboard scores, and the changes between uploads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from competition.config.competition import MetricConfig
from competition.config.postprocess import PostprocessConfig
from competition.errors import MaskfoldError
from competition.leaderboard.kaggle import KaggleSubmission
from competition.leaderboard.ledger import Ledger, UploadRecord, describe_changes, update_records
from competition.leaderboard.noise import (
    cv_lb_correlation,
    cv_lb_disagreements,
    public_overfit,
    public_score_noise,
    selection_advice,
)

METRIC = MetricConfig(name="dice", both_empty=None).model_dump()


def record(
    place: int, cv: float | None = None, public: float | None = None, half: float | None = None, **more
) -> UploadRecord:
    ends = {} if half is None else {"score": cv, "low": cv - half, "high": cv + half}
    return UploadRecord(
        **{
            "id": f"r{place}",
            "competition": "toy",
            "host": "kaggle",
            "slug": "toy",
            "time": f"2026-01-{place + 1:02d}T10:00:00+00:00",
            "file": f"s{place}.csv",
            "sha256": f"{place:064d}",
            "message": f"m{place}",
            "metric": METRIC,
            "cv": {} if cv is None else {"score": cv, "low": None, "high": None},
            "expected": ends,
            "public_cases": 30,
            "public": public,
            "status": "complete",
            **more,
        }
    )


def table(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"c{n}" for n in range(len(values))], "class": "a", "score": values, "dice": values})


def test_fishers_interval() -> None:
    x = np.array([0.80, 0.82, 0.85, 0.84, 0.88, 0.90])
    y = np.array([0.70, 0.75, 0.74, 0.78, 0.79, 0.80])
    found = cv_lb_correlation([record(n, *pair) for n, pair in enumerate(zip(x, y, strict=True))])
    from scipy.stats import pearsonr

    theirs = pearsonr(x, y)
    ends = theirs.confidence_interval(0.95)
    assert (found.r, found.low, found.high) == pytest.approx((theirs.statistic, ends.low, ends.high), abs=1e-6)
    assert found.files == 6 and "r +0.8" in str(found)


def test_correlations_that_cannot_be() -> None:
    three = [record(n, 0.8 + n / 100, 0.7 + n / 100) for n in range(3)]
    assert "found 3 files with both scores, expected at least 4" in str(cv_lb_correlation(three))
    assert "found 3 files" in str(cv_lb_correlation([*three, replace(three[0], id="again")])), (
        "a file uploaded twice counts once"
    )
    assert "found 3 files" in str(cv_lb_correlation([*three, record(5, None, 0.3), record(6, 0.3, None)]))
    for name, files in (
        ("CV", [record(n, 0.8, 0.7 + n / 100) for n in range(4)]),
        ("public", [record(n, 0.8 + n / 100, 0.7) for n in range(4)]),
    ):
        assert f"all files have the same {name} score" in str(cv_lb_correlation(files))
    line = cv_lb_correlation([record(n, 0.8 + n / 100, 0.9 - n / 100) for n in range(4)])
    assert line.r == line.low == line.high == pytest.approx(-1)
    weak = cv_lb_correlation([record(n, 0.8 + n / 100, value) for n, value in enumerate([0.7, 0.72, 0.69, 0.71])])
    assert weak.low < 0 < weak.high and "contains 0" in str(weak)


def test_a_move_within_the_noise_is_told_and_one_beyond_is_not() -> None:
    generator = np.random.default_rng(0)
    first = generator.uniform(0.6, 0.9, 200)
    tables = {"r0": table(first), "r1": table(first + generator.normal(0, 0.05, 200))}
    spread = 1.96 * (tables["r1"]["score"] - tables["r0"]["score"]).std() / 30**0.5
    still = [record(0, 0.8, 0.7), record(1, 0.81, 0.7 + 0.8 * spread)]
    (line,) = public_overfit(still, tables)
    assert (
        "overfit the public leaderboard" in line
        and "2026-01-02" in line
        and "from 200 common out-of-fold cases" in line
    )
    assert public_overfit([still[0], replace(still[1], public=0.7 + 1.25 * spread)], tables) == []
    assert public_overfit([still[0], replace(still[1], public=0.7 - 1.25 * spread)], tables) == []
    assert public_overfit([still[0], replace(still[1], sha256=still[0].sha256)], tables) == [], (
        "the same file moves by nothing"
    )


def test_without_the_cases_the_intervals_count() -> None:
    pair = record(0, 0.8, 0.70, half=0.03), record(1, 0.8, 0.74, half=0.04)
    found = public_score_noise(*pair, (None, None))
    assert found is not None and (found.value, found.paired) == (pytest.approx(0.05), 0)
    assert len(public_overfit(pair, {})) == 1
    assert public_overfit([pair[0], replace(pair[1], public=0.751)], {}) == []
    other = table(np.linspace(0.5, 0.9, 9)).replace({"class": {"a": "b"}})
    assert public_score_noise(*pair, (table(np.linspace(0.5, 0.9, 9)), other)).paired == 0, "of other classes"
    assert public_score_noise(record(0, 0.8, 0.7), pair[1], (None, None)) is None
    assert (
        public_score_noise(replace(pair[0], public_cases=None), replace(pair[1], public_cases=None), (None, None))
        is None
    )


def test_the_move_is_from_the_last_upload_with_a_score() -> None:
    several = [record(0, 0.8, 0.70, half=0.01), record(1, 0.8, None, half=0.01), record(2, 0.8, 0.701, half=0.01)]
    (line,) = public_overfit(several, {})
    assert "+0.0010" in line


def test_a_public_score_that_is_no_surprise_and_one_that_is() -> None:
    assert (
        cv_lb_disagreements([record(0, 0.8, 0.79, half=0.02), record(1, 0.8, None, half=0.02), record(2, 0.8, 0.5)])
        == []
    )
    (line,) = cv_lb_disagreements([record(0, 0.8, 0.77, half=0.02)])
    assert "the public score is 0.7700" in line and "0.7800 to 0.8200" in line


def test_which_to_choose() -> None:
    near = [record(0, 0.82, 0.70, half=0.03), record(1, 0.80, 0.72, half=0.04)]
    assert "choose by CV" in selection_advice(near, {})
    assert "submit both" in selection_advice([near[0], replace(near[1], public=0.76)], {})
    assert selection_advice([replace(near[0], public=0.73), near[1]], {}) is None
    assert selection_advice(near[:1], {}) is None


RUN = {"run": "r", "experiment": "toy-unet", "hash": "aaa", "weight": 1.0}


def test_changes_of_keys_runs_weights_and_steps() -> None:
    before = record(
        0,
        runs=[RUN],
        keys={"aaa": {"optimizer.args.lr": "0.001", "seed": "1", "old": "3"}},
        postprocess=PostprocessConfig().model_dump(),
    )
    assert describe_changes(None, before) == ["first"]
    assert describe_changes(before, replace(before, id="x")) == ["the same file"]
    new = {**RUN, "hash": "bbb"}
    after = record(
        1,
        runs=[new],
        keys={"bbb": {"optimizer.args.lr": "0.002", "seed": "1", "new": "4"}},
        postprocess=PostprocessConfig.model_validate({"steps": [{"remove_small": 30}]}).model_dump(),
    )
    assert describe_changes(before, after) == [
        "unet/aaa → unet/bbb",
        "optimizer.args.lr: 0.001 → 0.002",
        "old: 3 → –",
        "new: – → 4",
        "post-processing: none → remove_small 30",
    ]
    other = {"run": "o", "experiment": "toy-resunet", "hash": "ccc", "weight": 0.4}
    blend = record(2, runs=[{**RUN, "weight": 0.6}, other], postprocess=before.postprocess)
    assert describe_changes(before, blend) == ["+ resunet/ccc", "weight of unet/aaa: 1 → 0.6"]
    assert describe_changes(blend, before) == ["− resunet/ccc", "weight of unet/aaa: 0.6 → 1"]
    assert describe_changes(before, record(3, runs=[RUN], postprocess=before.postprocess)) == [
        "another file of the same runs"
    ]
    assert describe_changes(before, record(4)) == ["unknown"], "a file of unknown runs has not removed any"
    assert describe_changes(record(4), record(5)) == ["unknown"]


def remote(ref: int, **more) -> KaggleSubmission:
    return KaggleSubmission(
        **{
            "ref": ref,
            "date": "2026-01-01T10:00:05",
            "file": "s0.csv",
            "description": "m0",
            "status": "complete",
            "public": 0.7,
            "private": None,
            "error": "",
            **more,
        }
    )


def test_a_submission_without_a_number_is_found_by_what_it_is() -> None:
    open_one = record(0, status="sending", public=None)
    (found,) = update_records([open_one], [remote(7)], "2026-01-02T00:00:00+00:00")
    assert (found.ref, found.public, found.status, found.checked) == (7, 0.7, "complete", "2026-01-02T00:00:00+00:00")
    for strange in (remote(7, file="other.csv"), remote(7, description="no"), remote(7, date="2026-01-01T09:00:00")):
        assert update_records([open_one], [strange], "now")[0].status == "lost"
    taken = replace(record(0), ref=7, public=0.7)
    assert update_records([taken, replace(open_one, id="x")], [remote(7)], "now")[0].status == "lost", "7 is another's"


def test_scores_come_and_never_go() -> None:
    known = replace(record(0, public=0.7), ref=7)
    assert update_records([known], [remote(7)], "now") == []
    assert update_records([known], [remote(7, public=None)], "now") == []
    assert update_records([known], [], "now") == [], "older than the latest page"
    assert update_records([known], [remote(7, private=0.6)], "now")[0].private == 0.6
    assert update_records([replace(known, host="by hand", ref=None, status="sending")], [remote(7)], "now") == []


def test_records_are_read_back_whole(tmp_path: Path) -> None:
    ledger = Ledger("toy", tmp_path)
    one = record(1, 0.8, 0.7, half=0.1, runs=[RUN], notebook={"kernel": "me/x", "version": 2, "file": "a.csv"})
    ledger.write(one, table(np.array([0.25, np.nan])))
    ledger.write(record(0))
    assert ledger.read() == [record(0), one], "the oldest first"
    pd.testing.assert_frame_equal(ledger.scores(one), table(np.array([0.25, np.nan])))
    assert ledger.scores(record(0)) is None
    path = ledger.folder / "r1.json"
    newer = {**json.loads(path.read_text()), "version": 9}
    path.write_text(json.dumps(newer))
    with pytest.raises(MaskfoldError, match="r1.json was edited"):
        ledger.read()
    del newer["digests"]
    path.write_text(json.dumps(newer))
    with pytest.raises(MaskfoldError, match="r1.json has the format version 9, expected 1"):
        ledger.read()


def test_the_hosts_keys_change_no_runs_name(tiny) -> None:
    from competition.runs.identity.hashing import run_hash

    plain = tiny(2)
    named = tiny(2, "competition.submission.kaggle=toy-2026", "competition.submission.public_share=0.3")
    assert named.competition.submission.kaggle == "toy-2026" and run_hash(plain, "d") == run_hash(named, "d")
    assert run_hash(tiny(2, "competition.submission.sample=other.csv"), "d") != run_hash(plain, "d")
