"""Whether the files of a case agree in size and place, by their headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.readers import Header, read_header
from competition.data.sources import Case

TOLERANCE = 1e-3  # mm, between the affines of an image and its mask


def check_case(comp: Competition, case_id: str, images: dict[str, Case], masks: dict[str, Any] | None) -> Header:
    """Reads the headers of all files of a case.

    Args:
        comp: what the host gave.
        case_id: for messages.
        images: files by channel.
        masks: the truth's files as `discovery.find_masks` gives them; None for test cases.

    Returns:
        The case's shape, spacing, affine and number of channels.

    Raises:
        MaskfoldError: a file cannot be read, or its size or its affine is not that of the first image.
    """
    root, first, channels = Path(comp.root), None, 0
    for case in images.values():
        head = _header(comp, root, case.files, labels=False)
        name = _name(case.files)
        channels += head.channels
        if first is None:
            first, first_name = head, name
        _compare(case_id, first, first_name, head, name)
    if first is None:
        raise ValueError("a case has at least one image")
    for files in label_files(masks):
        _compare(case_id, first, first_name, _header(comp, root, files, labels=True), _name(files))
    return Header(first.shape, first.spacing, first.affine, channels, first.dtype)


def label_files(masks: dict[str, Any] | None) -> list[str | list[str]]:
    """The files of a case's truth as `discovery.find_masks` gives it, each a path or a stack's paths."""
    if masks is None or masks["kind"] == "rle":
        return []
    if masks["kind"] == "labels":
        return [masks["files"]]
    if masks["kind"] == "classes":
        return list(masks["files"].values())
    return [path for paths in masks["files"].values() for path in paths]


def _header(comp: Competition, root: Path, files: str | list[str], labels: bool) -> Header:
    """The header of a file, or of the volume (H, W, Z) that a stack of slices makes."""
    if isinstance(files, str):
        return read_header(root / files, comp.dimensions, labels)
    heads = [read_header(root / path, 2, labels) for path in files]
    for path, head in zip(files, heads, strict=True):
        if head.shape != heads[0].shape or head.channels != heads[0].channels:
            raise MaskfoldError(
                f"The slices {root / files[0]} and {root / path} differ: {_size(heads[0])} and {_size(head)}.",
                "Bring all slices of a case to one size, or set competition.on_bad_case=skip.")
    return Header((*heads[0].shape, len(heads)), (1.0, 1.0, 1.0), None, heads[0].channels, heads[0].dtype)


def _compare(case_id: str, one: Header, one_name: str, other: Header, other_name: str) -> None:
    cure = "Bring both to one grid, or leave the case out with competition.on_bad_case=skip."
    if one.shape != other.shape:
        raise MaskfoldError(f"The case {case_id} has {one_name} of {_size(one, False)} and {other_name} of "
                            f"{_size(other, False)}.", cure)
    if one.affine is None or other.affine is None:
        return
    apart = float(np.abs(one.affine - other.affine).max())
    if apart > TOLERANCE:
        raise MaskfoldError(f"The case {case_id} has {one_name} and {other_name} with affines that differ by "
                            f"{apart:.3g} mm.", cure)


def _name(files: str | list[str]) -> str:
    return files if isinstance(files, str) else f"{files[0]} … {files[-1]}"


def _size(head: Header, channels: bool = True) -> str:
    size = "×".join(map(str, head.shape))
    return f"{size} with {head.channels} channels" if channels else size
