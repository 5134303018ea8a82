"""Pair images and mask files by their names: paired folders, paired names, case folders, stacks, objects."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from competition.planning.folder import HostFolder
from competition.planning.layout import Layout, Patterns, first_path, join_patterns
from competition.planning.layouts.belonging import prefer_own_images
from competition.planning.layouts.content import Role, dimensions_of, header_of, label_values, read_mask
from competition.planning.layouts.pooled import without_members
from competition.planning.layouts.series import MOST, Pair, Series, has_slice_word, trimmed
from competition.planning.words import (
    MASK_WORDS,
    OPINION_WORDS,
    TEST_WORDS,
    TRAIN_WORDS,
    VALIDATION_WORDS,
    has_word,
    is_channel_name,
    split_of,
    tokens,
    without_role_words,
)
from competition.text import format_count, name_problem

OPINION_DICE, MAX_OPINIONS = 0.6, 4  # Dice of two masks from which they may be of one object; masks of an image
BINARY_SAMPLE = 8  # masks per class that are read to check that each has one foreground value


@dataclass(frozen=True)
class Truth:
    """Hold the masks of the training cases: one file per case, per class, or per object."""

    kind: str
    classes: tuple[tuple[str, Series], ...]  # one entry named "" for label files and objects

    @property
    def patterns(self) -> Patterns:
        """The patterns in the form of `train.masks`."""
        return {name: series.pattern for name, series in self.classes} if self.kind == "classes" else self.first.pattern

    @property
    def first(self) -> Series:
        """The series of the first class."""
        return self.classes[0][1]

    @property
    def ids(self) -> frozenset[str]:
        """Cases with a mask of any class."""
        return frozenset().union(*(series.ids for _, series in self.classes))


def find_pairs(host: HostFolder, series: Sequence[Series], roles: dict[str, Role]) -> list[Layout]:
    """Find the layouts in which mask files belong to images by their names.

    Args:
        host: the scanned folder.
        series: result of `find_series`.
        roles: role of each series, by pattern.
    """
    masks = [item for item in series if roles[item.pattern] == "mask" or _is_blank_mask(item, roles)]
    images = [item for item in series if roles[item.pattern] == "image" and item.kind != "objects"]
    pairs = [pair for mask in masks for image in images if (pair := _match(host, image, mask)) is not None]
    pairs = without_members(_within_scans(_prefer_whole_names(pairs, series)))
    pairs = prefer_own_images(pairs)
    layouts = [
        _layout(host, channels, truth) for group in _groups(pairs) for truth, channels in _combinations(host, *group)
    ]
    return [find_test(host, layout, images) for layout in _merge_splits(layouts)]


def _is_blank_mask(series: Series, roles: dict[str, Role]) -> bool:
    return roles[series.pattern] == "either" and has_word(series.pattern, MASK_WORDS)


# Which masks belong to which images


def _match(host: HostFolder, image: Series, mask: Series) -> Pair | None:
    """Return image and mask series, reduced to the ids that they share; None if they do not belong together."""
    if image.pattern == mask.pattern or (image.split and mask.split and image.split != mask.split):
        return None
    if (image.kind, mask.kind) not in (("single", "single"), ("stack", "stack"), ("single", "objects")):
        return None
    for own_mask in (mask, *trimmed(mask)):
        if _share(own_mask.ids, image.ids) >= MOST:
            return (image, own_mask) if _fits(host, image, own_mask) else None
    for own_image in trimmed(image):
        for own_mask in (mask, *trimmed(mask)):
            if _share(own_mask.ids, own_image.ids) >= MOST:
                return (own_image, own_mask) if _fits(host, own_image, own_mask) else None
    objects = _numbered_objects(mask)
    if objects is not None and _share(objects.ids, image.ids) >= MOST:
        return (image, objects) if _fits(host, image, objects) else None
    return None


def _share(ids: frozenset[str], others: frozenset[str]) -> float:
    common = len(ids & others)
    return common / len(ids) if common >= min(2, len(ids)) else 0.0


def _numbered_objects(mask: Series) -> Series | None:
    """Return files such as `a_1`, `a_2` as objects of the case `a`; None if no case has several such files."""
    if mask.kind != "single" or mask.pattern.count("{id}") != 1:
        return None
    files: dict[str, list[str]] = {}
    for name, paths in mask.files.items():
        match = re.fullmatch(r"(.+)_\d+", name)
        if match is None:
            return None
        files.setdefault(match[1], []).extend(paths)
    if len(files) == len(mask.files):
        return None
    pattern = mask.pattern.replace("{id}", "{id}_*")
    return Series(pattern, "objects", {case_id: sorted(paths) for case_id, paths in files.items()}, mask.label)


def _fits(host: HostFolder, image: Series, mask: Series) -> bool:
    """Return whether an image and its mask have the same size and, for stacks, the same number of slices."""
    shared = sorted(image.ids & mask.ids)
    if image.kind == "stack":
        equal = sum(len(image.files[case_id]) == len(mask.files[case_id]) for case_id in shared)
        if equal < MOST * len(shared):
            return False
    for case_id in shared[:3]:
        one, other = (header_of(host.root / item.files[case_id][0]) for item in (image, mask))
        if one is not None and other is not None:
            return sorted(one.shape) == sorted(other.shape)
    return True


def _prefer_whole_names(pairs: list[Pair], series: Sequence[Series]) -> list[Pair]:
    """Return the pairs in which each folder is read in one way only: with whole names, or split into several series.

    A folder is read with whole names if its whole series pairs with the whole series of another folder, or if more
    cases pair in this way. For example, `Masks/{id}` belongs to `{id}_ch0` and `{id}_ch1`, although `Masks` can be
    split into `{id}_f01` and `{id}_f02`.
    """
    split = {item.origin for item in series if item.whole}

    def is_whole(item: Series) -> bool:
        return item.whole or item.origin not in split

    matched = {
        item.origin
        for image, mask in pairs
        if is_whole(image) and is_whole(mask) and image.origin != mask.origin
        for item in (image, mask)
    } & split

    def fits(item: Series) -> bool:
        return item.whole == (item.origin in matched) or item.origin not in split

    for side in (1, 0):  # masks first: the names of images more often have ends, such as channels
        for origin in sorted({pair[side].origin for pair in pairs} & split - matched):
            counts = {True: 0, False: 0}
            for pair in pairs:
                own, other = pair[side], pair[1 - side]
                if own.origin == origin and (fits(other) if other.origin != origin else not own.whole):
                    counts[own.whole] = max(counts[own.whole], len(pair[0].ids & pair[1].ids))
            if counts[True] > counts[False]:
                matched.add(origin)
    return [(image, mask) for image, mask in pairs if fits(image) and fits(mask)]


def _within_scans(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs without pairs of different scans, i.e. of two folders of a case that both have image and mask.

    Otherwise the second scan of a patient would be read as a channel of the first scan.
    """

    def folder(series: Series) -> str:
        return series.pattern.rpartition("/")[0]

    scans = {folder(image) for image, mask in pairs if folder(image) == folder(mask) and "{id}/" in folder(image)}
    return [
        (image, mask)
        for image, mask in pairs
        if folder(image) == folder(mask) or folder(image) not in scans or folder(mask) not in scans
    ]


