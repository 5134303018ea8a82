"""The latest finished run of an experiment is found without reading the others."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from competition.runs import find
from competition.training.cross_validate import open_run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were read; each has the folds 0 and 1, or those that its name says."""
    names: list[str] = []

    def load(folder: Path, trust: object, *, check_edits: bool) -> SimpleNamespace:
        names.append(folder.name)
        folds = [int(digit) for digit in folder.name.partition("-")[2]] or [0, 1]
        return SimpleNamespace(
            folder=folder,
            exp=SimpleNamespace(model=SimpleNamespace(target="monai.networks.nets.UNet")),
            members=lambda: [(fold, 0) for fold in folds],
            member_folder=lambda fold, seed: folder / f"fold_{fold}",
        )

    monkeypatch.setattr(find, "load_run", load)
    return names


def add_run(base: Path, name: str, **results: float) -> None:
    """Make a run's folder with results that were written at these times."""
    (base / name).mkdir(parents=True)
    (base / name / "experiment.yaml").touch()
    for member, time in results.items():
        path = base / name / member / "result.json"
        path.parent.mkdir()
        path.touch()
        os.utime(path, (time, time))


def latest(base: Path) -> str | None:
    run = find._latest_finished(base, ())
    return None if run is None else run.folder.name


def test_of_many_runs_one_is_read(tmp_path: Path, read: list[str]) -> None:
    for number in range(100):
        add_run(tmp_path, f"run{number:03d}", fold_0=1000.0 + number, fold_1=5000.0 + number * 37 % 100)
    expected = max(range(100), key=lambda number: number * 37 % 100)
    assert latest(tmp_path) == f"run{expected:03d}" and read == [f"run{expected:03d}"]


def test_an_unfinished_run_is_not_the_latest(tmp_path: Path, read: list[str]) -> None:
    assert latest(tmp_path) is None
    add_run(tmp_path, "empty")
    add_run(tmp_path, "half", fold_0=9000.0)
    assert latest(tmp_path) is None and read == ["half"]
    add_run(tmp_path, "old", fold_0=10.0, fold_1=20.0)
    assert latest(tmp_path) == "old"


def test_a_result_of_a_fold_that_is_not_selected_does_not_count(tmp_path: Path, read: list[str]) -> None:
    add_run(tmp_path, "a-0", fold_0=100.0, fold_1=300.0)  # only fold 0 is selected
    add_run(tmp_path, "b", fold_0=100.0, fold_1=200.0)
    add_run(tmp_path, "c", fold_0=50.0, fold_1=60.0)
    assert latest(tmp_path) == "b" and read == ["a-0", "b"]


def test_other_files_and_folders_do_not_count(tmp_path: Path, read: list[str]) -> None:
    add_run(tmp_path, "a", fold_0=100.0, fold_1=300.0)
    add_run(tmp_path, "b", fold_0=100.0, fold_1=200.0, pictures=900.0)
    (tmp_path / "b" / "fold_2").touch()
    assert latest(tmp_path) == "a" and read == ["a"]


@pytest.mark.parametrize(("budget", "total"), [("null", " of 2"), ("15", "")])
def test_the_progress_of_a_run_names_no_total_that_a_time_budget_ignores(tiny, tmp_path, budget: str, total: str):
    run = open_run(tiny(2, f"training.budget_minutes={budget}"), "tiny", root=tmp_path)
    run.write()
    folder = run.member_folder(1, 0)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 4, "epoch": 7, "time": 1.0, "metrics": {}}\n')
    assert find._progress(run) == f"0 of 2 folds are finished, fold_1 is at epoch 7{total}"


def test_the_progress_of_a_run_with_several_seeds_counts_networks(tiny, tmp_path):
    run = open_run(tiny(2, "seed=[1,2,3]"), "tiny", root=tmp_path)
    assert find._progress(run) == "0 of 6 networks are finished"
