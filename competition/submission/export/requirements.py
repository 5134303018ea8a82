"""The packages that a bundle needs, in the versions of this machine, and their wheels."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from competition.config import MaskfoldError
from competition.submission.offline.trial import REFUSED

# Gigabytes that every notebook with a GPU has, built for its driver; no wheel of them is fetched.
GIVEN = ("torch", "torchvision", "triton")
BESIDE = ("nvidia-", "cuda-")  # what PyTorch brings along


@dataclass(frozen=True)
class Pin:
    """A package: its name and version, and the modules that a bundle imports from it."""

    name: str
    version: str
    modules: tuple[str, ...]

    def line(self) -> str:
        """As in requirements.txt."""
        return f"{self.name}=={self.version}"


def trial(folder: Path, root: Path, row: Any, onnx: bool) -> set[str]:
    """Runs one patch through a bundle, in a process without anything of a training, and notes what it imports.

    Args:
        folder: the bundle.
        root: the competition's.
        row: of a case table.
        onnx: whether by onnxruntime.

    Returns:
        Names of top-level modules.

    Raises:
        MaskfoldError: the bundle does not run.
    """
    words = json.dumps(
        {"folder": str(folder.resolve()), "root": str(root), "row": vars(row), "onnx": onnx}, default=int
    )
    code = str((folder / "code").resolve())
    script = f"import sys, runpy; sys.path.insert(0, {code!r}); runpy.run_module('competition.submission.offline.trial', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-B", "-P", "-c", script], input=words, capture_output=True, text=True, check=False
    )
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    if done.returncode == REFUSED:
        said = json.loads(last)
        raise MaskfoldError(f"The bundle does not run by itself: {said['wrong']}", said["cure"])
    if done.returncode:
        raise MaskfoldError(
            f"The bundle does not run by itself: {last}.",
            "If a network needs a package of your own, name it with --trust.",
        )
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


def pins(imported: set[str], named: Iterable[str]) -> list[Pin]:
    """What was imported, of the packages that our files name and of all that these require in turn.

    Args:
        imported: top-level modules of a process that predicted.
        named: top-level modules that our files and the networks' targets name.
    """
    homes = metadata.packages_distributions()
    start = {normal(home) for name in named if name in imported for home in homes.get(name, [])}
    allowed = _closure(start)
    modules: dict[str, set[str]] = {}
    for name in imported:
        for home in homes.get(name, []):
            if normal(home) in allowed:
                modules.setdefault(normal(home), set()).add(name)
    return [
        Pin(name, metadata.version(name).split("+")[0], tuple(sorted(found))) for name, found in sorted(modules.items())
    ]


def fetch_wheels(wanted: Iterable[Pin], folder: Path) -> int:
    """Downloads the wheels of these packages by pip, each by itself; PyTorch's own are left to the machine.

    Returns:
        How many wheels are there.

    Raises:
        MaskfoldError: pip cannot have one.
    """
    folder.mkdir()
    lines = [pin.line() for pin in wanted if pin.name not in GIVEN and not pin.name.startswith(BESIDE)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(folder),
            *lines,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no word"]
        raise MaskfoldError(
            f"The wheels cannot be fetched: {told[-1]}.",
            "Connect to the network, or leave --wheels out and attach the packages in another way.",
        )
    return sum(1 for _ in folder.iterdir())


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(start: set[str]) -> set[str]:
    """Packages and all that they require on this machine, extras aside."""
    found: set[str] = set()
    todo = list(start)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # required elsewhere, or not at all
        found.add(name)
        wanted = [Requirement(line) for line in lines]
        todo += [normal(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found