# Channels and classes


def _groups(pairs: list[Pair]) -> Iterator[tuple[list[Series], list[Series]]]:
    """Yield groups of image series and mask series; in a group, every mask series belongs to every image series."""
    images_of: dict[str, tuple[Series, dict[str, Series]]] = {}
    for image, mask in pairs:
        images_of.setdefault(mask.pattern, (mask, {}))[1][image.pattern] = image
    by_images: dict[tuple[str, ...], tuple[list[Series], list[Series]]] = {}
    for mask, images in images_of.values():
        by_images.setdefault(tuple(sorted(images)), (list(images.values()), []))[1].append(mask)
    yield from by_images.values()


def _combinations(
    host: HostFolder, images: list[Series], masks: list[Series]
) -> Iterator[tuple[Truth, list[tuple[str, Series]]]]:
    stacked = [item for item in images if item.kind == "stack"]
    if stacked and any(has_slice_word(item) for item in stacked if "{id}/" in item.pattern):
        images = stacked  # the folders' names say that their files are slices
    for kind in ("single", "stack"):
        channels = [item for item in images if item.kind == kind]
        if channels:
            for truth in _truths(host, [mask for mask in masks if (mask.kind == "stack") == (kind == "stack")]):
                for choice in _channel_choices(channels):
                    yield truth, choice


