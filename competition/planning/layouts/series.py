"""Find series of files. A series is a pattern with {id}, and the files that it matches for each case."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from competition.data.readers import EXTENSIONS, extension_of, strip_extension
from competition.planning.folder import HostFolder
from competition.planning.words import (
    IMAGE_WORDS,
    MASK_WORDS,
    SLICE_WORDS,
    TEST_WORDS,
    TRAIN_WORDS,
    VALIDATION_WORDS,
    Split,
    has_word,
    is_channel_name,
    is_role_name,
    split_of,
    tokens,
    without_role_words,
)

Kind = Literal["single", "stack", "objects", "channels"]
MIN_WORD = 4  # letters of a word; ids may contain shorter words by chance
MIN_CASES = 2  # minimum number of cases of a series
# Minimum number of case folders in one folder. Two folders are more often one of images and one of masks.
MIN_FOLDERS = 3
MAX_AFFIXES = 24  # different ends of file names in one folder
MOST = 0.8  # a layout must fit at least this share of the files (or folders)
LONG_WORDS = frozenset(
    word for word in MASK_WORDS | IMAGE_WORDS | TRAIN_WORDS | TEST_WORDS | VALIDATION_WORDS if len(word) >= MIN_WORD
)
MAX_CHANNEL_FILES = 4  # more files that differ only in a number are slices or objects, not channels


Affixes = dict[str, tuple[str, str, str]]  # stem -> beginning, core, end


@dataclass(frozen=True)
class Series:
    """Hold the files that one pattern matches.

    Attributes:
        pattern: pattern below the root, with {id}; a stack also has {z}, and a folder of objects `*`.
        kind: `single` if a case is one file, `stack` for files of slices, `objects` for one file per object,
            `channels` for one file per channel.
        files: paths of the files by id.
        label: text that distinguishes the series from similar series: suffix or prefix of the names, or the folder.
        origin: the folder if all files lie in one folder; empty for files in case folders.
        whole: whether the id is the whole file name, although the names of the folder can be divided into several
            series.
        members: patterns of the merged series, if this series was merged from several.
    """

    pattern: str
    kind: Kind
    files: dict[str, list[str]] = field(repr=False)
    label: str = ""
    origin: str = ""
    whole: bool = False
    members: tuple[str, ...] = ()

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the cases."""
        return frozenset(self.files)

    @property
    def split(self) -> Split:
        """The split (train, val or test) that the folders' names suggest; empty if they suggest none."""
        return split_of(self.pattern)

    @property
    def extension(self) -> str:
        """Extension of the first file, in lower case."""
        return extension_of(next(iter(self.files.values()))[0])

    def sample(self, count: int) -> list[str]:
        """Return at most `count` of the files, evenly spaced over the cases."""
        ids = sorted(self.files)
        chosen = [ids[number * len(ids) // min(count, len(ids))] for number in range(min(count, len(ids)))]
        return [self.files[case_id][len(self.files[case_id]) // 2] for case_id in chosen]


Pair = tuple[Series, Series]  # images and masks, reduced to the ids that both have


def find_series(host: HostFolder) -> list[Series]:
    """Find all series of a folder: files of several cases in one folder, and files in case folders."""
    found: list[Series] = []
    consumed: list[str] = []  # folders below which no other series is searched
    used: list[str] = []  # case folders that have files of a series
    for parent in sorted(host.children, key=lambda name: (name.count("/"), name)):
        if _is_within(parent, used) or (
            _is_within(parent, consumed) and any(_is_within(folder, [parent]) for folder in used)
        ):
            continue
        for depth in (2, 1) if _only_folders(host, parent) else (1,):
            series = _case_folder_series(host, parent, depth)
            if series:
                found += series
                used += _used_folders(parent, depth, series)
                consumed += [f"{parent}/{name}".strip("/") for name in _without_trees(host, parent)]
                break
    for folder, names in sorted(host.folders.items()):
        if not _is_within(folder, consumed):
            found += flat_series(folder, names)
    return found


def _is_within(folder: str, others: Iterable[str]) -> bool:
    """Return whether a folder is one of the folders `others`, or lies below one of them."""
    return any(folder == other or folder.startswith(f"{other}/") for other in others)


def _used_folders(parent: str, depth: int, series: Sequence[Series]) -> list[str]:
    """Return the case folders that contain a file of a series with several cases.

    The remaining case folders may belong to another layout.
    """
    level = depth + (parent.count("/") + 1 if parent else 0)
    common = [item for item in series if len(item.files) >= MIN_CASES]
    paths = (path for item in common for files in item.files.values() for path in files)
    return sorted({"/".join(path.split("/")[:level]) for path in paths})


def _without_trees(host: HostFolder, parent: str) -> dict[str, list[str]]:
    """Return the image paths by subfolder, without subfolders that repeat the case folders, such as `derivatives`.

    In a folder with `sub-01`, `sub-02` and `derivatives/sub-01`, `derivatives` contains the same cases a second time.
    """
    children = host.children[parent]
    if len(children) <= MIN_FOLDERS:
        return children
    inner = {name: {part for path in paths for part in path.split("/")[:-1]} for name, paths in children.items()}
    return {
        name: paths
        for name, paths in children.items()
        if len(inner[name] & children.keys()) < 0.5 * (len(children) - 1)
    }


def _only_folders(host: HostFolder, parent: str) -> bool:
    """Return whether the subfolders of a folder contain only folders and no images.

    An example is `patient/patient_day1/image.png`.
    """
    return not any("/" not in path for paths in host.children[parent].values() for path in paths)


# Files of several cases in one folder


def flat_series(folder: str, names: list[str]) -> list[Series]:
    """Return the series of files in one folder; each series has its own suffix or prefix in the file names."""
    stems = {name: strip_extension(name) for name in names}
    split = (
        _by_longer_names(set(stems.values()))
        or _by_last_word(set(stems.values()))
        or _by_channel_number(set(stems.values()))
        or _by_first_word(set(stems.values()))
        or {}
    )
    series = _group_names(folder, stems, split)
    if split:
        series += [replace(item, whole=True) for item in _group_names(folder, stems, {})]
    return [item for item in series if len(item.files) >= MIN_CASES] + _numbered_slices(folder, stems)


def _group_names(folder: str, stems: dict[str, str], split: Affixes) -> list[Series]:
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for name, stem in stems.items():
        before, core, after = split.get(stem, ("", stem, ""))
        groups.setdefault((before, after, extension_of(name)), {})[core] = [join(folder, name)]
    return [
        Series(
            join(folder, f"{before}{{id}}{after}{extension}"),
            "single",
            files,
            (before or after).strip("_-. ") or folder.rpartition("/")[2],
            folder,
        )
        for (before, after, extension), files in _merge_extensions(groups).items()
    ]


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder, relative to the root; an empty `folder` is the root itself."""
    return f"{folder}/{name}" if folder else name


def _merge_extensions(
    groups: dict[tuple[str, str, str], dict[str, list[str]]],
) -> dict[tuple[str, str, str], dict[str, list[str]]]:
    """Merge groups of 2D files whose names differ only in the extension, such as `.jpg` and `.jpeg`.

    The extension of a merged group is `.*`. Groups that share an id are not merged.

    Args:
        groups: paths by id, for each beginning, end and extension of the file names.
    """
    merged: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    by_affix: dict[tuple[str, str], list[str]] = {}
    for before, after, extension in groups:
        by_affix.setdefault((before, after), []).append(extension)
    for (before, after), extensions in by_affix.items():
        ids = [set(groups[before, after, extension]) for extension in extensions]
        mergeable = (
            len(extensions) > 1
            and not any(extension.startswith((".nii", ".np")) for extension in extensions)
            and sum(map(len, ids)) == len(set().union(*ids))
        )
        for extension in extensions:
            key = (before, after, ".*" if mergeable else extension)
            merged.setdefault(key, {}).update(groups[before, after, extension])
    return merged


def _by_longer_names(stems: set[str]) -> Affixes | None:
    """Divide each name that begins with another name, as `a_mask` begins with `a`, into id and suffix."""
    split: Affixes = {}
    for stem in stems:
        cuts = (match.start() for match in re.finditer(r"[_\-. ]+(?=[A-Za-z0-9])", stem))
        base = next((stem[:cut] for cut in sorted(cuts, reverse=True) if stem[:cut] in stems), None)
        if base is not None and re.search(r"[A-Za-z]", stem[len(base) :]):
            split[stem] = ("", base, stem[len(base) :])
    ends = Counter(after for _, _, after in split.values())
    common = {after for after, count in ends.items() if count >= MIN_CASES}
    split = {stem: parts for stem, parts in split.items() if parts[2] in common}
    return split if common and len(common) <= MAX_AFFIXES else None


def _by_last_word(stems: set[str]) -> Affixes | None:
    """Divide names into id and last word, if the last words occur repeatedly: `a_flair`, `a_t1`, `a_seg`."""
    return _repeated_affixes(stems, re.compile(r"(?P<core>.+?)(?P<affix>[_\-. ][A-Za-z][A-Za-z0-9]*)"), after=True)


def _by_channel_number(stems: set[str]) -> Affixes | None:
    """Divide names into id and channel number, if they end in four digits as in nnU-Net: `a_0000`, `a_0001`.

    Names such as `IMG_0000` do not end in a channel number.
    """
    if any(is_role_name(stem.rpartition("_")[0]) for stem in stems):
        return None
    return _repeated_affixes(stems, re.compile(r"(?P<core>.+)(?P<affix>_00[0-9]{2})"), after=True)


def _by_first_word(stems: set[str]) -> Affixes | None:
    """Divide names into first word and id, if the first words occur repeatedly: `image_01`, `mask_01`."""
    return _repeated_affixes(stems, re.compile(r"(?P<affix>[A-Za-z]+[_\-. ]?)(?P<core>.+)"), after=False)


def _repeated_affixes(stems: set[str], expression: re.Pattern[str], after: bool) -> Affixes | None:
    """Divide names into affix (suffix or prefix) and core (id) by a regular expression.

    Return None unless several affixes occur with mostly the same cores.

    Args:
        stems: file names without extension.
        expression: regular expression with the groups `affix` and `core`.
        after: whether the affix follows the core.
    """
    split: Affixes = {}
    cores: dict[str, set[str]] = {}
    for stem in stems:
        match = expression.fullmatch(stem)
        if match:
            split[stem] = ("", match["core"], match["affix"]) if after else (match["affix"], match["core"], "")
            cores.setdefault(match["affix"], set()).add(match["core"])
    common = {affix: ids for affix, ids in cores.items() if len(ids) >= MIN_CASES}
    if not 2 <= len(common) <= MAX_AFFIXES or sum(map(len, common.values())) < MOST * len(stems):
        return None
    every = set().union(*common.values())
    shared = sum(len(ids) for ids in common.values()) / len(common)
    if shared < 0.5 * len(every):
        return None
    return {stem: parts for stem, parts in split.items() if parts[2 if after else 0] in common}


def _numbered_slices(folder: str, stems: dict[str, str]) -> list[Series]:
    """Return the stacks if all names have the form `a_slice_01.png`; otherwise an empty list."""
    expression = re.compile(r"(?P<id>.+?)(?P<mid>[_\-. ]?(?:" + "|".join(SLICE_WORDS) + r")[_\-]?)(?P<z>\d+)", re.I)
    files: dict[str, list[str]] = {}
    middles, extensions = set(), set()
    for name, stem in stems.items():
        match = expression.fullmatch(stem)
        if match is None:
            return []
        files.setdefault(match["id"], []).append(join(folder, name))
        middles.add(match["mid"])
        extensions.add(extension_of(name))
    if len(middles) != 1 or len(extensions) != 1 or len(files) < MIN_CASES or len(files) == len(stems):
        return []
    pattern = join(folder, f"{{id}}{middles.pop()}{{z}}{extensions.pop()}")
    return [Series(pattern, "stack", files, folder.rpartition("/")[2])]


# Folders of cases


def _case_folder_series(host: HostFolder, parent: str, depth: int) -> list[Series]:
    """Return the series of files in case folders.

    Return an empty list if there are too few case folders, or if no series has a file in most of them.

    Args:
        host: the scanned folder.
        parent: the folder that contains the case folders (depth 1), or whose subfolders contain them (depth 2).
        depth: 1 or 2.
    """
    cases = case_folders(host, parent, depth)
    if len(cases) < MIN_FOLDERS or have_roles(list(cases)):
        return []
    prefix = join(parent, "*/{id}" if depth == 2 else "{id}")
    entries: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = {}  # folder, extension -> id -> (name, path)
    for case_id, (folder, inner_paths) in cases.items():
        for inner in inner_paths:
            key = re.sub(rf"(?<![A-Za-z0-9]){re.escape(case_id)}(?![A-Za-z0-9])", "{id}", inner)
            inner_folder, _, name = key.rpartition("/")
            place = (inner_folder, extension_of(name))
            entries.setdefault(place, {}).setdefault(case_id, []).append((name, f"{folder}/{inner}"))
    series = [
        item for (inner_folder, _), names in entries.items() for item in _inner_series(prefix, inner_folder, names)
    ]
    covered = max((len(item.files) for item in series), default=0)
    return series if covered >= MOST * len(cases) else []


def have_roles(names: list[str]) -> bool:
    """Return whether folder names describe their content, like `images` and `masks`.

    Names such as `scan1` and `scan2`, which differ only in a number, do not.
    """
    kinds = {re.sub(r"\d+", "", name) for name in names}
    return (len(kinds) > 1 or len(names) == 1) and any(
        is_role_name(name) or has_word(name, LONG_WORDS) for name in names
    )


def case_folders(host: HostFolder, parent: str, depth: int) -> dict[str, tuple[str, list[str]]]:
    """Return the path of each folder that may be a case, and the images below it, by the folder's name.

    Return an empty dictionary if two folders have the same name.
    """
    children = _without_trees(host, parent)
    if depth == 1:
        return {name: (join(parent, name), paths) for name, paths in children.items()}
    cases: dict[str, tuple[str, list[str]]] = {}
    if have_roles(list(children)):
        return {}
    for child in children:
        for name, paths in host.children.get(join(parent, child), {}).items():
            if name in cases:
                return {}
            cases[name] = (join(join(parent, child), name), paths)
    return cases if len(children) > 1 else {}


def _inner_series(prefix: str, folder: str, names: dict[str, list[tuple[str, str]]]) -> Iterator[Series]:
    """Yield the series of files that lie in the same subfolder of every case folder.

    Args:
        prefix: pattern of the case folders.
        folder: the subfolder; empty for the case folder itself.
        names: file name (with {id}) and path of each file, by case. All files have the same extension.
    """
    place = join(prefix, folder) if folder else prefix
    label = folder.rpartition("/")[2]
    many, rest = _split_numbered(names)
    for template, files in many.items():
        if not is_volume_name(template) and (pattern := _slice_pattern(template, files)) is not None:
            yield Series(
                join(place, pattern), "stack", {i: [path for _, path in items] for i, items in files.items()}, label
            )
        if label:
            yield _objects(place, names, label)
    frequency = Counter(name for items in rest.values() for name, _ in items)
    fixed = {name for name, count in frequency.items() if count >= max(2, 0.5 * len(names))}
    if fixed:  # files of a class that few cases have
        fixed |= {name for name, count in frequency.items() if count >= 2}
    for name in sorted(fixed):
        files_of = {case_id: [path] for case_id, items in rest.items() for other, path in items if other == name}
        stem = strip_extension(name)
        own = stem.replace("{id}", "").strip("_-. ")
        yield Series(join(place, name), "single", files_of, own or label)
    if rest and not fixed and not many and label:
        yield _objects(place, rest, label)
    used = sum(len(items) for items in names.values())
    if many or sum(count for name, count in frequency.items() if name in fixed) < used or _have_own_masks(fixed):
        yield from _pooled_series(place, names)


def _have_own_masks(names: set[str]) -> bool:
    """Return whether several files of a case folder have masks of their own, such as `ED`, `ED_gt`, `ES`, `ES_gt`."""
    ends = {strip_extension(name).replace("{id}", "").strip("_-. ") for name in names}
    images = {end for end in ends if not has_word(end, MASK_WORDS)}
    return len({own for end in ends - images if (own := without_role_words(end)) and own in images}) > 1


def _pooled_series(place: str, names: dict[str, list[tuple[str, str]]]) -> Iterator[Series]:
    """Yield series in which each file is its own case, if no two folders contain files of the same name."""
    path_of = {os.path.basename(path): path for items in names.values() for _, path in items}
    if len(names) >= MIN_CASES and len(path_of) == sum(map(len, names.values())):
        for item in flat_series(place.replace("{id}", "*"), list(path_of)):
            if item.kind == "single":
                files = {
                    case_id: [path_of[os.path.basename(path)] for path in paths]
                    for case_id, paths in item.files.items()
                }
                yield replace(item, files=files)


def _objects(place: str, names: dict[str, list[tuple[str, str]]], label: str) -> Series:
    extension = extension_of(next(iter(names.values()))[0][0])
    files = {case_id: sorted(path for _, path in items) for case_id, items in names.items()}
    return Series(join(place, f"*{extension}"), "objects", files, label)


Names = dict[str, list[tuple[str, str]]]


def _split_numbered(names: Names) -> tuple[dict[str, Names], Names]:
    """Separate files of a case that differ only in a number (slices, objects) from the remaining files."""
    templates: dict[str, Names] = {}
    for case_id, items in names.items():
        for name, path in items:
            templates.setdefault(re.sub(r"\d+", "#", name), {}).setdefault(case_id, []).append((name, path))
    many: dict[str, Names] = {}
    rest: Names = {}
    for template, files in templates.items():
        counts = [len(items) for items in files.values()]
        is_many = "#" in template and max(counts) > MAX_CHANNEL_FILES
        is_many = is_many or (
            "#" in template and max(counts) >= 2 and len(set(counts)) > 1 and not _are_channels(files)
        )
        if is_many:
            many[template] = files
        else:
            for case_id, items in files.items():
                rest.setdefault(case_id, []).extend(items)
    return many, rest


def _are_channels(files: Names) -> bool:
    return all(is_channel_name(tokens_after_id(name)) for items in files.values() for name, _ in items)


def tokens_after_id(name: str) -> str:
    """Return the part of a file name after {id}, without separators and extension."""
    return strip_extension(name).rpartition("{id}")[2].strip("_-. ")


def _slice_pattern(template: str, files: Names) -> str | None:
    """Return a stack's pattern, in which {z} replaces the first number that differs between all files of a case.

    Return None if there is no such number.
    """
    numbers = {case_id: [re.findall(r"\d+", name) for name, _ in items] for case_id, items in files.items()}
    count = template.count("#")
    position = None
    for index in range(count):
        if all(len({int(row[index]) for row in rows}) == len(rows) for rows in numbers.values()):
            position = index
            break
    if position is None:
        return None
    parts = template.split("#")
    text = parts[0]
    for index, part in enumerate(parts[1:]):
        values = {row[index] for rows in numbers.values() for row in rows}
        text += ("{z}" if index == position else values.pop() if len(values) == 1 else "*") + part
    return re.sub(r"\*(?:[.\-]\*)+", "*", text)


def is_volume_name(name: str) -> bool:
    """Return whether a file's extension belongs to a volume format."""
    return EXTENSIONS.get(extension_of(name)) in ("nifti", "itk")


# Ids without the parts that all names share


def trimmed(series: Series) -> Iterator[Series]:
    """Yield copies of a series with shorter ids: without their common suffix, their common prefix, or both."""
    if series.kind == "objects" or series.pattern.rpartition("/")[2].count("{id}") != 1 or "{id}/" in series.pattern:
        return
    ids = sorted(series.files)
    end = _common_end(ids)
    start = _common_start(ids)
    for before, after in (("", end), (start, ""), (start, end)):
        if not before and not after:
            continue
        cores = {case_id: case_id[len(before) : len(case_id) - len(after)] for case_id in ids}
        if all(cores.values()) and len(set(cores.values())) == len(ids):
            folder, _, name = series.pattern.rpartition("/")
            pattern = join(folder, name.replace("{id}", f"{before}{{id}}{after}"))
            yield replace(series, pattern=pattern, files={cores[i]: files for i, files in series.files.items()})


def _common_start(ids: Iterable[str]) -> str:
    """Return the prefix that all ids share, up to a separator or up to a number that follows a word."""
    names = list(ids)
    start = _common_prefix(names)
    start = start.rstrip("0123456789")
    if start and start[-1].isalpha() and not all(name[len(start) : len(start) + 1].isdigit() for name in names):
        start = start[: max((start.rfind(mark) for mark in "_-. "), default=-1) + 1]
    return start


def _common_end(ids: Iterable[str]) -> str:
    """Return the suffix that all ids share, from a separator on or, without a separator, after a number."""
    names = list(ids)
    end = _common_prefix([name[::-1] for name in names])[::-1]
    positions = [position for mark in "_-. " if (position := end.find(mark)) >= 0]
    if positions:
        return end[min(positions) :]
    end = end.lstrip("0123456789")
    return end if end and all(name[: len(name) - len(end)][-1:].isdigit() for name in names) else ""


def _common_prefix(names: list[str]) -> str:
    first, last = min(names), max(names)
    length = next((number for number, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: min(length, len(last))]


def has_slice_word(series: Series) -> bool:
    """Return whether a stack's pattern contains a word for slices."""
    return has_slice_name(series.pattern)


def has_slice_name(pattern: str) -> bool:
    """Return whether a pattern contains a word for slices."""
    return any(token in SLICE_WORDS for token in tokens(pattern.replace("{z}", " ").replace("{id}", " ")))
