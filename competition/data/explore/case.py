"""One case read as `cv` reads it; what cannot be read is listed, and the rest is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.agreement import check_case, label_files
from competition.data.discovery import Images
from competition.data.explore.findings import Findings
from competition.data.explore.intensities import channel_names, is_colour, measure_values, used_channels
from competition.data.explore.measured import Measured
from competition.data.explore.objects import foreground, measure_truth
from competition.data.explore.thumbnails import thumbnail
from competition.data.masks import IGNORED
from competition.data.readers import Header, read_header, read_labels
from competition.data.table import case_row, load_image, load_mask

Masks = dict[str, Any]


def measure_case(comp: Competition, split: str, case_id: str, images: Images, masks: Masks | None,
                 findings: Findings) -> Measured:
    """Reads a case and measures it.

    Args:
        comp: what the host gave, with `on_bad_case: stop`.
        split: train or test.
        case_id: the id.
        images, masks: as `found.find_cases` gives them; masks None: no truth.
        findings: takes each file or row that `cv` would stop at.
    """
    case = Measured(case_id, split, [path for one in images.values() for path in _paths(one.files)])
    look = _Looking(findings, split, case_id)
    fits, row = masks, None
    head = look.at("image", lambda some: check_case(comp, case_id, some, None), images, _each_channel(images))
    if head is not None:
        _describe(case, head)
        if masks is not None:
            case.label_channels = _label_channels(comp, masks)
            agreed = look.at("mask", lambda some: check_case(comp, case_id, images, some), masks, _each_mask(masks))
            fits = None if agreed is None else masks
        row = look.at("image", lambda some: SimpleNamespace(**case_row(comp, split, case_id, images, some)), fits)
    picture = None
    if row is not None:
        case.row, case.image_hash, case.hash = row, row.image_hash, row.hash
        picture = look.at("image", lambda some: load_image(comp, some), row, _each_file(row))
    mask = None
    if masks is not None:
        mask = _read_truth(case, comp, row if fits is not None else None, masks, look)
    if picture is not None:
        _measure_image(case, comp, picture.array, mask)
    return case


class _Looking:
    """Lists what `cv` would stop at, of one case."""

    def __init__(self, findings: Findings, split: str, case_id: str) -> None:
        self.findings, self.split, self.case_id = findings, split, case_id

    def at(self, kind: str, look: Callable[[Any], Any], whole: Any, parts: Iterable[Any] = (), skips: bool = True) -> Any:
        """What looking at the whole gives; where it raises None, and the errors of all its parts, or its own, are listed;
        `skips`: `cv` leaves the case out for it, where it may."""
        try:
            return look(whole)
        except MaskfoldError as error:
            stopped = error
        errors = []
        for part in parts:
            try:
                look(part)
            except MaskfoldError as error:
                errors.append(error)
        tell = self.findings.bad_case if skips else self.findings.fault
        for one in errors or [stopped]:
            tell(kind, self.split, self.case_id, one)
        return None


def _read_truth(case: Measured, comp: Competition, row: SimpleNamespace | None, masks: Masks,
                look: _Looking) -> np.ndarray | None:
    """The mask (M, *spatial) of the image's grid, and `case.truth`; a mask that has no image to fit to may still have
    faults of its own."""
    alone = row is None
    if alone and masks["kind"] == "labels":
        row = _on_its_own_grid(comp, case.id, masks)
    if row is None:
        return None
    mask: np.ndarray | None = look.at("mask", lambda some: load_mask(comp, some), row, _each_truth(row))
    if mask is None and masks["kind"] == "labels":
        case.strange = strange_values(comp, masks["files"])
    if mask is None or alone:
        return None
    case.truth = look.at("mask", lambda some: measure_truth(comp, some, mask, masks["kind"]), row, skips=False)
    return mask


def strange_values(comp: Competition, files: str | list[str]) -> dict[int, int]:
    """Voxels by label value, of the values that no class has; nothing where the file cannot be read."""
    known = {0, comp.ignore, *(value for values in comp.class_values for value in values)}
    found: dict[int, int] = {}
    for path in _paths(files):
        try:
            labels, _ = read_labels(Path(comp.root) / path, comp.dimensions if isinstance(files, str) else 2)
        except MaskfoldError:
            continue
        for value, count in zip(*(part.tolist() for part in np.unique(labels, return_counts=True)), strict=True):
            if value not in known:
                found[value] = found.get(value, 0) + count
    return found


def _describe(case: Measured, head: Header) -> None:
    case.shape, case.spacing, case.dtype, case.channels = head.shape, head.spacing, head.dtype, head.channels
    if head.affine is not None and len(head.shape) == 3:
        from nibabel.orientations import aff2axcodes

        case.orientation = "".join(code or "?" for code in aff2axcodes(head.affine))


def _measure_image(case: Measured, comp: Competition, array: np.ndarray, mask: np.ndarray | None) -> None:
    array = used_channels(array, comp, case.id)
    front = counted = None
    if mask is not None:
        front = foreground(mask)
        counted = ~(mask == IGNORED).any(axis=0) if comp.ignore is not None else None
    case.values = measure_values(array, channel_names(len(array), comp), front, counted)
    case.colour = is_colour(array)
    case.thumbnail = thumbnail(array)


def _each_channel(images: Images) -> Iterator[Images]:
    """Each channel beside the first: whether it can be read, and fits."""
    first = next(iter(images))
    for name, one in images.items():
        yield {first: images[first], name: one} if name != first else {name: one}


def _each_file(row: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The row with each channel alone."""
    for name, files in json.loads(row.images).items():
        yield SimpleNamespace(**{**vars(row), "images": json.dumps({name: files})})


def _each_mask(masks: Masks) -> Iterator[Masks]:
    """The truth's files one by one."""
    if masks["kind"] == "classes":
        yield from ({"kind": "classes", "files": {name: files}} for name, files in masks["files"].items())
    elif masks["kind"] == "instances":
        yield from ({"kind": "instances", "files": {name: [path]}}
                    for name, paths in masks["files"].items() for path in paths)
    elif masks["kind"] == "rle":
        yield from ({**masks, "rows": [row]} for row in masks["rows"])


def _each_truth(row: SimpleNamespace) -> Iterator[SimpleNamespace]:
    for masks in _each_mask(json.loads(row.masks)):
        yield SimpleNamespace(**{**vars(row), "masks": json.dumps(masks)})


def _on_its_own_grid(comp: Competition, case_id: str, masks: Masks) -> SimpleNamespace | None:
    """A row for a label file without an image to fit to, of the file's own size; None where it cannot be read."""
    files = masks["files"]
    try:
        shape = read_header(Path(comp.root) / _paths(files)[0], comp.dimensions if isinstance(files, str) else 2, True).shape
    except MaskfoldError:
        return None
    if not isinstance(files, str):
        shape = (*shape, len(files))
    return SimpleNamespace(id=case_id, masks=json.dumps(masks), shape=json.dumps(shape))


def _label_channels(comp: Competition, masks: Masks) -> int | None:
    """Channels of the first label file; None where there is none, or it cannot be read."""
    for files in label_files(masks)[:1]:
        try:
            return read_header(Path(comp.root) / _paths(files)[0], comp.dimensions if isinstance(files, str) else 2, True).channels
        except MaskfoldError:
            return None
    return None


def _paths(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files
