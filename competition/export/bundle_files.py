"""Build the notebook and the README of a bundle."""

from __future__ import annotations

from typing import Any

from competition.text import format_count

FIND_CELL = """from pathlib import Path
import importlib.util, json, subprocess, sys

MOUNTED = Path("/kaggle/input")      # where the bundle and the competition are attached
OUTPUT = "submission.csv"
HOURS = {hours}                      # the time limit of the competition

bundle = next(path.parent for path in sorted(MOUNTED.rglob("bundle.json")))
manifest = json.loads((bundle / "bundle.json").read_text())

def is_competition(folder):          # it has the sample submission, or a folder that the YAML names for images
    return any((folder / name).exists() for name in manifest["marks"])

folders = [path for path in sorted(MOUNTED.rglob("*")) if path.is_dir() and bundle not in (path, *path.parents)]
competition = next(path for path in folders if is_competition(path))
print("bundle:", bundle, " competition:", competition)"""

INSTALL_CELL = """missing = [package for package in manifest["requirements"]
           if not all(importlib.util.find_spec(name) for name in package["modules"])]
print("missing:", ", ".join(package["name"] for package in missing) or "nothing")
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps",
                    "--find-links", str(bundle / "wheels"),
                    *(f"{package['name']}=={package['version']}" for package in missing)], check=True)"""

RUN_CELL = """# An unreadable case gets empty masks (--go-on), because a hidden test set allows no second attempt.
subprocess.run([sys.executable, str(bundle / "run.py"), "--input", str(competition), "--output", OUTPUT,
                "--hours", str(HOURS), "--go-on"], check=True)"""

SHOW_CELL = """print(*Path(OUTPUT).read_text().splitlines()[:3], sep="\\n")"""


# The notebook is built without the package nbformat, which would add nine packages (0.8 MB to download, 3.2 MB
# installed) to every installation, only to build one dictionary. The tests validate the notebook with nbformat.
def build_notebook(title: str, hours: float) -> dict[str, Any]:
    """Return the notebook of a bundle as plain data, in version 4.5 of the notebook format.

    Args:
        title: title of the notebook, a line of Markdown.
        hours: time limit of the competition in hours.
    """
    text = (
        f"# {title}\n\nAttach the bundle and the competition's data to the notebook, switch the internet "
        "off, and run all cells."
    )
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": _lines(text)}]
    for name, code in (
        ("find", FIND_CELL.replace("{hours}", f"{hours:g}")),
        ("install", INSTALL_CELL),
        ("run", RUN_CELL),
        ("show", SHOW_CELL),
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


# README.md

README_TEMPLATE = """# {title}

{networks}, exported by Maskfold {version}. Python {python} or newer and the packages of `requirements.txt` are
required. The bundle downloads nothing and unpickles nothing.

    python run.py --input /kaggle/input/x --output submission.csv --hours 9

- `--input` is the folder in which the host mounts the competition's data. The script predicts the test images in it.
- With `--hours 9`, the script measures the time of the first cases. If the time limit is too short, the script drops
  test-time augmentation first, then one network after the other, lowest weight first, and prints each change. If the
  time is sufficient, the script drops nothing. Cases that are not reached get empty masks.
- `--devices auto` uses all GPUs, or the CPU if there is no GPU. `--devices 1` uses the first GPU, `--devices cuda:1`
  the second GPU, and `--devices cpu,cpu` two processes on the CPU.
- `--go-on` gives empty masks to a case that cannot be read or predicted, instead of stopping.
- `--onnx` predicts with onnxruntime; it requires a bundle that was exported with `--onnx`{onnx}.

On Kaggle: make a dataset of this folder, attach it to `notebook.ipynb` together with the competition, and submit.

| content | file |
|---|---|
| runs with their weights | `runs/` |
| ensemble weights and post-processing | `bundle.json` |
| the code at the time of the export | `code/` |
| packages | `requirements.txt`{wheels} |
| SHA-256 of every file, checked by `run.py` | `manifest.json` |

| run | weight | networks |
|---|---|---|
{runs}

{expected}
"""


def build_readme(
    title: str, version: str, python: str, runs: list[dict[str, Any]], expected: str, wheels: bool, onnx: bool
) -> str:
    """Return the README of a bundle as Markdown.

    Args:
        title: title of the README.
        version: version of Maskfold.
        python: oldest supported Python version.
        runs: the entries of the runs in `bundle.json`.
        expected: sentence about the expected score.
        wheels: whether the bundle contains wheels.
        onnx: whether the bundle contains ONNX files.
    """
    rows = "\n".join(f"| {run['name']} {run['hash']} | {run['weight']:.4g} | {run['networks']} |" for run in runs)
    return README_TEMPLATE.format(
        title=title,
        version=version,
        python=python,
        networks=format_count(sum(run["networks"] for run in runs), "network"),
        runs=rows,
        expected=expected,
        wheels=", as wheels in `wheels/`" if wheels else "",
        onnx="" if onnx else ", unlike this bundle",
    )
