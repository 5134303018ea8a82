"""Packages: missing, too old, at odds with each other, broken, crashing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from competition.doctor import packages
from competition.doctor.finding import CheckResult
from competition.doctor.packages import ProjectRequirements, parse_requirement, read_requirements
from tests.doctor.fakes import blocker, package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are found first, here and in the doctor's other process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def look(monkeypatch: pytest.MonkeyPatch, *needs: str, python: str = ">=3.11") -> dict[str, CheckResult]:
    """The rows for these needs, by what they are about."""
    monkeypatch.setattr(
        packages, "read_requirements", lambda: ProjectRequirements(python, [parse_requirement(need) for need in needs])
    )
    return {row.name: row for row in packages.check_packages()}


def test_needs_are_those_of_pyproject() -> None:
    needs = read_requirements()
    assert needs is not None
    assert needs.python == ">=3.11"
    names = {need.name for need in needs.packages}
    assert {"torch", "torchvision", "mlflow", "optuna", "monai"} <= names
    assert "pytest" not in names
    assert {"ray", "postgres", "kaggle", "dashboard"} <= needs.extras.keys()
    assert "dev" not in needs.extras


def test_what_is_well_is_one_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "goodone", "1.5", "value = 1")
    rows = look(monkeypatch, "goodone>=1.5")
    assert rows.keys() == {"python", "packages"}
    assert "goodone 1.5" in rows["packages"].detail
    assert {row.state for row in rows.values()} == {"ok"}


def test_missing_and_too_old_are_named_with_their_cure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "oldone", "1.9")
    package(place, "newone", "1.10")
    rows = look(monkeypatch, "oldone>=1.10", "newone>=1.9", "nowhereone>=3")
    assert (rows["oldone"].state, rows["nowhereone"].state) == ("unusable", "unusable")
    assert rows["oldone"].text == (
        "1.9 is installed, but oldone>=1.10 is required. "
        'Install a matching version: python -m pip install "oldone>=1.10".'
    )
    assert 'python -m pip install "nowhereone>=3"' in rows["nowhereone"].text
    assert "newone" not in rows, "1.10 is newer than 1.9"


def test_files_of_a_package_that_are_gone_count_as_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "hollowone", "2.0")
    (place / "hollowone.py").unlink()
    assert "is not installed" in look(monkeypatch, "hollowone>=1")["hollowone"].detail


def test_an_older_python_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, python=">=4.0")["python"].state == "unusable"


def test_torchvision_of_another_torch_is_found_by_importing_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "torch", "2.9.0")
    package(
        place,
        "torchvision",
        "0.29.2",
        "raise RuntimeError('operator torchvision::nms does not exist')",
        ("torch==2.15.0",),
    )
    rows = look(monkeypatch, "torch>=2.9", "torchvision>=0.24")
    assert "torch" not in rows
    assert rows["torchvision"].state == "unusable"
    assert "operator torchvision::nms does not exist" in rows["torchvision"].detail
    assert "requires torch==2.15.0, but torch 2.9.0 is installed" in rows["torchvision"].detail
    assert '"torch==2.15.0" torchvision==0.29.2' in rows["torchvision"].hint


def test_versions_that_quarrel_but_import_are_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(
        place, "askingone", "1.0", needs=("middleone", "unused; python_version < '3'", "optionalone; extra == 'more'")
    )
    package(place, "middleone", "1.0", needs=("deepone<2",))
    package(place, "deepone", "2.1")
    rows = look(monkeypatch, "askingone")
    assert rows["middleone"].state == "warning"
    assert rows["middleone"].detail == "requires deepone<2, but deepone 2.1 is installed"
    assert rows.keys() == {"python", "packages", "middleone"}


def test_an_import_that_crashes_does_not_hide_the_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "firstone", "1.0", "print('noise on standard output')")
    package(place, "crashone", "1.0", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    package(place, "exitone", "1.0", "raise SystemExit(3)")
    package(place, "lastone", "1.0")
    rows = look(monkeypatch, "firstone", "crashone", "exitone", "lastone")
    assert "crashed (signal 11)" in rows["crashone"].detail
    assert "SystemExit" in rows["exitone"].detail
    assert rows["packages"].detail == "2 importable: firstone 1.0, lastone 1.0"


def test_a_file_of_the_working_folder_is_no_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "goodone", "1.0")
    (place / "work").mkdir()
    (place / "work" / "goodone.py").write_text("raise RuntimeError('the wrong file')")
    monkeypatch.chdir(place / "work")
    assert look(monkeypatch, "goodone")["packages"].state == "ok"


def test_extras_that_are_absent_are_no_fault(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(place, "oldray", "1.0")
    package(place, "fineone", "1.0")
    extras = {
        "ray": [parse_requirement("oldray>=2")],
        "kaggle": [parse_requirement("nowhereone>=2")],
        "postgres": [parse_requirement("fineone[binary]>=1")],
    }
    monkeypatch.setattr(packages, "read_requirements", lambda: ProjectRequirements("", [], extras))
    rows = {row.name: row for row in packages.check_extras()}
    states = {what: row.state for what, row in rows.items()}
    assert states == {"extra [ray]": "warning", "extra [kaggle]": "ok", "extra [postgres]": "ok"}
    assert 'pip install "maskfold[kaggle]"' in rows["extra [kaggle]"].detail
    assert "fineone 1.0" in rows["extra [postgres]"].detail


def test_with_nothing_installed_the_table_is_printed(tmp_path: Path) -> None:
    """Every package of the project is blocked, `packaging` too: Python's own modules are enough."""
    needs = read_requirements()
    assert needs is not None
    blocked = {packages.module_name(need.name).partition(".")[0] for need in needs.packages} | {"packaging"}
    (tmp_path / "site").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(blocker(tmp_path / "site")), str(ROOT)]),
        "BLOCKED": ",".join(blocked),
    }
    done = subprocess.run(
        [sys.executable, "-m", "competition.doctor"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    for name in ("torch", "numpy", "rich", "mlflow"):
        assert lines[name].startswith("unusable")
        assert "pip install" in lines[name]
    assert lines["memory"].startswith(("ok", "warning")), "known without psutil"
    assert lines["mlruns/"].split()[0] in ("ok", "warning")
    assert "torch" in done.stdout.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [tmp_path / "site"], "nothing is left behind"
