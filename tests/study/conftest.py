"""Fixtures: a folder for studies, and studies whose trials take no time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.study.space import ExperimentSource
from competition.study.study import StudySession, open_study
from tests.study.quick import YAML, by_rate, install, write_experiment


@pytest.fixture
def place(demo2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the 2D demo's data; its parent folder becomes the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(demo2d, tmp_path / "data"))


@pytest.fixture
def quick(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudySession]:
    """`quick(text, score=…, overrides=…)`: open a study in which the results of folds are written without training.

    `text` is the YAML of the experiment; see `tests.study.quick.QuickExecutor` for `score`.
    """

    def make(
        text: str = YAML, score: Callable[[Any, int, int], float] = by_rate, overrides: tuple[str, ...] = ()
    ) -> StudySession:
        install(monkeypatch.setattr, score)
        return open_study(ExperimentSource(write_experiment(place, text), overrides))

    return make
