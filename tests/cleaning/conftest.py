"""Fixtures of the cleaning tests: a project folder, and runs in it that are made without training."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.cleaning import candidates
from competition.cleaning.mlflow_records import MlflowRecords
from competition.training.cross_validate import open_run

DAY = 86_400.0
MONTH = 30 * DAY
Make = Callable[..., Path]


def age(path: Path, days: float) -> None:
    """Set the modification time of a file, or of a folder and all its contents, to `days` days before now."""
    then = time.time() - days * DAY
    for one in [path, *path.rglob("*")]:
        os.utime(one, (then, then), follow_symlinks=False)


def result(fold: int, seed: int = 0) -> str:
    """Return the text of a fold's `result.json`."""
    plain = {"fold": fold, "seed": seed, "score": 0.5, "dice": {}, "epochs": 1, "steps": 1, "minutes": 1.0}
    more = {"peak_gib": 1.0, "threads": 1, "precision": "32-true", "device": "cpu", "torch": "2", "stopped": "done"}
    return json.dumps({**plain, **more})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; instead of a real MLflow store, the code under test sees an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(candidates, "read_mlflow", lambda _root: MlflowRecords())
    monkeypatch.setattr(candidates, "gettempdir", lambda: str(tmp_path / "system"))
    return tmp_path


@pytest.fixture
def make_run(project: Path, tiny: Callable[..., object], once: Callable[..., Path]) -> Make:
    """`make_run("0123456789ab", finished=1, days=60)`: make a run of two folds, and return its path.

    The path is relative to the project. `finished` is the number of finished folds, `days` is the age of the files, and
    `sections` are top-level keys of `experiment.yaml` whose value null is replaced.
    """

    def make(
        name: str,
        finished: int = 1,
        days: float = 60,
        score: float | None = None,
        experiment: str = "demo2d-tiny",
        **sections: str,
    ) -> Path:
        def build(folder: Path) -> None:
            folder.mkdir()
            run = open_run(tiny(2), "demo2d-tiny", root=folder)
            run.write()

        source = next(once("cleaning", build).rglob("cases.csv")).parent
        folder = Path("mlruns") / "runs" / experiment / name
        shutil.copytree(source, folder)
        for fold in range(2):
            member = folder / f"fold_{fold}"
            member.mkdir()
            (member / "last.pt").write_bytes(bytes(1000))
            if fold < finished:
                (member / "result.json").write_text(result(fold))
        if score is not None:
            (folder / "summary.json").write_text(json.dumps({"metric": "dice", "score": score}))
        yaml = folder / "experiment.yaml"
        for key, value in sections.items():
            text = yaml.read_text()
            assert f"\n{key}: null\n" in text, f"{key} is not in the YAML"
            yaml.write_text(text.replace(f"\n{key}: null\n", f"\n{key}: {value}\n"))
        age(folder, days)
        return folder

    return make
