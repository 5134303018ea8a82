"""Find series in folders of patients that lie in folders of sites, such as `Site A/Pat. 003/frame 00012.tif`.

If the patients' folders have different names at all sites, `find_series` finds these files. If the names repeat, as
`Pat. 003` does at two sites, only the names of the files can identify the cases.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from competition.planning.folder import HostFolder
from competition.planning.layouts.series import Series, flat_series, have_roles, join
from competition.planning.words import CHANNEL_WORDS, split_of, tokens


def find_sites(host: HostFolder) -> list[Series]:
    """Return series such as `Frames/*/*/{id}.tif`, in which the outer folders are sites and the inner ones patients.

    Names of the inner folders must repeat in several outer folders, but names of files must not repeat.
    The outer folders must not be named after roles (`images`, `masks`), different splits or different modalities. Each
    series must have files in several outer folders.
    """
    found = []
    for parent, children in sorted(host.children.items()):
        if len(children) < 2 or have_roles(list(children)) or _differ_in_kind(list(children)):
            continue
        inner = {name: host.children.get(join(parent, name), {}) for name in children}
        names = [name for folders in inner.values() for name in folders]
        if len(set(names)) == len(names) or have_roles(names) or _differ_in_kind(names):
            continue
        paths = [
            (f"{join(parent, outer)}/{folder}/{file}", outer, file)
            for outer, folders in inner.items()
            for folder, files in folders.items()
            for file in files
            if "/" not in file
        ]
        if max(Counter(file for _, _, file in paths).values(), default=2) > 1:
            continue  # the names of the files do not identify the cases
        if all(file.startswith(outer) for _, outer, file in paths):
            continue  # files such as `sub-01/ses-1/sub-01_ses-1_T1w.nii.gz` are those of case folders or sessions
        path_of = {file: path for path, _, file in paths}
        outer_of = {path: outer for path, outer, _ in paths}
        place = join(parent, "*/*")
        for item in flat_series(place, list(path_of)):
            files = {
                case_id: [path_of[path.removeprefix(f"{place}/")] for path in own]
                for case_id, own in item.files.items()
            }
            if len({outer_of[path] for own in files.values() for path in own}) > 1 and item.kind == "single":
                found.append(replace(item, files=files))
    return found


def _differ_in_kind(names: list[str]) -> bool:
    """Return whether names of folders indicate different splits, or different modalities such as `T1` and `T2`."""
    return (
        len({split_of(name) for name in names}) > 1 or len({CHANNEL_WORDS.intersection(tokens(n)) for n in names}) > 1
    )
