"""Masks of pictures that are too large for the memory become files for the host without arrays of their size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition import large_arrays
from competition.config.profiles import PROFILES
from competition.postprocessing.case import CasePrediction
from competition.submission.files import file_labels
from competition.submission.formats import write_labels
from competition.submission.label_files import label_arrays
from competition.submission.writer import write_submission
from tests.prepared import experiment

SIDE = 2000
LIMIT = 3 * 2**20  # bytes; a mask has 3.8 MiB


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> np.ndarray:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "1")
    monkeypatch.setattr(large_arrays, "BLOCK_VALUES", 2**16)
    found = large_arrays.zeros((2, SIDE, SIDE), np.bool_)
    found[0, 100:900, 300:500] = found[1, 1000:1999, 700:1900] = True
    return found


@pytest.fixture
def memory() -> Iterator[Any]:
    tracemalloc.start()
    yield SimpleNamespace(peak=lambda: tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()


def test_csv(masks: np.ndarray, memory: Any, tmp_path: Path) -> None:
    items = [(name, None, mask) for name, mask in zip("ab", masks, strict=True)]
    assert write_submission(items, PROFILES["tgs-salt"], tmp_path / "x.csv").rows == 2
    assert memory.peak() < LIMIT


@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_label_arrays(masks: np.ndarray, memory: Any, labels: Any) -> None:
    comp = experiment(2, [8, 8]).competition.model_copy(update={"labels": labels})
    arrays = label_arrays(CasePrediction(masks, None), comp)
    assert memory.peak() < LIMIT
    expected = {"": masks[0] + 2 * masks[1]} if labels == "exclusive" else {"disc": masks[0], "ring": masks[1]}
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) and arrays[name].dtype == np.uint8 for name in expected)


def test_label_file(masks: np.ndarray, memory: Any, tmp_path: Path) -> None:
    comp = experiment(2, [8, 8]).competition
    comp = comp.model_copy(
        update={"submission": comp.submission.model_copy(update={"files": "{id}_{class}.tif", "labels": [7, 9]})}
    )
    arrays = file_labels(CasePrediction(masks, None), comp)
    assert set(np.unique(arrays["ring"][::50, ::50])) == {0, 9}
    row = SimpleNamespace(images='{"image": "a.png"}', spacing="[1, 1]")
    assert memory.peak() < LIMIT
    write_labels(tmp_path / "small.tif", np.zeros((8, 8), np.uint8), tmp_path / "a.png", row, comp)
    tracemalloc.clear_traces()  # forgets the 2 MiB of the imported libraries
    write_labels(tmp_path / "a.tif", arrays["ring"], tmp_path / "a.png", row, comp)
    assert memory.peak() < LIMIT


def test_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_arrays, "BLOCK_VALUES", 20)
    for shape in ((101,), (13, 17), (3, 5, 7)):
        one = np.arange(np.prod(shape)).reshape(shape)
        assert large_arrays.are_equal(one, np.asfortranarray(one))
        for position in np.ndindex(shape):
            other = one.copy()
            other[position] += 1
            assert not large_arrays.are_equal(one, other)
    assert not large_arrays.are_equal(np.zeros((2, 3)), np.zeros((3, 2)))
