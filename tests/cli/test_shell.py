"""`maskfold --version`, and the completion of commands in bash and zsh, as a user installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import competition
from tests.conftest import ROOT

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed"))
    for shell in ("bash", "zsh")
]
START_FILES = {"bash": ".bashrc", "zsh": ".zshrc"}
# What the shell does when a user types `maskfold explo` and presses the tab key.
PRESS_TAB = {
    "bash": """
        COMP_WORDS=(maskfold explo); COMP_CWORD=1
        read -r _ _ _ _ function _ <<< "$(complete -p maskfold)"
        "$function" maskfold  # bash passes the name of the command
        echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        _arguments() { echo "$@" }
        words=(maskfold explo); CURRENT=2
        $_comps[maskfold]  # loads the function
        $_comps[maskfold]
    """,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home folder without files, with the command `maskfold` in `bin`."""
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "maskfold"
    command.write_text(f"#!{sys.executable}\nfrom competition.cli import main\nmain()\n")
    command.chmod(0o755)
    return folder


def run_in_shell(shell: str, script: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SHELL": shell,
    }
    # A command that is not the last one runs in a process of its own, so that its parent is the shell.
    return subprocess.run(
        [shell, "-c", f"{script}\n:"], cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_an_installed_completion_completes_commands(shell: str, home: Path) -> None:
    done = run_in_shell(shell, "maskfold --install-completion", home)
    assert shell in done.stdout and not done.stderr, done.stderr
    assert (home / START_FILES[shell]).is_file()
    done = run_in_shell(shell, f"source ~/{START_FILES[shell]}\n{PRESS_TAB[shell]}", home)
    assert "explore" in done.stdout and "export" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shown_completion_is_a_script_of_the_shell(shell: str, home: Path) -> None:
    shown = run_in_shell(shell, "maskfold --show-completion", home).stdout
    assert "_maskfold_completion" in shown and "_MASKFOLD_COMPLETE=complete_" in shown
    script = home / "completion"
    script.write_text(shown)
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60).stderr == ""
    assert {path.name for path in home.iterdir()} == {"bin", "completion"}, "showing installs nothing"


def test_version(home: Path) -> None:
    done = run_in_shell("bash", "maskfold --version && maskfold version", home)
    assert done.stdout.split() == ["maskfold", competition.__version__, competition.__version__]
