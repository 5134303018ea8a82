"""Interpret several images of the same cases.

They may be channels, several versions of the same channels, or alternatives of which the user chooses one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from competition.planning.folder import HostFolder
from competition.planning.layouts.content import header_of
from competition.planning.layouts.series import Series
from competition.planning.words import is_channel_name, without_role_words


def channel_choices(images: list[Series]) -> Iterator[list[tuple[str, Series]]]:
    """Yield the ways to read several images of the same cases, each as a list of channels (name, series)."""
    images = sorted(images, key=lambda item: item.pattern)
    if len(images) == 1:
        yield [("image", images[0])]
        return
    names = _without_common_start([without_role_words(item.label) or item.label or "image" for item in images])
    channels = [
        (f"channel_{int(name)}" if name.isdigit() else name, item) for name, item in zip(names, images, strict=True)
    ]
    if len({name for name, _ in channels}) < len(channels):
        versions = _versions(channels)
        yield from versions
        channels = (
            [(f"{_folder_name(item)}_{name}", item) for name, item in channels]
            if versions
            else [(f"{name}_{number}", item) for number, (name, item) in enumerate(channels)]
        )
        if versions:
            yield channels
            return
    yield channels
    in_folders = len({item.origin for item in images}) > 1  # folders `01` and `02` may also be two sequences
    if not all(is_channel_name(name) and not (in_folders and name.isdigit()) for name in names):
        yield from ([("image", item)] for item in images)


def as_channels(host: HostFolder, stack: Series, mask: Series) -> Series | None:
    """Return a stack of files as channels {c} instead of slices, or None if they are no channels.

    They are channels if all cases have equally many files, and each case has one 2D mask of the same size as its files.
    If the mask's name contains the number of a file, such as `12_mask.png` beside `12.png`, the mask belongs to this
    file alone, and the files are no channels.
    """
    counts = {len(files) for files in stack.files.values()}
    shared = sorted(stack.ids & mask.ids)
    slices = {_numbers(path) for path in stack.files[shared[0]]} if shared else set()
    if len(counts) != 1 or not shared or _numbers(mask.pattern) in slices:
        return None
    for case_id in shared[:3]:
        one, other = (header_of(host.root / item.files[case_id][0]) for item in (stack, mask))
        if one is None or other is None or len(other.shape) != 2 or one.shape != other.shape:
            return None
    return replace(stack, pattern=stack.pattern.replace("{z}", "{c}"), kind="channels")


def _numbers(path: str) -> tuple[int, ...]:
    """Return the numbers in a file's name."""
    return tuple(map(int, re.findall(r"\d+", path.rpartition("/")[2])))


def _without_common_start(names: list[str]) -> list[str]:
    """Return names without the words with which all of them begin.

    For example, `ses_0001_adc` and `ses_0001_dwi` become `adc` and `dwi`.
    """
    parts = [name.split("_") for name in names]
    while all(len(own) > 1 for own in parts) and len({own[0] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    return ["_".join(own) for own in parts]


def _folder_name(series: Series) -> str:
    return series.pattern.rpartition("/")[0].rpartition("/")[2].replace("{id}", "").strip("_-. ") or "channel"


def _versions(channels: list[tuple[str, Series]]) -> list[list[tuple[str, Series]]]:
    """Group channels by folder if all folders have the same channels (`orig/T1` and `pre/T1`); otherwise return []."""
    folders: dict[str, list[tuple[str, Series]]] = {}
    for name, item in channels:
        folders.setdefault(item.pattern.rpartition("/")[0], []).append((name, item))
    names = [[name for name, _ in same] for same in folders.values()]
    is_same = len(names) > 1 and all(sorted(own) == sorted(names[0]) and len(set(own)) == len(own) for own in names)
    return list(folders.values()) if is_same else []
