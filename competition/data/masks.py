"""The truth of a case as class masks and as instances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.readers import extension, read_labels
from competition.data.rle_table import rle_format, rle_grid, row_text, rows_are_parts
from competition.data.rows import cell
from competition.rle import RleError, decode, decode_labels

IGNORED = 255


def load_mask(comp: Competition, row: Any) -> np.ndarray:
    """Reads the truth of a training case.

    Args:
        comp: what the host gave.
        row: a row of the case table.

    Returns:
        (M, *spatial) uint8. Exclusive classes: M = 1, 0 is background, 1…K the classes in order, 255 ignored.
        Overlapping classes: M = K, 0 or 1 each, 255 ignored.

    Raises:
        MaskfoldError: a file or row cannot be read, holds a value that is no class, or puts a pixel into two exclusive
            classes.
        ValueError: the row is a test case, which has no truth.
    """
    masks, shape = _masks(row), tuple(json.loads(cell(row, "shape")))
    if masks["kind"] == "labels":
        name = _name(masks["files"])
        labels = _labels(comp, masks["files"], shape, cell(row, "id"))
        return _classes_of(labels, Path(comp.root) / name, comp)
    united = np.zeros((len(comp.classes), *shape), bool)
    ignored = np.zeros(shape, bool)
    for part in _parts(comp, row, masks, shape):
        united[(comp.classes.index(part.cls), *part.where)] |= part.objects != 0
        if part.ignored is not None:
            ignored |= part.ignored
    return _joined(comp, cell(row, "id"), united, ignored)


def load_instances(comp: Competition, row: Any) -> np.ndarray:
    """Numbers the objects of a training case.

    A row of run lengths is an object (where the profile knows rows to be parts of one mask, all rows of a class are
    one), so is a file of a folder of instances; in other label files an object is a connected component of a class (8
    neighbours in pictures, 26 in volumes). Where two objects overlap, the later one is seen.

    Args:
        comp: what the host gave.
        row: a row of the case table.

    Returns:
        (*spatial) int32: 0 background, 1…N the objects.

    Raises:
        MaskfoldError: as for `load_mask`.
    """
    masks, shape = _masks(row), tuple(json.loads(cell(row, "shape")))
    instances = np.zeros(shape, np.int32)
    number = 0
    if masks["kind"] in ("labels", "classes"):
        import cc3d

        truth = load_mask(comp, row)
        for index in range(len(comp.classes)):
            mask = truth[0] == index + 1 if comp.labels == "exclusive" else truth[index] == 1
            # As uint8: cc3d 4.1 gives wrong labels on some boolean arrays.
            parts = cc3d.connected_components(mask.view(np.uint8), connectivity=8 if mask.ndim == 2 else 26)
            instances[mask] = parts[mask].astype(np.int32) + number
            number += int(parts.max(initial=0))
        return instances
    for part in _parts(comp, row, masks, shape):
        there = part.objects != 0
        instances[part.where][there] = part.objects[there] + number
        number += int(part.objects.max(initial=0))
    return instances


@dataclass(frozen=True, eq=False)
class _Part:
    """Objects of one class: their numbers 1…n (int32, 0 elsewhere), and where in the case they lie."""

    cls: str
    objects: np.ndarray
    where: tuple[Any, ...] = (...,)
    ignored: np.ndarray | None = None


def _parts(comp: Competition, row: Any, masks: dict[str, Any], shape: tuple[int, ...]) -> Iterator[_Part]:
    """The rows of each class and slice, or each file."""
    if masks["kind"] == "rle":
        lines: dict[tuple[str, int | None], list[int]] = {}
        for line, cls, index in masks["rows"]:
            lines.setdefault((cls, index), []).append(line)
        for (cls, index), those in lines.items():
            if index is None:
                yield _Part(cls, _decoded(comp, cell(row, "id"), those, shape))
            else:
                yield _Part(cls, _decoded(comp, cell(row, "id"), those, shape[:-1]), (..., index))
        return
    for cls, files in masks["files"].items():
        for one in files if masks["kind"] == "instances" else [files]:
            labels = _labels(comp, one, shape, cell(row, "id"))
            ignored = None if comp.ignore is None else labels == comp.ignore
            mask = labels != 0 if ignored is None else (labels != 0) & ~ignored
            _refuse_grey(Path(comp.root) / _name(one), labels[mask], cls)
            yield _Part(cls, mask.astype(np.int32), ignored=ignored)


def _decoded(comp: Competition, case_id: str, lines: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """The objects in some lines of the table."""
    texts, fmt = [row_text(comp, line) for line in lines], rle_format(comp)
    grid = rle_grid(comp) if len(shape) == 2 else None
    try:
        objects = decode_labels(texts, grid or shape, fmt)
    except RleError:  # together they are fast, one by one they tell the line
        for line, text in zip(lines, texts, strict=True):
            try:
                decode(text, grid or shape, fmt)
            except RleError as error:
                raise MaskfoldError(
                    f"{Path(comp.root) / str(comp.train.rle)}, line {line}, id {case_id}: {error.wrong}",
                    f"{error.cure.rstrip('.')}; the format is train.rle_format in the competition's YAML, "
                    "or else submission.profile's, or else submission.rle.") from error
        raise
    if rows_are_parts(comp):
        objects = (objects != 0).astype(np.int32)
    return objects if objects.shape == shape else _nearest(objects, shape)


def _nearest(objects: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The objects on another grid over the same picture: each pixel takes the number at its centre."""
    places = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(objects.shape, shape, strict=True)]
    return objects[np.ix_(*places)]


