"""The notebook of a bundle: nbformat 4, written by hand."""

from __future__ import annotations

from typing import Any

FIND = """from pathlib import Path
import importlib.util, json, subprocess, sys

MOUNTED = Path("/kaggle/input")      # where the bundle and the competition are attached
OUTPUT = "submission.csv"
HOURS = {hours}                      # the time limit of the competition

bundle = next(path.parent for path in sorted(MOUNTED.rglob("bundle.json")))
about = json.loads((bundle / "bundle.json").read_text())

def looks_right(folder):             # the competition: its sample, or a folder that its YAML names
    return any((folder / name).exists() for name in about["marks"])

folders = [path for path in sorted(MOUNTED.rglob("*")) if path.is_dir() and bundle not in (path, *path.parents)]
competition = next(path for path in folders if looks_right(path))
print("bundle:", bundle, " competition:", competition)"""

INSTALL = """missing = [one for one in about["requirements"]
           if not all(importlib.util.find_spec(name) for name in one["modules"])]
print("missing:", ", ".join(one["name"] for one in missing) or "nothing")
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", str(bundle / "wheels"),
                    *(f"{one['name']}=={one['version']}" for one in missing)], check=True)"""

RUN = """# A case that cannot be read gets empty masks (--go-on): a hidden test set gives no second try.
subprocess.run([sys.executable, str(bundle / "run.py"), "--input", str(competition), "--output", OUTPUT,
                "--hours", str(HOURS), "--go-on"], check=True)"""

SHOW = """print(*Path(OUTPUT).read_text().splitlines()[:3], sep="\\n")"""


def notebook(title: str, hours: float) -> dict[str, Any]:
    """The notebook as plain data.

    Args:
        title: a line of Markdown.
        hours: the time limit that stands in it.
    """
    text = f"# {title}\n\nAttach the bundle and the competition's data, switch the network off, and run all cells."
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": _lines(text)}]
    for name, code in (
        ("find", FIND.replace("{hours}", f"{hours:g}")),
        ("install", INSTALL),
        ("run", RUN),
        ("show", SHOW),
    ):
        cells.append(
            {
                "cell_type": "code",
                "id": name,
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": _lines(code),
            }
        )
    return {
        "cells": cells,
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