def _truths(host: HostFolder, masks: list[Series]) -> Iterator[Truth]:
    """Yield the ways to read several masks of the same images: one class each, or alternatives to choose from."""
    singles = [mask for mask in masks if mask.kind != "objects"]
    names = [_class_name(mask) for mask in singles]
    is_classes = (
        len(singles) > 1
        and len(set(map(str.casefold, names))) == len(names)
        and all(name and name_problem(name) is None for name in names)
        and not any(_is_opinion(name) for name in names)
        and all(_is_binary(host, mask) for mask in singles)
    )
    if is_classes:
        yield Truth("classes", tuple(sorted(zip(names, singles, strict=True))[:250]))
    if not is_classes or _are_alike(host, singles):
        yield from (Truth("labels", (("", mask),)) for mask in singles)
    yield from (Truth("objects", (("", mask),)) for mask in masks if mask.kind == "objects")


def _class_name(mask: Series) -> str:
    return without_role_words(mask.label)


def _is_opinion(name: str) -> bool:
    words = tokens(name)
    return all(word.isdigit() or word in OPINION_WORDS or len(word) == 1 for word in words) or any(
        word in ("annotator", "observer", "reader", "rater", "expert", "grader", "radiologist") for word in words
    ) or re.fullmatch(r"v\d+", name) is not None  # fmt: skip


def _is_binary(host: HostFolder, mask: Series) -> bool:
    for path in mask.sample(BINARY_SAMPLE):
        values = label_values(host.root / path, dimensions_of(host.root / path))
        if values is not None and not values.lossy and len(values.foreground) > 1:
            return False
    return True


