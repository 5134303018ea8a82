"""Simulation of packages that are not installed, are too old, or fail when they are imported."""

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
    """Write a `sitecustomize.py` that makes imports fail in each Python process that has the folder on its path.

    The environment variable `BLOCKED` contains the names of the packages, separated by commas.

    Returns:
        The folder.
    """
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


def package(folder: Path, name: str, version: str, source: str = "", needs: tuple[str, ...] = ()) -> None:
    """Write a package of one module to a folder, with the metadata of an installed package.

    Args:
        folder: the folder.
        name: name of the package and of the module.
        version: version of the package.
        source: code of the module.
        needs: requirements of the package, e.g. "numpy>=2".
    """
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
