"""The folder of something made on the spot: whole or not at all, its marker, and the files a host would put there."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError

MARKER = ".maskfold-demo.json"
PLACEHOLDER = "1 1"  # what hosts write into the sample's mask column

Array = np.ndarray[Any, Any]


def make_folder(folder: Path, marker: dict[str, Any], fill: Callable[[Path], None]) -> bool:
    """Make a folder whole or not at all: fill another one beside it, mark it, and put it in place.

    Args:
        folder: where it will lie. An older one of ours is replaced; phantoms replace only phantoms of their layout.
        marker: what was made, from what: name, version, seed, numbers. The same marker means the same files.
        fill: writes all files into the existing, empty folder that it is given.

    Returns:
        True if it was made, False if the same one was there already.

    Raises:
        MaskfoldError: the folder holds something else, or it cannot be written.
    """
    try:
        if _is_there(folder, marker):
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            new = Path(beside) / "new"
            new.mkdir()
            fill(new)
            (new / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(Path(beside) / "old")
            new.rename(folder)
    except OSError as error:
        if _marker(folder) == marker:  # another process was faster
            return False
        raise MaskfoldError(f"The demo cannot be written to {folder}: {error.strerror or error}.",
                            "Choose a folder that you may write to, or free some space.") from error
    return True


def case_ids(prefix: str, count: int, seed: int) -> list[str]:
    """Ids in an order that tells neither what a case holds nor whether it is a training case."""
    numbers = np.random.default_rng([seed, 0]).permutation(count) + 1
    return [f"{prefix}_{number:03d}" for number in numbers]


def write_png(path: Path, array: Array) -> None:
    """Write a (H, W) uint8 array."""
    import cv2

    _, data = cv2.imencode(".png", array)
    path.write_bytes(data.tobytes())


def write_nifti(path: Path, array: Array, affine: Array) -> None:
    """Write an (X, Y, Z) array with its affine (4, 4), in mm."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_tables(folder: Path, truth: dict[str, Array], classes: Sequence[str], seed: int,
                 columns: Sequence[str] = ("id", "class", "predicted")) -> None:
    """Write `sample_submission.csv` and `solution.csv`: one row per test case and class, shuffled once.

    Args:
        folder: where they go.
        truth: labels (*spatial) by case; class number 1 is the first of `classes`.
        classes: their names.
        seed: of the order.
        columns: the header; with two names there is no column of classes.
    """
    from competition.rle import RleFormat, encode

    rows = [(case, number, name) for case in sorted(truth) for number, name in enumerate(classes, 1)]
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    form = RleFormat()  # column order, base 1, empty text for no mask
    for file, hidden in (("sample_submission.csv", False), ("solution.csv", True)):
        with open(folder / file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            for case, number, name in (rows[position] for position in order):
                text = encode(truth[case] == number, form) if hidden else PLACEHOLDER
                writer.writerow((case, name, text) if len(columns) == 3 else (case, text))


def _is_there(folder: Path, marker: dict[str, Any]) -> bool:
    """Whether this very demo is in the folder.

    Raises:
        MaskfoldError: the folder holds something that is not a demo, or phantoms of another layout.
        OSError: it cannot be looked into.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MARKER).is_file():
        raise MaskfoldError(f"{folder} is there already and is not a demo that maskfold made.",
                            "Choose another folder, or move this one away.")
    found = _marker(folder)
    if found is not None and found.get("layout") != marker.get("layout"):
        held = f"phantoms in the layout of {found['layout']}" if found.get("layout") else f"the demo {found.get('demo')}"
        raise MaskfoldError(f"{folder} holds {held}.", "Choose another folder, or remove this one.")
    return found == marker


def _marker(folder: Path) -> dict[str, Any] | None:
    """What a demo's marker says; None where there is none or it is damaged, so that the demo is made again."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
