"""A missing package or Ctrl-C during the import is a message, not a traceback."""

from __future__ import annotations

import subprocess
import sys


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
