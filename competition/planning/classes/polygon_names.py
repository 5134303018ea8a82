"""Find the class names of label values in JSON files of polygons beside the masks, as in Cityscapes and labelme."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.readers import read_labels
from competition.errors import MaskfoldError
from competition.planning.layout import Layout

SAMPLE = 24  # masks that are compared with their polygons
MAX_BYTES = 2**24  # a larger file is not read
MIN_VOTES = 0.8  # share of a value's pixels that the polygons of its name cover
Polygon = tuple[str, np.ndarray]  # name, and corners (N, 2) as x and y


def names_by_polygons(layout: Layout, values: Sequence[int]) -> tuple[list[str], str]:
    """Return the class name of each label value, read from JSON files with named polygons.

    Args:
        layout: layout of 2D images with a label file for each case.
        values: the label values.

    Returns:
        The names in the order of `values`, and the path of one of the JSON files. Both are empty if the name of
        any value is unclear, or if two values have the same name.
    """
    if layout.dimensions != 2 or not layout.folder.jsons or set(layout.mask_files) != {""}:
        return [], ""
    files = layout.mask_files[""]
    ids = sorted(files)[:: max(1, len(files) // SAMPLE)]
    votes: dict[int, Counter[str]] = {}
    example = ""
    for case_id in ids:
        source = _polygon_file(layout, case_id, files[case_id][0])
        polygons = _read_polygons(layout.folder.root / source) if source else []
        if polygons:
            example = example or source
            _vote(layout.folder.root / files[case_id][0], polygons, votes)
    names = []
    for value in values:
        name, count = votes[value].most_common(1)[0] if votes.get(value) else ("", 0)
        names.append(name if name and count >= MIN_VOTES * votes[value].total() else "")
    return (names, example) if all(names) and len(set(map(str.casefold, names))) == len(names) else ([], "")


def _polygon_file(layout: Layout, case_id: str, mask: str) -> str:
    """Return the path of a JSON file whose name contains the case's id, preferably in the mask's folder.

    Return an empty text if no file name contains the id.
    """
    named = [path for path in layout.folder.jsons if case_id in path.rpartition("/")[2]]
    folder = mask.rpartition("/")[0]
    return max(named, key=lambda path: (path.rpartition("/")[0] == folder, -len(path)), default="")


def _read_polygons(path: Path) -> list[Polygon]:
    if path.stat().st_size > MAX_BYTES:
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        items = content.get("objects") or content.get("shapes") or []
        found = [(str(item["label"]), _corners(item)) for item in items]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [(name, corners) for name, corners in found if name and corners.ndim == 2 and corners.shape[1:] == (2,)]


def _corners(item: dict[str, Any]) -> np.ndarray:
    return np.rint(np.asarray(item.get("polygon") or item["points"], np.float64)).astype(np.int32)


def _vote(mask: Path, polygons: Sequence[Polygon], votes: dict[int, Counter[str]]) -> None:
    """Count, for each label value, how many of its pixels lie in polygons of each name.

    Where polygons overlap, the last one of them counts.

    Args:
        mask: path of the label file.
        polygons: the polygons of the same image.
        votes: number of pixels by label value and name; changed in place.
    """
    import cv2

    try:
        labels, _ = read_labels(mask, 2)
    except MaskfoldError:
        return
    drawn = np.zeros(labels.shape, np.int32)
    for number, (_, corners) in enumerate(polygons, start=1):
        cv2.fillPoly(drawn, [corners], number)
    pairs, counts = np.unique(np.stack([labels.ravel().astype(np.int64), drawn.ravel()]), axis=1, return_counts=True)
    for (value, number), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if number:
            votes.setdefault(value, Counter())[polygons[number - 1][0]] += count
