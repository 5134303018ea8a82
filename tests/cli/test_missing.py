"""A missing package or Ctrl-C during the import is a message, not a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `maskfold ARGUMENTS` without a package, and with a doctor that only prints a word."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['maskfold', *{list(arguments)!r}]\n"
        "from competition.doctor import checks; checks.print_report = lambda: print('the table') or 1\n"
        "from competition.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("package", ["pydantic", "typer", "rich"])
def test_the_doctor_runs_without_a_package(package: str) -> None:
    done = run_without(package, "doctor")
    assert (done.returncode, done.stdout) == (1, "the table\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["pydantic", "rich"])
def test_another_command_names_the_missing_package(package: str) -> None:
    done = run_without(package, "version")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert package in done.stderr and "python -m competition.doctor" in done.stderr


def test_a_missing_file_of_this_package_is_a_bug() -> None:
    done = run_without("competition.cli.console", "doctor")
    assert done.returncode == 1 and "Traceback" in done.stderr and "competition.cli.console" in done.stderr


def test_missing_package_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from competition.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "typer" in ended.stderr and "python -m competition.doctor" in ended.stderr


def test_main_stays_callable_after_the_import_of_its_module() -> None:
    from competition import cli

    assert callable(cli.main)
    import competition.cli.main

    assert callable(competition.cli.main)


def test_ctrl_c_during_the_import() -> None:
    code = (
        "import sys\n"
        "class Late:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Late)\n"
        "from competition.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
