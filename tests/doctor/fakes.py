"""Packages that are not there, are too old, or break when they are imported."""

from __future__ import annotations

from pathlib import Path

BLOCKER = '''
import os, sys

class Blocker:
    """Refuses what BLOCKED names, as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(os.environ["BLOCKED"].split(","))
sys.meta_path.insert(0, Blocker())
'''


def blocker(folder: Path) -> Path:
    """A `sitecustomize`, read by every Python that has the folder on its path."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


def package(folder: Path, name: str, version: str, source: str = "", needs: tuple[str, ...] = ()) -> None:
    """An installed package of one module."""
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {need}" for need in needs),
    ]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
