"""The heavy libraries that each command imports; torch alone takes seconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from competition.cli.main import app, main
from tests.conftest import add_mlflow_database

OLD = Path(__file__).parent / "data" / "old_run"
ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "albumentations",
    "cv2",
    "lightning",
    "matplotlib",
    "mlflow",
    "monai",
    "nibabel",
    "optuna",
    "pandas",
    "ray",
    "scipy",
    "skimage",
    "sklearn",
    "torch",
    "torchvision",
}
# The command runs, then names the libraries that it imported.
RUN = """
import sys
from competition.cli import main
try:
    main()
except SystemExit as end:
    print("status", end.code or 0)
print("imported", *sorted({name.split(".")[0] for name in sys.modules}))
"""
# Doctor imports the libraries in other processes; here these answer nothing.
NO_PROBES = """
from competition.doctor import machine, packages, stores
from competition.doctor.probe import ProbeResult
machine.run_probe = packages.run_probe = stores.run_probe = lambda *_, **__: ProbeResult([], None)
"""


def imported(words: list[str], folder: Path, before: str = "", status: str = "0") -> set[str]:
    """Run a command in a new process; return the heavy libraries that it imported."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-c", before + RUN, *words],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert lines[-2].split()[0] == "status" and lines[-2].split()[1] in status, done.stdout + done.stderr
    return HEAVY & set(lines[-1].split())


def test_the_help_of_no_command_imports_a_heavy_library(tmp_path: Path) -> None:
    commands = sorted(get_command(app).commands)  # type: ignore[attr-defined]
    assert {"cv", "doctor", "explore", "ledger", "predict", "report", "score", "study", "submit"} <= set(commands)
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from competition.cli.main import app\n"
        f"for name in {commands}:\n"
        "    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0, name\n"
        "sys.argv = ['maskfold', '--help']\n"
    )
    assert imported([], tmp_path, before=code) == set()


@pytest.fixture
def project(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A finished run that MLflow knows, and a ledger with two submissions."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    add_mlflow_database(tmp_path, empty_database)
    monkeypatch.chdir(tmp_path)
    shutil.copy("data/sample_submission.csv", "empty.csv")
    before = signal.getsignal(signal.SIGTERM)
    for words in (
        ["cv", "unet.yaml"],
        ["ledger", "--add", "expected/submission.csv", "--competition", "competition.yaml", "--public", "0.9"],
        ["ledger", "--add", "empty.csv", "--competition", "competition.yaml", "--public", "0.1"],
    ):
        monkeypatch.setattr(sys, "argv", ["maskfold", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
    signal.signal(signal.SIGTERM, before)
    return tmp_path


def test_a_command_imports_only_the_libraries_that_it_needs(project: Path) -> None:
    """One test, because its commands share a project."""
    solution = ["--solution", "expected/submission.csv"]
    found = {
        "ledger": imported(["ledger"], project),
        "score": imported(["score", "empty.csv", "--competition", "competition.yaml", *solution], project),
        "explore": imported(["explore", "competition.yaml"], project),
        "cv, finished": imported(["cv", "unet.yaml"], project),
        "watch": imported(["watch", "--once"], project),
        "doctor": imported(["doctor"], project, before=NO_PROBES, status="01"),
    }
    allowed: dict[str, set[str]] = {
        "ledger": {"pandas", "scipy"},
        "score": {"pandas", "scipy"},  # scipy: the interval
        "explore": {"cv2", "matplotlib", "pandas", "scipy"},
        "cv, finished": {"pandas"},
        "watch": set(),
        "doctor": set(),
    }
    assert {name: libraries - allowed[name] for name, libraries in found.items()} == {name: set() for name in found}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("competition.cli.main", set()),
        ("competition.cli.clean", set()),
        ("competition.cli.data", set()),
        ("competition.cli.train", set()),
        ("competition.cli.submit", set()),
        ("competition.cli.exchange", set()),
    ],
)
def test_the_module_of_a_command_is_light(module: str, allowed: set[str], tmp_path: Path) -> None:
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert HEAVY & set(done.stdout.split()) <= allowed


def test_out_of_fold_predictions_are_opened_without_torch(tmp_path: Path) -> None:
    """The table of a finished run opens them, to look up its search of post-processing."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from competition.runs.run import load_run\n"
        "run = load_run(next(Path().rglob('folds.csv')).parent)\n"
        "assert len(run.oof().cases) > 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout.split()
