"""Recognise file names that consist of a case id and a suffix, such as `a_attribute_globules.png` beside `a.jpg`.

The suffix may have several words, so only the ids in another folder show where it begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from competition.data.readers import extension_of, strip_extension
from competition.planning.layouts.series import MAX_AFFIXES, MIN_CASES, MOST, Series

MARKS = "_-. "


def find_ends(series: Sequence[Series]) -> list[Series]:
    """Find folders whose file names are another folder's ids with suffixes; return one series for each suffix.

    Args:
        series: result of `find_series`. Folders whose file names `find_series` has already divided are left out.
    """
    plain = [item for item in series if item.kind == "single" and item.origin and _is_plain(item)]
    divided = {item.origin for item in series if item.whole or (item.origin and not _is_plain(item))}
    found: dict[str, Series] = {}
    for item in plain:
        if item.origin in divided:
            continue
        for other in plain:
            if other.origin != item.origin and item.ids.isdisjoint(other.ids):
                for part in _divide(item, other.ids):
                    found.setdefault(part.pattern, part)
    return list(found.values())


def _is_plain(series: Series) -> bool:
    return series.pattern.rpartition("/")[2].startswith("{id}.")


def _divide(series: Series, ids: frozenset[str]) -> list[Series]:
    """Divide a series into one series for each suffix that follows an id in the file names.

    Return an empty list unless most names begin with an id, and 2 to `MAX_AFFIXES` suffixes occur in several cases.
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for paths in series.files.values():
        name = paths[0].rpartition("/")[2]
        stem = strip_extension(name)
        cuts = [place for place, mark in enumerate(stem) if mark in MARKS]
        base = next((stem[:cut] for cut in reversed(cuts) if stem[:cut] in ids), None)
        if base is not None and any(letter.isalpha() for letter in stem[len(base) :]):
            groups.setdefault((stem[len(base) :], extension_of(name)), {})[base] = paths
    groups = {key: files for key, files in groups.items() if len(files) >= MIN_CASES}
    if not 2 <= len(groups) <= MAX_AFFIXES or sum(map(len, groups.values())) < MOST * len(series.files):
        return []
    return [
        Series(f"{series.origin}/{{id}}{end}{extension}".lstrip("/"), "single", files, end.strip(MARKS), series.origin)
        for (end, extension), files in groups.items()
    ]
