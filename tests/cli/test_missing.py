"""A package that is missing is one line, not a traceback."""

from __future__ import annotations

import subprocess
import sys


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from competition.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "typer" in ended.stderr and "python -m competition.doctor" in ended.stderr


def test_the_command_can_be_called_again() -> None:
    from competition import cli

    assert callable(cli.main)
    import competition.cli.main

    assert callable(competition.cli.main)