def _are_alike(host: HostFolder, masks: Sequence[Series]) -> bool:
    """Return whether a few masks of the same images nearly agree, like the masks of two annotators.

    Masks of a part and its whole, such as a lesion in an organ, do not count: one mask lies inside the other.
    """
    if len(masks) > MAX_OPINIONS:
        return False
    for one, other in itertools.combinations(masks, 2):
        shared = sorted(one.ids & other.ids)
        step = max(1, len(shared) // BINARY_SAMPLE)
        agreeing = compared = 0
        for case_id in shared[::step]:
            paths = [host.root / item.files[case_id][0] for item in (one, other)]
            first, second = (read_mask(path, dimensions_of(path)) for path in paths)
            if first is None or second is None or first.shape != second.shape or not (first.any() and second.any()):
                continue
            both, sizes = np.count_nonzero(first & second), (np.count_nonzero(first), np.count_nonzero(second))
            compared += 1
            is_part = both >= 0.98 * min(sizes) and min(sizes) < 0.9 * max(sizes)
            agreeing += int(2 * both >= OPINION_DICE * sum(sizes) and not is_part)
        if compared and agreeing > 0.5 * compared:
            return True
    return False


def _channel_choices(images: list[Series]) -> Iterator[list[tuple[str, Series]]]:
    """Yield the ways to read several images of the same cases: as channels, or as alternatives to choose from."""
    images = sorted(images, key=lambda item: item.pattern)
    if len(images) == 1:
        yield [("image", images[0])]
        return
    names = [without_role_words(item.label) or item.label for item in images]
    channels = [
        (f"channel_{int(name)}" if name.isdigit() else name, item) for name, item in zip(names, images, strict=True)
    ]
    if len({name for name, _ in channels}) < len(channels):
        channels = [(f"{name}_{number}", item) for number, (name, item) in enumerate(channels)]
    yield channels
    in_folders = len({item.origin for item in images}) > 1  # folders `01` and `02` may also be two sequences
    if not all(is_channel_name(name) and not (in_folders and name.isdigit()) for name in names):
        yield from ([("image", item)] for item in images)


# Layouts


def _layout(host: HostFolder, channels: list[tuple[str, Series]], truth: Truth) -> Layout:
    image_ids = frozenset.intersection(*(series.ids for _, series in channels))
    ids = sorted(image_ids & truth.ids)
    first = channels[0][1]
    dimensions = 3 if first.kind == "stack" else dimensions_of(first_path(host, first))
    reasons = {
        "train.images": _images_reason(channels),
        "train.masks": _masks_reason(host, truth),
        "dimensions": _dimensions_reason(first, dimensions),
    }
    keys: dict[str, Any] = {}
    remarks = []
    if truth.kind == "objects":
        keys["instances"] = True
        reasons["instances"] = "the masks of a case are one file per object"
    unlabelled = len(image_ids) - len(ids)
    further = [case_id for case_id in sorted(image_ids - truth.ids) if _is_further_mask(case_id, truth.ids)]
    if further:
        file = first.files[further[0]][0]
        remarks.append(
            f"{format_count(len(further), 'file')} such as {file} may be further masks of images that have one "
            "already: not used; if they are, write one mask for each image"
        )
        unlabelled -= len(further)
    if unlabelled:
        remarks.append(f"{format_count(unlabelled, 'image')} without a mask: left out of training (train.cases)")
    partial = [name for name, series in truth.classes if not set(ids) <= series.ids]
    if truth.kind == "classes" and partial:
        keys["train.missing_masks"] = "empty"
        reasons["train.missing_masks"] = (
            f"not every case has a file of {', '.join(partial[:4])}: then it has no such object"
        )
        remarks.append("a missing file of a class is taken as a case without that class (train.missing_masks)")
    return Layout(
        _layout_name(first, truth),
        host,
        len(ids),
        join_patterns(channels),
        dimensions,
        truth.patterns,
        keys=keys,
        reasons=reasons,
        remarks=tuple(remarks),
        mask_files={
            name: {i: files for i, files in series.files.items() if i in image_ids} for name, series in truth.classes
        },
        listed=tuple(ids) if unlabelled or further else None,
        ids=tuple(ids),
    )


def _is_further_mask(case_id: str, ids: frozenset[str]) -> bool:
    """Return whether the id is another id plus a word for masks: `a_mask_1` beside `a`."""
    cuts = [match.start() for match in re.finditer(r"[_\-. ]", case_id)]
    return any(case_id[:cut] in ids and has_word(case_id[cut:], MASK_WORDS) for cut in cuts)


def _layout_name(image: Series, truth: Truth) -> str:
    if truth.kind == "objects":
        return (
            "an image and a folder of objects for each case" if "{id}/" in image.pattern else "a file for each object"
        )
    if image.kind == "stack":
        return "slice stacks"
    if truth.kind == "classes":
        return "a mask for each class"
    if "{id}/" in image.pattern:
        return "one folder for each case"
    same_folder = image.pattern.rpartition("/")[0] == truth.first.pattern.rpartition("/")[0]
    return "paired names" if same_folder else "paired folders"


def _images_reason(channels: list[tuple[str, Series]]) -> str:
    count = len(frozenset.intersection(*(series.ids for _, series in channels)))
    reason = format_count(count, "case") + (
        f" of {len(channels)} channels, named after the files" if len(channels) > 1 else ""
    )
    if "{z}" in channels[0][1].pattern:
        reason += "; {z} is the number of the slice"
    return reason


def _masks_reason(host: HostFolder, truth: Truth) -> str:
    if truth.kind == "classes":
        return f"{len(truth.classes)} files for each case, one for each class"
    if truth.kind == "objects":
        count = sum(len(files) for files in truth.first.files.values())
        return f"{format_count(count, 'object')} of {format_count(len(truth.ids), 'case')}, one file for each"
    return f"{format_count(len(truth.ids), 'mask')} with the names of the images"


def _dimensions_reason(image: Series, dimensions: int) -> str:
    if image.kind == "stack":
        return "a case is a stack of slices"
    return f"the files are {'2D images' if dimensions == 2 else 'volumes'} ({image.extension})"


# Training, validation and test


def structure(pattern: str) -> str:
    """Return a pattern's words, without the extension and without words for training, validation and test."""
    splits = TRAIN_WORDS | TEST_WORDS | VALIDATION_WORDS
    plain = re.sub(r"\.[A-Za-z*][\w.*]*$", "", pattern)
    parts = ["_".join(word for word in tokens(part) if word not in splits) for part in plain.split("/")]
    return "/".join(part for part in parts if part)


def _merge_splits(layouts: list[Layout]) -> list[Layout]:
    """Return the layouts of training cases; add a note for labelled test or validation cases of the same structure."""

    def split(layout: Layout) -> str:
        return split_of(_first_pattern(layout.images)) or split_of(_first_pattern(layout.masks or ""))

    def same(layout: Layout, other: Layout) -> bool:
        both = [(_first_pattern(item.images), _first_pattern(item.masks or "")) for item in (layout, other)]
        if "train" in (split(layout), split(other)):  # then the folders' other words may differ, as in `Test_v2`
            both = [(images.rpartition("/")[2], "") for images, _ in both]
        return [structure(text) for text in both[0]] == [structure(text) for text in both[1]]

    kept = []
    for layout in layouts:
        if split(layout) in ("test", "val") and any(
            same(layout, other) and split(other) in ("train", "") for other in layouts
        ):
            continue
        kept.append(layout)
        for other in layouts:
            if split(layout) in ("train", "") and split(other) in ("test", "val") and same(layout, other):
                what = f"{format_count(other.cases, 'labelled case')} in {_first_pattern(other.images)}"
                use = "only their images are used, as test cases" if split(other) == "test" else "not used"
                kept[-1] = replace(kept[-1], notes=tuple(dict.fromkeys((*kept[-1].notes, f"{what}: {use}"))))
    return kept


def _first_pattern(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))