def _labels(comp: Competition, files: str | list[str], shape: tuple[int, ...], case_id: str) -> np.ndarray:
    """Labels (*spatial) as in the file, or in the slices."""
    root = Path(comp.root)
    if isinstance(files, str):
        labels = read_labels(root / files, comp.dimensions)[0]
    else:
        labels = np.stack([read_labels(root / path, 2)[0] for path in files], axis=-1)
    if labels.shape != shape:
        raise MaskfoldError(f"The mask {_name(files)} of the case {case_id} is {'×'.join(map(str, labels.shape))}, its "
                            f"image {'×'.join(map(str, shape))}.", "Bring both to one grid.")
    return labels


def _classes_of(labels: np.ndarray, path: Path, comp: Competition) -> np.ndarray:
    """Label values as `load_mask` gives them."""
    ignored = {} if comp.ignore is None else {comp.ignore: IGNORED}
    values = _present(labels)
    _refuse_strange([value for value in values if value not in {0, *ignored, *sum(comp.class_values, [])}], path, comp)
    if comp.labels == "exclusive":
        numbers = {value: number for number, those in enumerate(comp.class_values, 1) for value in those}
        return _recode(labels, values, {**numbers, **ignored})[None]
    return np.stack([_recode(labels, values, {**dict.fromkeys(those, 1), **ignored}) for those in comp.class_values])


def _refuse_strange(strange: list[int], path: Path, comp: Competition) -> None:
    """Values that no class has."""
    if strange:
        shown = ", ".join(map(str, strange[:5])) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        known = ", ".join(f"{'+'.join(map(str, those))} {name}"
                          for those, name in zip(comp.class_values, comp.classes, strict=True))
        cure = f"Set competition.label_values or competition.ignore; now 0 is background, {known}."
        if extension(path.name) in (".jpg", ".jpeg"):
            cure = "Save masks as PNG: JPEG changes values near edges."
        elif len(strange) == len(comp.classes) == 1 and strange[0] > 0:
            cure = f"Set competition.label_values=[{strange[0]}] if that is {comp.classes[0]}, or competition.ignore."
        raise MaskfoldError(f"{path} holds the label {'values' if len(strange) > 1 else 'value'} {shown}, "
                            "which no class has.", cure)


def _recode(labels: np.ndarray, values: list[int], codes: dict[int, int]) -> np.ndarray:
    """Label values as their codes (uint8); values without one are 0."""
    coded = np.zeros(labels.shape, np.uint8)
    for value in values:
        if codes.get(value):
            coded[labels == value] = codes[value]
    return coded


def _present(labels: np.ndarray) -> list[int]:
    """The values in an array, sorted; counted part by part, which needs neither a sort nor a large copy."""
    few = int(labels.min()) >= 0 and int(labels.max()) < 2**16
    found: set[int] = set()
    for part in np.array_split(labels.reshape(-1), max(1, labels.size // 2**22)):
        found.update((np.flatnonzero(np.bincount(part.astype(np.intp))) if few else np.unique(part)).tolist())
    return sorted(found)


def _refuse_grey(path: Path, values: np.ndarray, cls: str) -> None:
    if values.size and (values != values[0]).any():
        shown = ", ".join(map(str, np.unique(values)[:5].tolist()))
        raise MaskfoldError(f"{path} holds the values {shown}, but the mask of one class ({cls}) has 0 and one other.",
                            "Save it as a PNG without smoothing, or set competition.ignore.")


def _joined(comp: Competition, case_id: str, united: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(K, *spatial) bool to the mask array."""
    if comp.labels == "overlapping":
        mask = united.astype(np.uint8)
        mask[:, ignored] = IGNORED
        return mask
    twice = int((united.sum(axis=0, dtype=np.uint8) > 1).sum()) if len(united) > 1 else 0
    if twice:
        raise MaskfoldError(f"The case {case_id} has {twice:,} pixels in two classes, and its classes are exclusive.",
                            "Set competition.labels=overlapping, or correct the masks.")
    mask = np.zeros(united.shape[1:], np.uint8)
    for index, one in enumerate(united, 1):
        mask[one] = index
    mask[ignored] = IGNORED
    return mask[None]


def _masks(row: Any) -> dict[str, Any]:
    masks = json.loads(cell(row, "masks"))
    if masks is None:
        raise ValueError(f"{cell(row, 'id')} is a test case; the host keeps its truth")
    found: dict[str, Any] = masks
    return found


def _name(files: str | list[str]) -> str:
    return files if isinstance(files, str) else f"{files[0]} … {files[-1]}"
