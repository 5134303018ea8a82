"""Questions that another process answers: an import that crashes or hangs must not take the table with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import competition


@dataclass(frozen=True)
class Answer:
    """What the process said before it ended.

    Attributes:
        lines: one dictionary a line.
        trouble: why it ended otherwise than well, e.g. `it crashed (signal 11)`; None if it ended well.
    """

    lines: list[dict[str, Any]]
    trouble: str | None


def ask(question: str, *words: str, root: Path | None = None, seconds: float = 120.0) -> Answer:
    """Ask `competition.doctor.probe` in a process of its own.

    Args:
        question: the name of a function of that module.
        words: its arguments.
        root: the folder to ask it in; the working folder by default.
        seconds: after which it is ended.
    """
    here = str(Path(competition.__file__).resolve().parents[1])  # where `competition` itself was found
    paths = [path for path in (os.environ.get("PYTHONPATH"), here) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    # -P: a file of the user's folder that is called torch.py is not torch
    command = [sys.executable, "-P", "-m", "competition.doctor.probe", question, *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=root,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Answer(_lines(late.stdout or b""), f"no answer after {seconds:.0f} s")
    except OSError as error:
        return Answer([], f"no process could be started: {error.strerror or error}")
    trouble = None
    if done.returncode < 0:
        trouble = f"it crashed (signal {-done.returncode})"
    elif done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        trouble = said[-1][:300] if said else f"it ended with status {done.returncode}"
    return Answer(_lines(done.stdout), trouble)


def _lines(output: bytes) -> list[dict[str, Any]]:
    found = []
    for line in output.decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a process that was ended
    return found
