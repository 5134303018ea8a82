"""Advise on patient folders with a folder for each scan, because these cases are one folder deeper than `{id}`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from competition.planning.layout import Layout, Patterns
from competition.text import format_count


def mark_nested(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts; layouts that differ only in one folder below `{id}` get advice.

    In `Patient 07/scan 1/T1.nii.gz` and `Patient 07/scan 2/T1.nii.gz`, the layout `{id}/scan 1/T1.nii.gz` leaves out
    all cases of `{id}/scan 2/T1.nii.gz`, and the reverse. The advice is a command that links all scans into folders of
    one level, so that `{id}` is a scan.
    """
    kinds: dict[str, list[tuple[str, Layout]]] = {}
    for layout in layouts:
        above, folder, rest = _split(_first(layout.images))
        if folder and _split(_first(layout.masks or ""))[1] == folder:
            key = f"{layout.folder.root} {above} {rest} {str(layout.masks).replace(f'/{folder}/', '/*/')}"
            kinds.setdefault(key, []).append((folder, layout))
    marked = {}
    for same in kinds.values():
        folders = sorted({folder for folder, _ in same})
        if len(folders) > 1:
            total = sum({folder: layout.cases for folder, layout in same}.values())
            for folder, layout in same:
                advice = _advice(layout, folders, total)
                name = f"{layout.name}; only of the folders `{folder}`"
                marked[id(layout)] = replace(layout, name=name, advice=advice)
    return [marked.get(id(layout), layout) for layout in layouts]


def _first(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))


def _split(pattern: str) -> tuple[str, str, str]:
    """Split `a/{id}/scan 1/T1.nii` into `a`, `scan 1` and `T1.nii`; the folder is empty if the pattern differs."""
    match = re.fullmatch(r"(?:([^{}*]+)/)?\{id\}/([^/{}*]+)/(.+)", pattern)
    return (match[1] or "", match[2], match[3]) if match else ("", "", "")


def _advice(layout: Layout, folders: Sequence[str], total: int) -> str:
    above = _split(_first(layout.images))[0]
    root = layout.folder.root.absolute() / above
    target = shlex.quote(f"{layout.folder.given}-cases")
    shown = ", ".join(f"`{folder}`" for folder in folders[:3]) + (", …" if len(folders) > 3 else "")
    return (
        f"{{id}} is the name of one folder, so each of {shown} is a choice that leaves out the others. If each of "
        f"these folders is a case ({format_count(total, 'case')} together), link them into one folder, and init that: "
        f"mkdir {target} && for f in {shlex.quote(str(root))}/*/*/; do "
        f'ln -s "$f" {target}/"$(basename "$(dirname "$f")")_$(basename "$f")"; done && maskfold init {target}'
    )
