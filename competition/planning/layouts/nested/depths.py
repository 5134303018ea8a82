"""Give advice on folders whose cases no single pattern matches.

In `Patient 07/scan 1`, each scan is a case in a folder of its patient. In `Utrecht/0` beside `Amsterdam/GE3T/100`, the
case folders lie at different depths.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layout import ROLE_SAMPLE, Layout, Patterns
from competition.planning.layouts.content import common_role, role_of_file
from competition.planning.layouts.series import MAX_AFFIXES, MIN_CASES, MOST, have_roles, join
from competition.text import format_count


def mark_nested(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts, with advice for layouts that match only scans whose folder has a certain name.

    In `Patient 07/scan 1/T1.nii.gz` and `Patient 07/scan 2/T1.nii.gz`, the layout `{id}/scan 1/T1.nii.gz` leaves out
    all cases of `{id}/scan 2/T1.nii.gz`. The advice is a command that links all scans into one folder, so that `{id}`
    is a scan. If a patient has one folder for images and another for masks, there is no such command.
    """
    kinds: dict[str, list[tuple[str, Layout]]] = {}
    for layout in layouts:
        above, folder, rest = _split_scan(_first_pattern(layout.images))
        if folder and _split_scan(_first_pattern(layout.masks or ""))[1] == folder:
            key = f"{layout.folder.root} {above} {rest} {str(layout.masks).replace(f'/{folder}/', '/*/')}"
            kinds.setdefault(key, []).append((folder, layout))
    marked = {}
    for same in kinds.values():
        first = same[0][1]
        above, _, image = _split_scan(_first_pattern(first.images))
        above_masks, _, mask = _split_scan(_first_pattern(first.masks or ""))
        cases = _cases_by_scan(first, above, (image, mask)) if above == above_masks else {}
        cases = {folder: layout.cases for folder, layout in same} | cases
        if len(cases) > 1:
            folders = sorted(cases)
            link = _link_scans(first.folder, above) if above == above_masks else ""
            advice = (
                "{id} stands for the name of one folder. So a layout with one of the scan folders "
                f"{_listed(folders)} leaves out the other scan folders. If each scan of a patient is a case "
                f"({format_count(sum(cases.values()), 'case')} in all), link all scans into one folder, and run init "
                f"on that folder: {link}"
            )
            is_only = len({folder for folder, _ in same}) == 1  # then the user may not be asked, and not see the advice
            for folder, layout in same:
                name = f"{layout.name}; only the folders `{folder}`"
                changed = replace(layout, name=name, advice=advice if link else "")
                marked[id(layout)] = changed.with_remarks(advice) if link and is_only else changed
    return [marked.get(id(layout), layout) for layout in layouts]


def _cases_by_scan(layout: Layout, above: str, names: Sequence[str]) -> dict[str, int]:
    """Count the scans that have all given files, by the name of the scan's folder, such as `scan 1`.

    Args:
        layout: the layout.
        above: the folder that contains the folders of the patients.
        names: the files that a scan must have, below its folder; {id} stands for the patient.
    """
    patients = layout.folder.children.get(above, {})
    scans = {patient: layout.folder.children.get(join(above, patient), {}) for patient in patients}
    return dict(
        Counter(
            scan
            for patient, inner in scans.items()
            for scan, files in inner.items()
            if {name.replace("{id}", patient) for name in names}.issubset(files)
        )
    )


def _first_pattern(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))


def _split_scan(pattern: str) -> tuple[str, str, str]:
    """Split `a/{id}/scan 1/T1.nii` into `a`, `scan 1` and `T1.nii`; return empty texts for any other pattern."""
    match = re.fullmatch(r"(?:([^{}*]+)/)?\{id\}/([^/{}*]+)/(.+)", pattern)
    return (match[1] or "", match[2], match[3]) if match else ("", "", "")


def _listed(folders: Sequence[str]) -> str:
    return ", ".join(f"`{folder}`" for folder in folders[:3]) + (", …" if len(folders) > 3 else "")


def _link_scans(host: HostFolder, above: str) -> str:
    """Return a shell command that links `PATIENT/SCAN` as `PATIENT_SCAN` into one folder, and runs init on it."""
    root = shlex.quote(str(host.root.absolute() / above))
    target = shlex.quote(f"{host.given}-cases")
    return (
        f'mkdir {target} && for f in {root}/*/*/; do ln -s "$f" {target}/"$(basename "$(dirname "$f")")_'
        f'$(basename "$f")"; done && maskfold init {target}'
    )


def scans_error(host: HostFolder) -> MaskfoldError | None:
    """Return the error for scans in folders of their patients, if {id} can be neither the patient nor the scan.

    In `MS-01/2019-03-04/T1.nii.gz`, {id} cannot be the patient, because the scans of each patient have other dates. It
    cannot be the scan either, because two patients may have scans of the same date. The hint is the command that links
    all scans into one folder. Return None without such scans.
    """
    for parent, patients in sorted(host.children.items()):
        inner = {patient: host.children.get(join(parent, patient), {}) for patient in patients}
        scans = {f"{patient}/{scan}": files for patient, folders in inner.items() for scan, files in folders.items()}
        names = Counter(scan for folders in inner.values() for scan in folders)
        if len(inner) < 2 or len(names) == len(scans) or have_roles(list(patients)) or have_roles(list(names)):
            continue
        kinds: dict[str, list[str]] = {}  # file's name within the folder of a scan -> paths
        for scan, files in scans.items():
            for file in files:
                kinds.setdefault(file, []).append(f"{join(parent, scan)}/{file}")
        usual = sorted(kinds, key=lambda file: (-len(kinds[file]), file))[:MAX_AFFIXES]
        roles = {
            file: common_role([role_of_file(host.root / path) for path in kinds[file][:ROLE_SAMPLE]])
            for file in usual
            if len(kinds[file]) >= MIN_CASES
        }
        images = [file for file, role in roles.items() if role == "image" and len(kinds[file]) >= MOST * len(scans)]
        masks = [file for file, role in roles.items() if role == "mask"]
        if images and masks:
            shown = _listed([join(parent, scan) for scan in sorted(scans)])
            return MaskfoldError(
                f"{host.root} has {format_count(len(scans), 'folder')} of scans in folders of their patients: {shown}. "
                f"Each scan has images such as `{images[0]}`, and {len(kinds[masks[0]])} scans have masks such as "
                f"`{masks[0]}`. {{id}} stands for the name of one folder, but several patients have scan folders of "
                "the same name, so this name does not identify a scan.",
                f"Link all scans into one folder, and run init on that folder: {_link_scans(host, parent)}",
                status=2,
            )
    return None


def mark_depths(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts, with advice for those that differ only in the place of their case folders.

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
        f"Each of the patterns {', '.join(f'`{mask}`' for mask in masks[:3])} leaves out the cases of the others. To "
        f"use all {format_count(total, 'case')}, link their folders into one folder, and run init on "
        f"that folder: mkdir {target} && for m in {globs}; do ln -s {folder} {target}/; done && "
        f"maskfold init {target}"
    )


def _glob(pattern: str) -> str:
    """Return a shell pattern: `{id}` becomes `*`, and other characters are quoted where needed."""
    return "*".join(shlex.quote(part) if part else "" for part in pattern.replace("{id}", "*").split("*"))
