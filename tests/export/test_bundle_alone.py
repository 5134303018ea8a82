"""A bundle where nothing of this project is installed: a new virtual environment, and no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from competition.context import Context
from competition.export.bundle import export_runs
from competition.submission.submit import submit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serial")]

ABSENT = (
    "mlflow",
    "optuna",
    "ray",
    "lightning",
    "pytorch_lightning",
    "albumentations",
    "matplotlib",
    "competition",
    "pytest",
    "rich",
)


def without_network() -> list[str]:
    """The words before a command that take its network away; none where this machine does not allow it."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        return []
    return words


def environment(folder: Path, requirements: Path) -> Path:
    """A Python with those packages of this one that a bundle asks for, as links, and none besides."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for line in requirements.read_text().split():
        tops = set()
        for file in metadata.distribution(line.split("==")[0]).files or []:
            tops.add(file.parts[0])
        home = Path(str(metadata.distribution(line.split("==")[0]).locate_file("")))
        for top in tops - {"..", "__pycache__"}:
            if (home / top).exists() and not (site / top).exists():
                (site / top).symlink_to(home / top)
    for given in metadata.distributions():  # PyTorch's own libraries, which come with it
        if re.match(r"nvidia[-_]", given.name or ""):
            for top in {file.parts[0] for file in given.files or []} - {".."}:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(str(given.locate_file(""))) / top)
    return folder / "bin" / "python"


def run(python: Path, words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*without_network(), str(python), "-I", *words], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def alone(finished, tiny, nuclei, tmp_path):
    """(run, bundle) by what it predicts; the export tries it in a process of its own."""

    def make(kind: str):
        args = {"3d": (3, "inference.tta=auto"), "2d": (2,)}
        exp = (
            nuclei(
                "postprocess.tune=true",
                "model.target=segmentation_models_pytorch.Unet",
                "model.args={encoder_name: resnet18, encoder_weights: null, encoder_depth: 3, "
                "decoder_channels: [16, 8, 8]}",
            )
            if kind == "objects"
            else tiny(*args[kind])
        )
        done = finished(exp, "demo-tiny")
        return done, export_runs([done], tmp_path / "bundle").folder

    return make


@pytest.mark.parametrize("kind", ["2d", "3d", "objects"])
def test_it_writes_what_submit_writes(alone, tmp_path, kind):
    made, folder = alone(kind)
    done = submit([made], output=tmp_path / "submit.csv")
    away = tmp_path / "away"
    away.mkdir()
    folder = Path(shutil.move(folder, away / "bundle"))
    python = environment(tmp_path / "venv", folder / "requirements.txt")
    for name in ABSENT:
        assert "ModuleNotFoundError" in run(python, ["-c", f"import {name}"], away).stderr, name
    if without_network():
        assert (
            "unreachable"
            in run(python, ["-c", "import socket; socket.create_connection(('1.1.1.1', 53), 5)"], away).stderr
        )
    found = run(
        python,
        [
            str(folder / "run.py"),
            "--input",
            str(made.exp.competition.root),
            "--output",
            str(away / "x.csv"),
            "--devices",
            "cpu",
        ],
        away,
    )
    assert found.returncode == 0, found.stderr
    assert (away / "x.csv").read_bytes() == done.path.read_bytes()
    assert not list(folder.rglob("__pycache__")) and "other versions" not in found.stdout


def test_the_notebooks_cells_find_everything_and_run(alone, tmp_path):
    made, folder = alone("2d")
    done = submit([made], output=tmp_path / "submit.csv")
    mounted = tmp_path / "kaggle" / "input"
    shutil.copytree(made.exp.competition.root, mounted / "competitions" / "demo2d")
    shutil.move(folder, mounted / "my-bundle")
    book = json.loads((mounted / "my-bundle" / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert '"/kaggle/input"' in cells[0]
    code = "\n".join(cells).replace('"/kaggle/input"', repr(str(mounted)))
    python = environment(tmp_path / "venv", mounted / "my-bundle" / "requirements.txt")
    work = tmp_path / "working"
    work.mkdir()
    found = run(python, ["-c", code], work)
    assert found.returncode == 0, found.stderr
    assert "missing: nothing" in found.stdout
    assert (work / "submission.csv").read_bytes() == done.path.read_bytes()


def test_a_missing_package_is_named_with_a_hint(alone, tmp_path):
    made, folder = alone("2d")
    python = environment(tmp_path / "venv", folder / "requirements.txt")
    next(tmp_path.glob("venv/lib/python*/site-packages/pydantic")).unlink()
    found = run(python, [str(folder / "run.py"), "--input", str(made.exp.competition.root)], tmp_path)
    assert (
        found.returncode == 1
        and "The package pydantic is not installed" in found.stderr
        and "--find-links wheels" in found.stderr
    )


def test_a_network_of_ones_own_comes_along(finished, tiny, tmp_path, monkeypatch):
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "__init__.py").write_text("from my_nets.small import Small\n")
    (tmp_path / "my_nets" / "small.py").write_text(
        "from torch import nn\n\n\nclass Small(nn.Sequential):\n    def __init__(self, in_channels, classes):\n"
        "        super().__init__(nn.Conv2d(in_channels, classes, 3, padding=1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MASKFOLD_TRUST", "my_nets")
    made = finished(tiny(2, "model.target=my_nets.Small", "model.args={in_channels: 1, classes: 3}"))
    done = submit([made], output=tmp_path / "submit.csv")
    monkeypatch.delenv("MASKFOLD_TRUST")
    folder = export_runs([made], tmp_path / "bundle", context=Context(("my_nets",))).folder
    shutil.rmtree(tmp_path / "my_nets")
    python = environment(tmp_path / "venv", folder / "requirements.txt")
    found = run(
        python,
        [
            str(folder / "run.py"),
            "--input",
            str(made.exp.competition.root),
            "--output",
            str(tmp_path / "x.csv"),
            "--devices",
            "cpu",
        ],
        tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "x.csv").read_bytes() == done.path.read_bytes()


def test_a_step_of_ones_own_comes_along(finished, tiny, tmp_path, monkeypatch):
    (tmp_path / "my_bundled_steps.py").write_text(
        "from competition.config.postprocess import Step\n\n\nclass Empty(Step):\n"
        "    def apply(self, current, case, index):\n        return current.restrict(current.mask & False)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MASKFOLD_TRUST", "my_bundled_steps")
    made = finished(tiny(2, "postprocess.steps={ring: [{target: my_bundled_steps.Empty}]}"))
    done = submit([made], output=tmp_path / "submit.csv")
    monkeypatch.delenv("MASKFOLD_TRUST")
    folder = export_runs([made], tmp_path / "bundle", context=Context(("my_bundled_steps",))).folder
    assert json.loads((folder / "bundle.json").read_text())["trust"] == ["my_bundled_steps"]
    (tmp_path / "my_bundled_steps.py").unlink()
    root = str(made.exp.competition.root)
    words = [str(folder / "run.py"), "--input", root, "--output", str(tmp_path / "x.csv"), "--devices", "cpu"]
    found = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "x.csv").read_bytes() == done.path.read_bytes()
