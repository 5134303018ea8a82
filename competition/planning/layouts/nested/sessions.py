"""Find series of files in case folders that contain one folder per session.

An example is BIDS: `sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from competition.data.readers import extension_of
from competition.planning.folder import HostFolder
from competition.planning.layouts.series import MIN_CASES, Series, case_folders, flat_series

CaseFolders = Mapping[str, tuple[str, list[str]]]  # id -> folder, and the images below it


def find_sessions(host: HostFolder, series: Sequence[Series]) -> list[Series]:
    """Return series in which each session of a subject is one case; the names of all files must differ.

    Args:
        host: the scanned folder.
        series: result of `find_series`. The attribute `members` of a returned series lists the series of single
            sessions that it contains.
    """
    matches = (re.match(r"(?:([^{}*]+)/)?\{id\}/", item.pattern) for item in series)
    parents = sorted({match[1] or "" for match in matches if match})
    return [item for parent in parents for item in _sessions_of(parent, case_folders(host, parent, 1), series)]


def _sessions_of(parent: str, cases: CaseFolders, series: Sequence[Series]) -> list[Series]:
    places: dict[tuple[str, str], list[str]] = {}  # folder with * for the session, extension -> paths
    for folder, inner_paths in cases.values():
        for inner in inner_paths:
            session, _, rest = inner.partition("/")
            if rest and re.search(r"\d", session):
                below, _, _ = rest.rpartition("/")
                template = re.sub(r"\d+", "*", session)
                above = f"{parent}/" if parent else ""
                place = f"{above}{_common(list(cases))}*/{template}{'/' + below if below else ''}"
                places.setdefault((place, extension_of(inner)), []).append(f"{folder}/{inner}")
    found = []
    for (place, _), paths in places.items():
        names = {path.rpartition("/")[2]: path for path in paths}
        level = (parent.count("/") + 1 if parent else 0) + 1
        sessions = {path.split("/")[level] for path in paths}
        if len(names) < len(paths) or len(sessions) < 2 or not _name_their_folders(paths, cases):
            continue
        for item in flat_series(place, list(names)):
            if item.kind == "single" and len(item.files) >= MIN_CASES:
                files = {
                    case_id: [names[path.rpartition("/")[2]] for path in own] for case_id, own in item.files.items()
                }
                own_paths = {path for own in files.values() for path in own}
                members = tuple(
                    part.pattern
                    for part in series
                    if part.kind == "single"
                    and own_paths.issuperset(path for own in part.files.values() for path in own)
                )
                found.append(replace(item, files=files, origin="", members=members))
    return found


def _name_their_folders(paths: Sequence[str], cases: CaseFolders) -> bool:
    """Return whether the name of each file begins with the name of its case folder.

    The case ids then contain the subject.
    """
    names = {folder: case_id for case_id, (folder, _) in cases.items()}
    level = next(iter(names)).count("/") + 1
    return all(path.rpartition("/")[2].startswith(names["/".join(path.split("/")[:level])]) for path in paths)


def _common(names: Sequence[str]) -> str:
    """Return the common prefix of all names, without digits at its end."""
    first, last = min(names), max(names)
    count = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:count].rstrip("0123456789")
