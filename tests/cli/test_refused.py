"""A command that is refused changes nothing: neither the run nor anything else in the project."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from competition.cli.main import main
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.runs.run import Run
from tests.conftest import ROOT, add_mlflow_database
from tests.runs.test_folder_locks import HOLD

pytestmark = pytest.mark.xdist_group("serial")  # commands that start processes of their own

SPACE = {"trials": 1, "space": {"optimizer.args.lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
# The commands that read or write a run, as words; `RUN` and `FILE` stand for the run's folder and its YAML.
READERS = {
    "submit": "submit RUN",
    "submit tuned": "submit RUN postprocess.tune=true",
    "report": "report RUN",
    "report inside": "report RUN -o RUN/report.html",
    "review": "review RUN",
    "register": "register RUN",
    "export": "export RUN -o bundle",
    "predict": "predict RUN --images data/test -o predictions",
    "folds": "folds FILE -o folds.csv",
}
TRAINERS = {
    "cv": "cv FILE",
    "cv of another YAML": "cv FILE training.checkpoint_minutes=7",
    "study": "study FILE --trials 1",
    "plan": "plan FILE --write --minutes 1",
    "import": "import imported --competition competition.yaml --name other",
}


@pytest.fixture
def project(
    finished: Callable[..., Run], tiny: Callable[..., Any], demo2d: Path, tmp_path: Path, empty_database: Path
) -> Run:
    """A project with data, an experiment's YAML and its finished run."""
    shutil.copytree(demo2d, tmp_path / "data")
    add_mlflow_database(tmp_path, empty_database)
    exp = tiny(2, f"competition.root={tmp_path / 'data'}")
    plain = {**resolve_config(exp), "study": SPACE}
    write_yaml(plain["competition"], tmp_path / "competition.yaml")
    write_yaml(plain, tmp_path / "unet2d.yaml")
    run = finished(load_experiment(tmp_path / "unet2d.yaml"), "demo2d-unet2d")
    shutil.copytree(tmp_path / "data" / "masks", tmp_path / "imported" / "test")
    return run


@pytest.fixture
def maskfold(
    project: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`maskfold("submit RUN", "key=value")`: run a command in this process; returns its status and its errors."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("competition.cli.train.LOCK_PATIENCE", 0.0)
    monkeypatch.setattr("competition.report.html.LOCK_PATIENCE", 0.0)

    def run(command: str, *more: str) -> tuple[int, str]:
        words = command.replace("RUN", str(project.folder)).replace("FILE", "unet2d.yaml").split()
        monkeypatch.setattr(sys, "argv", ["maskfold", *words, *more])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


def content(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, except locks, which commands take to see that they may work."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def assert_refused(
    maskfold: Callable[..., tuple[int, str]], folder: Path, commands: dict[str, str], *more: str, says: str = ""
) -> None:
    """Run each command, and check that it is refused and changes no file below the folder."""
    wrong = []
    for name, command in commands.items():
        before = content(folder)
        status, said = maskfold(command, *more)
        after = content(folder)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        if status == 0 or changed or "Traceback" in said or says not in said:
            wrong.append((name, status, said[-300:], changed))
    assert not wrong


def test_a_wrong_key(maskfold: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    commands = {name: command for name, command in {**TRAINERS, **READERS}.items() if name != "import"}
    assert_refused(maskfold, tmp_path, commands, "trainig.epochs=3", says="trainig")
    assert_refused(maskfold, tmp_path, {"import": TRAINERS["import"]}, "trainig=3", says="trainig")


def test_another_root_without_data(maskfold: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    commands = {**TRAINERS, **{name: READERS[name] for name in ("submit", "submit tuned", "review", "export")}}
    assert_refused(maskfold, tmp_path, commands, f"competition.root={tmp_path / 'empty'}")


def test_changed_masks(maskfold: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    first, second = sorted((tmp_path / "data" / "masks").iterdir())[:2]
    shutil.copy(first, second)
    commands = {name: READERS[name] for name in ("submit", "submit tuned", "report", "review")}
    assert_refused(maskfold, tmp_path, commands, says=second.stem)


def test_an_edited_yaml_in_the_runs_folder(
    project: Run, maskfold: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    path = project.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("seed: 12345", "seed: 12346"))
    assert_refused(maskfold, tmp_path, {name: READERS[name] for name in READERS if name != "folds"}, says="was changed")


def test_a_run_that_another_process_has(project: Run, maskfold: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        elsewhere = shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
        commands = {
            **{name: TRAINERS[name] for name in ("cv", "cv of another YAML")},
            "cv of other data folder": f"cv FILE competition.root={elsewhere}",
            "report inside": READERS["report inside"],
            "register": READERS["register"],
        }
        assert_refused(maskfold, tmp_path, commands, says=f"process {process.pid}")
        before = content(project.folder)
        maskfold("clean --yes --older-than 0h --keep-best 0")
        maskfold(READERS["submit tuned"])
        assert content(project.folder) == before
    finally:
        process.kill()
        process.communicate()
