"""Give advice on folders whose cases no single pattern matches.

In `Patient 07/scan 1`, each scan is a case in a folder of its patient. In `Utrecht/0` beside `Amsterdam/GE3T/100`, the
case folders lie at different depths.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from competition.planning.layout import Layout, Patterns
from competition.text import format_count


def mark_nested(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts; add advice to those that differ only in the name of one folder below `{id}`.

    In `Patient 07/scan 1/T1.nii.gz` and `Patient 07/scan 2/T1.nii.gz`, the layout `{id}/scan 1/T1.nii.gz` leaves out
    all cases of `{id}/scan 2/T1.nii.gz`. The advice is a command that links all scans into one folder, so that `{id}`
    is a scan.
    """
    kinds: dict[str, list[tuple[str, Layout]]] = {}
    for layout in layouts:
        above, folder, rest = _split_scan(_first_pattern(layout.images))
        if folder and _split_scan(_first_pattern(layout.masks or ""))[1] == folder:
            key = f"{layout.folder.root} {above} {rest} {str(layout.masks).replace(f'/{folder}/', '/*/')}"
            kinds.setdefault(key, []).append((folder, layout))
    marked = {}
    for same in kinds.values():
        folders = sorted({folder for folder, _ in same})
        if len(folders) > 1:
            total = sum({folder: layout.cases for folder, layout in same}.values())
            for folder, layout in same:
                advice = _scan_advice(layout, folders, total)
                name = f"{layout.name}; only the folders `{folder}`"
                marked[id(layout)] = replace(layout, name=name, advice=advice)
    return [marked.get(id(layout), layout) for layout in layouts]


def _first_pattern(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))


def _split_scan(pattern: str) -> tuple[str, str, str]:
    """Split `a/{id}/scan 1/T1.nii` into `a`, `scan 1` and `T1.nii`; return empty texts for any other pattern."""
    match = re.fullmatch(r"(?:([^{}*]+)/)?\{id\}/([^/{}*]+)/(.+)", pattern)
    return (match[1] or "", match[2], match[3]) if match else ("", "", "")


def _scan_advice(layout: Layout, folders: Sequence[str], total: int) -> str:
    above = _split_scan(_first_pattern(layout.images))[0]
    root = layout.folder.root.absolute() / above
    target = shlex.quote(f"{layout.folder.given}-cases")
    shown = ", ".join(f"`{folder}`" for folder in folders[:3]) + (", …" if len(folders) > 3 else "")
    return (
        f"{{id}} stands for the name of one folder, so each of {shown} is a choice that leaves out the "
        f"others. If each of these folders is a case ({format_count(total, 'case')} in all), link them "
        f"into one folder, and run init on that folder: mkdir {target} && for f in "
        f'{shlex.quote(str(root))}/*/*/; do ln -s "$f" {target}/"$(basename "$(dirname '
        f'"$f")")_$(basename "$f")"; done && maskfold init {target}'
    )


def mark_depths(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts; add advice to those whose case folders have equal files but lie in different places.

    The advice is a command that links all case folders into one folder.
    """
    kinds: dict[str, list[Layout]] = {}
    for layout in layouts:
        parts = [_split_case(pattern) for pattern in (*_patterns(layout.images), *_patterns(layout.masks))]
        if parts and all(above is not None for above, _ in parts):
            kinds.setdefault(" ".join(below for _, below in parts), []).append(layout)
    advice = {}
    for same in kinds.values():
        masks = [_patterns(layout.masks)[0] for layout in same]
        ids = [case_id for layout in same for case_id in layout.ids]
        if len(set(masks)) > 1 and len(set(ids)) == len(ids):
            for layout in same:
                advice[id(layout)] = _depth_advice(layout, sorted(set(masks)), len(ids))
    return [replace(layout, advice=advice[id(layout)]) if id(layout) in advice else layout for layout in layouts]


def _patterns(patterns: str | dict[str, str] | None) -> list[str]:
    return [] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns.values())


def _split_case(pattern: str) -> tuple[str | None, str]:
    """Split `a/{id}/T1.nii` into `a` and `{id}/T1.nii`.

    If {id} is not the name of a folder, return None and the pattern.
    """
    match = re.fullmatch(r"(?:(.+)/)?(\{id\}/.+)", pattern)
    return (match[1] or "", match[2]) if match else (None, pattern)


def _depth_advice(layout: Layout, masks: Sequence[str], total: int) -> str:
    root = layout.folder.root.absolute()
    target = shlex.quote(f"{layout.folder.given}-cases")
    globs = " ".join(f"{shlex.quote(str(root))}/{_glob(mask)}" for mask in masks)
    folder = '"$m"'
    for _ in range(_split_case(masks[0])[1].count("/")):
        folder = f'"$(dirname {folder})"'
    return (
        f"Each of {', '.join(f'`{mask}`' for mask in masks[:3])} leaves out the cases of the others. To "
        f"use all {format_count(total, 'case')}, link their folders into one folder, and run init on "
        f"that folder: mkdir {target} && for m in {globs}; do ln -s {folder} {target}/; done && "
        f"maskfold init {target}"
    )


def _glob(pattern: str) -> str:
    """Return a shell pattern: `{id}` becomes `*`, and other characters are quoted where needed."""
    return "*".join(shlex.quote(part) if part else "" for part in pattern.replace("{id}", "*").split("*"))
