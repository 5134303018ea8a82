"""Fixtures: a process that runs commands quickly (the stage), a small competition, and an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.toy import Stage, words_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as `faults`, and run them in one worker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")
            item.add_marker(pytest.mark.xdist_group("serial"))


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A process that runs commands of Maskfold in forked children; see `tests.faults.stage`."""
    log = tmp_path_factory.mktemp("stage") / "stage.txt"
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.stage"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        )
    assert process.stdin is not None and process.stdout is not None
    ready = process.stdout.readline()
    assert ready and json.loads(ready)["threads"] == 1, f"{ready} {log.read_text()}"  # a fork copies one thread only
    yield Stage(process)
    process.stdin.close()
    process.wait(120)


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D demo competition of 6 training and 2 test pictures."""
    from competition.datasets.demo import make_demo

    folder = tmp_path_factory.mktemp("faults") / "demo2d"
    make_demo("2d", folder, seed=3, cases=6, test_cases=2)
    return folder


@pytest.fixture(scope="session")
def whole(stage: Stage, small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with a run that was never interrupted."""
    cwd = tmp_path_factory.mktemp("whole")
    stage.run(cwd, *words_of(small_demo))
    return cwd
