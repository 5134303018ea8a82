"""`summary.json` is read as it was written, and refused if it was edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.runs.summary import SUMMARY_FILE, read_summary, write_summary

SUMMARY = {"metric": "dice", "score": 0.8125, "low": float("nan"), "dice": {1: 0.5}, "digests": {"scores.csv": "ab"}}


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_summary(tmp_path, SUMMARY)
    found = read_summary(tmp_path)
    assert set(found.pop("digests")) == {"scores.csv", SUMMARY_FILE}
    assert found == {"metric": "dice", "score": 0.8125, "low": None, "dice": {"1": 0.5}}
    write_summary(tmp_path, {**read_summary(tmp_path), "stopped": "pruned"})
    assert read_summary(tmp_path)["stopped"] == "pruned"


@pytest.mark.parametrize(
    ("key", "value"), [("score", 0.9125), ("low", 0.8), ("dice", {"1": 0.6}), ("digests", None), ("more", 1)]
)
def test_an_edited_number_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_summary(tmp_path, SUMMARY)
    plain = json.loads((tmp_path / SUMMARY_FILE).read_text())
    if key == "digests":
        plain["digests"]["scores.csv"] = "cd"
    else:
        plain[key] = value
    (tmp_path / SUMMARY_FILE).write_text(json.dumps(plain))
    with pytest.raises(MaskfoldError) as caught:
        read_summary(tmp_path)
    assert SUMMARY_FILE in str(caught.value) and "maskfold cv" in caught.value.hint


def test_a_summary_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / SUMMARY_FILE).write_text(json.dumps({"metric": "dice", "score": 0.5}))
    assert read_summary(tmp_path) == {"metric": "dice", "score": 0.5}


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_summary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SUMMARY_FILE).write_text(content)
    with pytest.raises(MaskfoldError, match=SUMMARY_FILE):
        read_summary(tmp_path)


def test_a_missing_summary_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_summary(tmp_path)
