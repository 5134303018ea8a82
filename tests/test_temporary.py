"""What a killed command left under temporary names is removed by the next one; files of living processes stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from competition.datasets.demo import make_folder
from competition.ensembling import ensemble
from competition.explore import discovery, explore
from competition.io import TEMPORARY_NAME, make_temporary_path, temporary_folder
from competition.report.html import create_figure_folder
from tests.host import competition, pictures

KILLED = """
import os, signal, sys
from pathlib import Path
from competition.io import atomic_write, temporary_folder
def write(file):
    file.write(b"half")
    file.flush()
    with temporary_folder(Path(sys.argv[2])) as folder:
        (folder / "content").touch()
        os.kill(os.getpid(), signal.SIGKILL)
atomic_write(Path(sys.argv[1]), write)
"""


def kill_while_writing(file: Path, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(file), str(folder)], check=False, env=os.environ)
    assert [path for path in file.parent.iterdir() if path.name.startswith(f".{file.name}~")]
    assert [path for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}~")]


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if TEMPORARY_NAME.fullmatch(path.name)]


def test_a_page_removes_the_pictures_of_a_killed_one(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    figures = create_figure_folder(page)
    kill_while_writing(figures / "curves.png", figures / "x")
    kill_while_writing(page, tmp_path / "other")
    living, other = make_temporary_path(figures / "curves.png"), make_temporary_path(tmp_path / "run.html")
    for path in (living, other):
        path.touch()
    create_figure_folder(page)
    assert {path for path in hidden(tmp_path) if not path.name.startswith(".other")} == {living, other}


def test_a_temporary_folder_removes_those_of_killed_processes(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "file", tmp_path / "work")
    with temporary_folder(tmp_path / "work") as mine:
        assert [path.name for path in hidden(tmp_path) if path.is_dir()] == [mine.name]
        with temporary_folder(tmp_path / "work"):
            assert mine.is_dir(), "a living process may have two"
    assert [path for path in hidden(tmp_path) if path.is_dir()] == []


def test_an_exploration_removes_the_folders_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(discovery, "SCRATCH", scratch / "explore")
    kill_while_writing(tmp_path / "file", scratch / "explore")
    pictures(tmp_path, ["a", "A", "b"])  # two ids that differ in case: it needs a temporary folder
    assert explore(competition(tmp_path)).faults
    assert list(scratch.iterdir()) == []


def test_a_demo_removes_the_folder_of_a_killed_one(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "file", tmp_path / "demo")
    assert make_folder(tmp_path / "demo", {"demo": "x"}, lambda folder: (folder / "a").touch())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["demo"]


def test_a_submission_removes_the_test_case_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_while_writing(tmp_path / "file", tmp_path / "test")

    def preprocess(_row: Any, _exp: Any, folder: Path, *, durable: bool) -> Path:
        assert not durable  # the folder is removed at the end of the block
        return folder

    monkeypatch.setattr(ensemble, "preprocess_case", preprocess)
    monkeypatch.setattr(ensemble.PreprocessedCase, "open", lambda folder: folder)
    no_runs: Any = SimpleNamespace(comp=None, runs=(), active=[])
    scratch = ensemble.EnsemblePredictor(no_runs, None, scratch=tmp_path).scratch
    with ensemble._preprocessed(SimpleNamespace(), SimpleNamespace(exp=None), scratch) as folder:  # type: ignore[arg-type]
        assert [path for path in hidden(tmp_path) if path.is_dir()] == [folder]
