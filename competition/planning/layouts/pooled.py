"""Read sibling folders such as `Training Batch 1` and `Training Batch 2` as one folder, if they share no case."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace

from competition.planning.folder import HostFolder
from competition.planning.layouts.content import Role
from competition.planning.layouts.series import Pair, Series
from competition.planning.words import (
    CHANNEL_WORDS,
    HELD_OUT_WORDS,
    MASK_WORDS,
    UNLABELLED_WORDS,
    has_word,
    split_of,
    tokens,
)


def pool_series(host: HostFolder, series: Sequence[Series], roles: Mapping[str, Role]) -> list[Series]:
    """Merge the series of sibling folders into one series, if the folders have different cases of the same kind.

    `a/train/x/{id}.png` and `a/train/y/{id}.png` become `a/train/*/{id}.png`. Folders are not merged if they share an
    id, because they are then channels, classes or masks of several annotators. They are not merged either if their
    names indicate different splits or modalities, or if the pattern would match other folders too.

    Args:
        host: the scanned folder.
        series: result of `find_series`.
        roles: role of each series, by pattern.

    Returns:
        The merged series only. Their attribute `members` has the patterns of the series that were merged.
    """
    # Folders above and below, split, whether the images have no masks, end of the pattern, whole, role
    Key = tuple[tuple[str, ...], tuple[str, ...], str, bool, str, bool, Role]
    siblings: dict[Key, list[tuple[str, Series]]] = {}
    for item in series:
        has_masks = item.whole and any(has_word(case_id, MASK_WORDS) for case_id in item.ids)
        if item.kind == "single" and item.origin and not has_masks:
            parts = item.origin.split("/")
            for place, name in enumerate(parts):
                end = item.pattern[len(item.origin) :]
                above, below = tuple(parts[:place]), tuple(parts[place + 1 :])
                no_masks = has_word(name, UNLABELLED_WORDS | HELD_OUT_WORDS)
                key = (above, below, split_of(name), no_masks, end, item.whole, roles[item.pattern])
                siblings.setdefault(key, []).append((name, item))
    pooled: dict[tuple[str, bool], Series] = {}
    for (above, below, _, _, end, _, _), members in siblings.items():
        names = [name for name, _ in members]
        if len(names) < 2 or not _are_parts([item for _, item in members]) or _differ_in_modality(names):
            continue
        origin = "/".join([*above, _common_name(names), *below])
        if _folders_of(host, origin) == {item.origin for _, item in members}:
            files = {case_id: paths for _, item in members for case_id, paths in item.files.items()}
            first = members[0][1]
            pooled[f"{origin}{end}", first.whole] = replace(
                first,
                pattern=f"{origin}{end}",
                files=files,
                origin=origin,
                members=tuple(item.pattern for _, item in members),
            )
    return list(pooled.values())


def _are_parts(series: Sequence[Series]) -> bool:
    """Return whether no case occurs in more than one of the series."""
    return sum(len(item.ids) for item in series) == len(frozenset().union(*(item.ids for item in series)))


def _differ_in_modality(names: Sequence[str]) -> bool:
    """Return whether the names of folders indicate different modalities, such as `T1` and `T2`."""
    return len({CHANNEL_WORDS.intersection(tokens(name)) for name in names}) > 1


def _common_name(names: Sequence[str]) -> str:
    """Return the common beginning and end of names, with `*` between them."""
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end}"


def _common_start(names: Sequence[str]) -> str:
    """Return the common beginning of names, which ends at the end of a word; empty for `berlin` and `bonn`."""
    first, last = min(names), max(names)  # all other names begin with what these two have in common
    count = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    start = first[:count]
    if any(name[count : count + 1].isalpha() for name in names):
        start = start.rstrip(string.ascii_letters)
    return start


def _folders_of(host: HostFolder, origin: str) -> set[str]:
    expression = re.compile("[^/]*".join(map(re.escape, origin.split("*"))))
    return {folder for folder in host.folders if expression.fullmatch(folder)}


def without_members(pairs: Sequence[Pair]) -> list[Pair]:
    """Drop each pair of image and mask series that is part of a larger pair of merged series."""

    def contains(whole: Series, part: Series) -> bool:
        if not part.origin:
            return part.pattern in whole.members
        return part.origin in {whole.origin, *(member.rpartition("/")[0] for member in whole.members)}

    def is_part(pair: Pair) -> bool:
        return any(
            other is not pair
            and (other[0].members or other[1].members)
            and len(other[0].ids & other[1].ids) > len(pair[0].ids & pair[1].ids)
            and all(contains(whole, part) for whole, part in zip(other, pair, strict=True))
            for other in pairs
        )

    return [pair for pair in pairs if not is_part(pair)]
