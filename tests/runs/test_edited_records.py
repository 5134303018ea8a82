"""A number that was edited in a record is not mistaken for a result, whichever command reads the record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from competition.cleaning.protection import _in_studies
from competition.cli.watch import read_member_status
from competition.config.competition import MetricConfig
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.leaderboard.ledger import Ledger, UploadRecord
from competition.leaderboard.upload import _read_summary
from competition.records import SUBMISSION_DIGEST, changed_tables, is_unedited, with_own_digest, write_json
from competition.report.results import RunResults
from competition.runs.baselines import BASELINES_FILE, baseline_lines
from competition.runs.find import TRIALS_FILE, _study_error
from competition.runs.fold import RESULT_FILE, FoldResult
from competition.runs.run import Run
from competition.runs.summary import SCORES_FILE, SUMMARY_FILE, read_run_scores, read_summary, run_scores, write_summary
from competition.study.study import read_trials
from competition.tracking.store import read_result_json
from competition.training.cross_validate import summarize_run

VALUES: dict[str, Any] = {"dice": {"a": 0.5}, "epochs": 1, "steps": 1, "minutes": 1.5, "threads": 1, "peak_gib": 0.5}
WORDS = {"precision": "32-true", "device": "cpu", "torch": "2.7.1", "stopped": ""}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_digest_is_of_the_content() -> None:
    record = with_own_digest({"a": float("nan"), "digests": {"table.csv": "1"}, 3: [0.1, None]}, "record.json")
    assert record["a"] is None and record["digests"].keys() == {"table.csv", "record.json"}
    assert is_unedited(json.loads(json.dumps(record)), "record.json")
    for changed in ({"a": 1}, {"3": [0.1]}, {"b": 0}, {"digests": {**record["digests"], "table.csv": "2"}}):
        assert not is_unedited({**record, **changed}, "record.json")
    assert is_unedited({"a": 1}, "record.json"), "of a version without digests"
    assert with_own_digest(record, "record.json") == record


@pytest.mark.parametrize(
    "changes", [{"score": 0.99}, {"dice": {"a": 0.99}}, {"steps": 2}, {"digests": {RESULT_FILE: ""}}]
)
def test_an_edited_result_of_a_fold(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "fold_0"
    folder.mkdir()
    result = FoldResult(0, 0, 0.5, digests={"scores.csv": "1"}, **VALUES, **WORDS)
    result.write(folder)
    assert FoldResult.read(folder) == result and read_member_status(folder).score == "0.5000"
    assert read_result_json(folder / RESULT_FILE)["score"] == 0.5
    edit(folder / RESULT_FILE, **changes)
    with pytest.raises(MaskfoldError, match=r"result\.json was changed after the fold had finished") as caught:
        FoldResult.read(folder)
    assert "maskfold cv" in caught.value.hint
    assert read_member_status(folder).score in ("", "–") and read_result_json(folder / RESULT_FILE) == {}


def test_a_run_with_an_edited_result_is_not_summarised(finished: Callable[..., Run], tiny: Callable[..., Any]) -> None:
    run = finished(tiny(2))
    path = run.folder / "fold_1" / RESULT_FILE
    result = FoldResult.read(path.parent)
    assert result is not None
    result.write(path.parent)  # with a digest
    before = summarize_run(run)
    edit(path, score=0.99)
    for read in (lambda: summarize_run(run), run.oof, run.checkpoints):
        with pytest.raises(MaskfoldError, match=r"fold_1/result\.json was changed"):
            read()
    result.write(path.parent)
    assert summarize_run(run) == before


def test_an_edited_list_of_trials(tmp_path: Path) -> None:
    trial = {"number": 0, "state": "complete", "values": [0.5], "params": {}, "run": "mlruns/runs/a/b"}
    path = tmp_path / "study" / TRIALS_FILE
    path.parent.mkdir()
    content = {"objectives": ["score"], "best": [0], "trials": [trial]}
    write_json(path, with_own_digest(content, TRIALS_FILE))
    assert read_trials(path.parent)["best"] == [0] and len(list(_in_studies(tmp_path))) == 1
    edit(path, trials=[{**trial, "values": [0.9]}])
    for read in (lambda: read_trials(path.parent), lambda: list(_in_studies(tmp_path))):
        with pytest.raises(MaskfoldError, match=r"trials\.json was edited"):
            read()
    write_json(path, content)  # of a version without digests
    assert read_trials(path.parent)["trials"] == [trial]


def test_an_edited_record_of_the_ledger(tmp_path: Path) -> None:
    metric = MetricConfig(name="dice").model_dump()
    record = UploadRecord(
        "r", "toy", "kaggle", "toy", "2026-01-01T10:00:00+00:00", "s.csv", "0" * 64, "", metric=metric
    )
    ledger = Ledger("toy", tmp_path)
    ledger.write(record)
    assert ledger.read() == [record]
    path = ledger.folder / "r.json"
    edit(path, cv={"score": 0.99})
    with pytest.raises(MaskfoldError, match=r"r\.json was edited"):
        ledger.read()
    edit(path, digests={})
    assert ledger.read()[0].score == 0.99, "of a version without digests"


def test_an_edited_summary_of_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"runs": [], "expected": {"score": 0.5}}
    write_json(path, with_own_digest(content, SUBMISSION_DIGEST))
    assert _read_summary(tmp_path / "a.csv")["expected"]["score"] == 0.5
    path.rename(tmp_path / "b.json")
    assert _read_summary(tmp_path / "b.csv")["expected"]["score"] == 0.5, "the user may rename both files"
    edit(tmp_path / "b.json", expected={"score": 0.99})
    with pytest.raises(MaskfoldError, match=r"b\.json was edited"):
        _read_summary(tmp_path / "b.csv")
    write_json(path, content)
    assert _read_summary(tmp_path / "a.csv") == content, "of a version without digests"


def test_the_hint_for_a_study_names_no_edited_trial(tmp_path: Path) -> None:
    trials = [{"number": number, "run": f"mlruns/runs/a/{number}"} for number in (0, 1)]
    path = tmp_path / TRIALS_FILE
    write_json(path, with_own_digest({"objectives": ["score"], "best": [0], "trials": trials}, TRIALS_FILE))
    assert "mlruns/runs/a/0, the run of the best trial 0" in _study_error(tmp_path).hint
    edit(path, best=[1])
    assert "best trial" not in _study_error(tmp_path).hint


def test_the_summary_of_another_run(finished: Callable[..., Run], tiny: Callable[..., Any], tmp_path: Path) -> None:
    """It has a valid digest; the run would be ranked by the score of the other one."""
    run, other = finished(tiny(2)), finished(tiny(2), "other", noise=0.1)
    before, better = run_scores(run), run_scores(other)
    assert before is not None and better is not None and better.value > before.value
    kept, summary = (run.folder / SUMMARY_FILE).read_bytes(), read_summary(other.folder)
    scores = shutil.copy(run.folder / SCORES_FILE, tmp_path)
    shutil.copy(other.folder / SUMMARY_FILE, run.folder)
    with pytest.raises(MaskfoldError, match=r"summary\.json does not belong to scores\.csv "):
        run_scores(run)
    shutil.copy(other.folder / SCORES_FILE, run.folder)
    write_summary(run.folder, {**summary, "folds": [{**fold, "steps": 10} for fold in summary["folds"]]})
    with pytest.raises(MaskfoldError, match=r"does not belong to fold_0/result\.json, fold_1/result\.json "):
        run_scores(run)
    for read in (lambda: read_summary(run.folder), lambda: read_run_scores(run.folder)):
        with pytest.raises(MaskfoldError, match=r"does not belong to fold_0/result\.json, fold_1/result\.json "):
            read()
    found = RunResults.load(run)
    assert found.table is not None and not found.summary, "combined from the scores of the folds"
    own = pd.read_csv(scores, dtype={"id": str})
    assert found.table.sort_values("id")["dice"].tolist() == pytest.approx(own.sort_values("id")["dice"].tolist())
    assert found.counted().value == pytest.approx(before.value)
    shutil.copy(scores, run.folder)
    (run.folder / SUMMARY_FILE).write_bytes(kept)
    assert run_scores(run) == before
    shutil.rmtree(run.folder / "fold_0")
    assert run_scores(run) == before, "a fold that was deleted to save space says nothing"


def test_a_record_without_its_tables_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("id,score\na,0.5\n")
    record = {"digests": {"scores.csv": sha256_of_file(tmp_path / "scores.csv"), "deleted.csv": "1", "a.json": "1"}}
    assert changed_tables(tmp_path, record) == [] == changed_tables(tmp_path, {})
    (tmp_path / "scores.csv").write_text("id,score\na,0.9\n")
    assert changed_tables(tmp_path, record) == ["scores.csv"]
    assert changed_tables(tmp_path, {"digests": {"../scores.csv": "1", "other.tsv": 2}}) == []


def test_watch_shows_no_score_of_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    folder.mkdir()
    (folder / SCORES_FILE).write_text("id,score\na,0.5\n")
    FoldResult(0, 0, 0.5, digests={SCORES_FILE: sha256_of_file(folder / SCORES_FILE)}, **VALUES, **WORDS).write(folder)
    assert read_member_status(folder).score == "0.5000"
    FoldResult(0, 0, 0.99, digests={SCORES_FILE: "1"}, **VALUES, **WORDS).write(folder)
    assert read_member_status(folder).score in ("", "–")


def test_edited_baselines_are_computed_again(finished: Callable[..., Run], tiny: Callable[..., Any]) -> None:
    run = finished(tiny(2))
    lines = baseline_lines(run)
    assert lines and baseline_lines(run) == lines
    edit(run.folder / BASELINES_FILE, lines=["  the network  0.9999"])
    assert baseline_lines(run) == lines


def test_the_ledger_refuses_scores_and_records_of_other_uploads(tmp_path: Path) -> None:
    metric = MetricConfig(name="dice").model_dump()
    record = UploadRecord(
        "r", "toy", "kaggle", "toy", "2026-01-01T10:00:00+00:00", "s.csv", "0" * 64, "", metric=metric
    )
    ledger, rows = Ledger("toy", tmp_path), pd.DataFrame({"id": ["a"], "class": ["x"], "score": [0.5], "dice": [0.5]})
    ledger.write(record, rows)
    ledger.write(replace(record, public=0.4))  # the host's score, which arrives later
    stored = ledger.scores(record)
    assert stored is not None and stored["score"].tolist() == [0.5]
    table = ledger.folder / "r.scores.tsv"
    kept = table.read_text()
    table.write_text(kept.replace("0.5", "0.9"))
    with pytest.raises(MaskfoldError, match=r"r\.scores\.tsv"):
        ledger.scores(record)
    table.write_text(kept)
    shutil.copy(ledger.folder / "r.json", ledger.folder / "s.json")
    with pytest.raises(MaskfoldError, match=r"s\.json"):
        ledger.read()
