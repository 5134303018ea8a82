"""The work for a case does not grow with the number of cases: folders are listed and tables are read only once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.ensembling import ensemble
from competition.runs import imported
from competition.runs.oof import OofStore
from competition.submission import testset
from competition.submission.reader import IdLookup


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Return a list that grows with each call of a function, by the first argument of the call."""
    function: Callable[..., Any] = getattr(owner, name)
    calls: list[Any] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[0] if args else None)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_store_lists_its_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = count_calls(monkeypatch, os, "listdir")
    store = OofStore(tmp_path / "oof")
    for number in range(5):
        store.write(str(number), np.full((2, 4, 4), 0.5, np.float16))
    assert listed == [tmp_path / "oof"]


def test_a_prediction_does_not_list_the_folder_of_prepared_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "preprocess_case", lambda _row, _exp, folder, durable: folder)
    monkeypatch.setattr(ensemble.PreprocessedCase, "open", lambda folder: folder)
    listed = count_calls(monkeypatch, os, "listdir")
    predictor = ensemble.EnsemblePredictor(SimpleNamespace(comp=None, runs=(), active=[]), None, scratch=tmp_path)  # type: ignore[arg-type]
    assert listed == [tmp_path]
    for _ in range(3):
        with ensemble._preprocessed(SimpleNamespace(), SimpleNamespace(exp=None), predictor.scratch):  # type: ignore[arg-type]
            pass
    assert listed == [tmp_path]


def test_the_table_of_an_import_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SimpleNamespace(id=f"case{number}", image_hash=str(number), shape="[4, 4]") for number in range(3)]
    lines = ["id,image_hash", *(f"{row.id},{row.image_hash}" for row in rows)]
    (tmp_path / imported.TEST_TABLE).write_text("\n".join(lines))
    stored = OofStore(tmp_path / imported.TEST_FOLDER)
    for row in rows:
        stored.write(row.id, np.full((2, 4, 4), 0.5, np.float16))
    monkeypatch.setattr(imported, "stored_tests", lambda _run, _shapes=None: stored)
    read = count_calls(monkeypatch, imported, "read_csv")
    run = SimpleNamespace(folder=tmp_path, exp=SimpleNamespace(output_channels=2))
    predictions = imported.StoredTestPredictions(run)  # type: ignore[arg-type]
    assert all(predictions.read(row).probabilities.shape == (2, 4, 4) for row in rows)
    assert read == [tmp_path / imported.TEST_TABLE]


def test_the_names_in_a_sample_are_indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        SimpleNamespace(
            id=f"day{number}",
            slices=json.dumps(["1", "2"]),
            images=json.dumps({"image": [f"day{number}/slice_1.png", f"day{number}/slice_2.png"]}),
        )
        for number in range(4)
    ]
    keys = [(f"{row.id}_{part}", None) for row in rows for part in (1, 2)]
    indexed: list[int] = []

    class CountedLookup(IdLookup):
        def __post_init__(self) -> None:
            super().__post_init__()
            indexed.append(len(self.ids))

    monkeypatch.setattr(testset, "IdLookup", CountedLookup)
    profile: Any = SimpleNamespace(rows="image", name="slices")
    names = testset.row_names(rows, profile, SimpleNamespace(keys=keys))  # type: ignore[arg-type]
    assert [name for case_names in names.values() for name in case_names] == [key[0] for key in keys]
    assert indexed == [len(keys)]