def find_test(host: HostFolder, layout: Layout, images: Sequence[Series]) -> Layout:
    """Return the layout with the test images: the images in a test folder, named like the training images.

    Args:
        host: the scanned folder.
        layout: layout with training images.
        images: all series of images; one of them is taken if the test images have other names or another format.
    """
    channels = layout.images if isinstance(layout.images, dict) else {"image": layout.images}
    possible = _same_names(host, channels)
    if not possible and len(channels) == 1:
        name, pattern = next(iter(channels.items()))
        possible = [
            ({name: item.pattern}, len(item.ids))
            for item in images
            if item.split == "test"
            and not item.whole
            and (item.kind == "stack") == ("{z}" in pattern)
            and (item.kind == "stack" or dimensions_of(first_path(host, item)) == layout.dimensions)
        ]
    same = [
        (patterns, count)
        for patterns, count in possible
        if all(structure(patterns[name]) == structure(channels[name]) for name in channels)
    ]
    possible = same if len(same) == 1 else possible
    if len(possible) > 1:
        listed = ", ".join(next(iter(patterns.values())) for patterns, _ in possible[:4])
        return layout.with_remarks(f"several folders may hold the test images: {listed}; set `test` to one of them")
    if not possible:
        return layout
    patterns, count = possible[0]
    return replace(
        layout,
        test=patterns if isinstance(layout.images, dict) else next(iter(patterns.values())),
        reasons=layout.reasons | {"test.images": format_count(count, "case")},
    )


def _same_names(host: HostFolder, channels: dict[str, str]) -> list[tuple[dict[str, str], int]]:
    """Return for each test folder in which all channels match: the channels' patterns, and the number of cases."""
    parts = {name: _fixed_folder(pattern) for name, pattern in channels.items()}
    own = {folder for folder, _ in parts.values()}
    folders = sorted(folder for folder in {*host.folders, *host.children} if split_of(folder) == "test")
    found = []
    for folder in folders:
        if folder in own or (has_word(folder, MASK_WORDS) and not any(has_word(name, MASK_WORDS) for name in own)):
            continue
        if len(own) == 1:
            patterns = {name: f"{folder}/{rest}" for name, (_, rest) in parts.items()}
        else:  # a folder for each channel
            patterns = {name: _sibling(above, rest, folders) for name, (above, rest) in parts.items()}
        common = frozenset.intersection(*(_match_ids(host, pattern) for pattern in patterns.values()))
        if common and (patterns, len(common)) not in found:
            found.append((patterns, len(common)))
    return found


def _sibling(folder: str, rest: str, folders: Sequence[str]) -> str:
    """Return the pattern for the test folder that corresponds to a training folder; empty without such a folder."""
    same = [other for other in folders if structure(f"{other}/x") == structure(f"{folder}/x")]
    return f"{same[0]}/{rest}" if same else ""


def _fixed_folder(pattern: str) -> tuple[str, str]:
    """Split a pattern into its leading folders, which have no placeholder, and the rest."""
    parts = pattern.split("/")
    count = next(number for number, part in enumerate(parts) if "{" in part or "*" in part)
    return "/".join(parts[:count]), "/".join(parts[count:])


def _match_ids(host: HostFolder, pattern: str) -> frozenset[str]:
    """Return the ids of the images that match a pattern; only paths in `host.images` are compared, without the disk."""
    start = _fixed_folder(pattern)[0] + "/" if pattern else ""
    expression, last, seen = "", 0, False
    for match in re.finditer(r"\{([a-z]+)\}|\*", pattern):
        expression += re.escape(pattern[last : match.start()])
        if match[1] == "id":
            expression += "(?P=id)" if seen else "(?P<id>[^/]+)"
            seen = True
        else:
            expression += "[0-9]+" if match[1] else "[^/]*"
        last = match.end()
    whole = re.compile(expression + re.escape(pattern[last:]), re.IGNORECASE)
    matches = (whole.fullmatch(path) for path in host.images if path.startswith(start)) if pattern else ()
    return frozenset(match["id"] for match in matches if match)
