"""Case folders at several depths, such as `Utrecht/0` and `Amsterdam/GE3T/100`: no single pattern has all cases."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from competition.planning.layout import Layout
from competition.text import format_count


def mark_depths(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts, with advice on those with equal files in case folders at different places.

    The advice is a command that links all case folders into one folder.
    """
    kinds: dict[str, list[Layout]] = {}
    for layout in layouts:
        parts = [_split(pattern) for pattern in (*_patterns(layout.images), *_patterns(layout.masks))]
        if parts and all(above is not None for above, _ in parts):
            kinds.setdefault(" ".join(below for _, below in parts), []).append(layout)
    advice = {}
    for same in kinds.values():
        masks = [_patterns(layout.masks)[0] for layout in same]
        ids = [case_id for layout in same for case_id in layout.ids]
        if len(set(masks)) > 1 and len(set(ids)) == len(ids):
            for layout in same:
                advice[id(layout)] = _advice(layout, sorted(set(masks)), len(ids))
    return [replace(layout, advice=advice[id(layout)]) if id(layout) in advice else layout for layout in layouts]


def _patterns(patterns: str | dict[str, str] | None) -> list[str]:
    return [] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns.values())


def _split(pattern: str) -> tuple[str | None, str]:
    """Split `a/{id}/T1.nii` into `a` and `{id}/T1.nii`; None if {id} is not the name of a folder."""
    match = re.fullmatch(r"(?:(.+)/)?(\{id\}/.+)", pattern)
    return (match[1] or "", match[2]) if match else (None, pattern)


def _advice(layout: Layout, masks: Sequence[str], total: int) -> str:
    root = layout.folder.root.absolute()
    target = shlex.quote(f"{layout.folder.given}-cases")
    globs = " ".join(f"{shlex.quote(str(root))}/{_glob(mask)}" for mask in masks)
    folder = '"$m"'
    for _ in range(_split(masks[0])[1].count("/")):
        folder = f'"$(dirname {folder})"'
    return (
        f"Each of {', '.join(f'`{mask}`' for mask in masks[:3])} leaves out the cases of the others. To have all "
        f"{format_count(total, 'case')}, link their folders into one folder, and init that: mkdir {target} && for m in "
        f"{globs}; do ln -s {folder} {target}/; done && maskfold init {target}"
    )


def _glob(pattern: str) -> str:
    """Return a shell pattern: `{id}` becomes `*`, and other characters are quoted where needed."""
    return "*".join(shlex.quote(part) if part else "" for part in pattern.replace("{id}", "*").split("*"))
