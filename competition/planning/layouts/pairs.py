"""Pair images and mask files by their names.

The files may lie in paired folders, have paired names in one folder, or lie in one folder per case. Cases may be
stacks of slices, and masks may be files of single objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from competition.data.patterns import list_patterns, without_match
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout, Patterns, first_path, join_patterns
from competition.planning.layouts.content import Role, dimensions_of, header_of
from competition.planning.layouts.matching.belonging import prefer_own_images
from competition.planning.layouts.matching.channels import as_channels, channel_choices
from competition.planning.layouts.matching.further_masks import is_further_mask, with_further_masks
from competition.planning.layouts.matching.held_out import (
    find_test,
    keep_training_ids,
    list_training_ids,
    mark_unlabelled,
    structure,
)
from competition.planning.layouts.matching.lists import apply_lists
from competition.planning.layouts.matching.overlays import drop_overlays, is_named_overlay, overlay_remarks
from competition.planning.layouts.matching.truths import Truth, truths_of
from competition.planning.layouts.pooled import without_members
from competition.planning.layouts.series import MOST, Pair, Series, has_slice_word, trimmed
from competition.planning.words import MASK_WORDS, has_word, split_of
from competition.text import format_count

USED_FOR_TEST = "only the images of these cases are used, as test cases"


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
    pairs, overlays = drop_overlays(host, _drop_contained(prefer_own_images(pairs)))
    images = [image for image in images if not is_named_overlay(image)]
    layouts = [
        layout
        for group in _groups(pairs)
        for truth, channels in _combinations(host, *group)
        for layout in _layouts(host, channels, truth)
    ]
    left_out = {path for item in overlays for paths in item.files.values() for path in paths}
    layouts = [
        layout.with_remarks(*overlay_remarks(overlays)).with_explained(left_out) for layout in _merge_splits(layouts)
    ]
    layouts = [keep_training_ids(_correct_notes(find_test(host, layout, images, masks))) for layout in layouts]
    return [list_training_ids(mark_unlabelled(apply_lists(layout))) for layout in layouts]


def _is_blank_mask(series: Series, roles: dict[str, Role]) -> bool:
    return roles[series.pattern] == "either" and has_word(series.pattern, MASK_WORDS)


# Which masks belong to which images


def _match(host: HostFolder, image: Series, mask: Series) -> Pair | None:
    """Pair a series of images with a series of masks, with shortened ids if necessary.

    Return None if the two do not match.
    """
    if image.pattern == mask.pattern or (image.split and mask.split and image.split != mask.split):
        return None
    if image.kind == "stack" and mask.kind == "single":
        image = as_channels(host, image, mask) or image
    if (image.kind, mask.kind) not in (
        ("single", "single"),
        ("stack", "stack"),
        ("single", "objects"),
        ("channels", "single"),
    ):
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
    """Return a series of files such as `a_1`, `a_2` as objects of the case `a`.

    Return None if the names do not end in numbers, or if no case has several such files.
    """
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
    """Return whether images and masks have the same size and, for stacks, the same number of slices."""
    shared = sorted(image.ids & mask.ids)
    if image.kind in ("stack", "channels") and any(_differ_in_size(host, image.files[i]) for i in shared[:3]):
        return False
    if image.kind == "stack":
        equal = sum(len(image.files[case_id]) == len(mask.files[case_id]) for case_id in shared)
        if equal < MOST * len(shared):
            return False
    for case_id in shared[:3]:
        one, other = (header_of(host.root / item.files[case_id][0]) for item in (image, mask))
        if one is not None and other is not None:
            return sorted(one.shape) == sorted(other.shape)
    return True


def _differ_in_size(host: HostFolder, paths: Sequence[str]) -> bool:
    """Return whether some of the files have different sizes, so that they cannot be slices of one case."""
    headers = [header_of(host.root / path) for path in paths[:: max(1, len(paths) // 8)]]
    return len({header.shape for header in headers if header is not None}) > 1


def _prefer_whole_names(pairs: list[Pair], series: Sequence[Series]) -> list[Pair]:
    """Decide for each folder whether case ids are whole file names or parts of them; drop pairs that contradict this.

    `Series.whole` says which of the two a series assumes. Whole names are case ids if they match the whole names of
    another folder, or if whole names give more cases with an image and a mask than parts of names do. For example,
    `Masks/{id}` belongs to `{id}_ch0` and `{id}_ch1`, although the names in `Masks` can be divided into `{id}_f01` and
    `{id}_f02`.
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
    matched -= _with_plain_names(pairs)

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


def _with_plain_names(pairs: Sequence[Pair]) -> set[str]:
    """Return the folders in which only images without a suffix are cases, such as `a.jpg` beside `a_b.png`.

    If images with a suffix were cases too, such a folder would not have more cases with a mask.
    """
    counts: dict[tuple[str, bool], int] = {}
    for image, mask in pairs:
        is_plain = image.pattern.rpartition("/")[2].startswith("{id}.")
        if is_plain and image.origin and image.origin != mask.origin:
            key = (image.origin, image.whole)
            counts[key] = max(counts.get(key, 0), len(image.ids & mask.ids))
    return {origin for origin, whole in counts if not whole and counts[origin, False] >= counts.get((origin, True), 0)}


def _within_scans(pairs: list[Pair]) -> list[Pair]:
    """Drop pairs of image and mask from different scans.

    A scan is a subfolder of a case folder, with both images and masks. With a pair from two scans, the second scan of a
    patient would be read as a channel of the first scan.
    """

    def folder(series: Series) -> str:
        return series.pattern.rpartition("/")[0]

    scans = {folder(image) for image, mask in pairs if folder(image) == folder(mask) and "{id}/" in folder(image)}
    return [
        (image, mask)
        for image, mask in pairs
        if folder(image) == folder(mask) or folder(image) not in scans or folder(mask) not in scans
    ]


def _drop_contained(pairs: list[Pair]) -> list[Pair]:
    """Drop each pair of series if another pair has more cases and contains all of its files.

    For example, `benign/benign (1).png` and `malignant/malignant (1).png` match the pattern `{id}/{id} (1).png`, in
    which each folder is a case. This pattern is dropped, because `*/{id}.png` matches these files and more cases.
    """
    files = [
        {(image.files[case_id][0], mask.files[case_id][0]) for case_id in image.ids & mask.ids}
        if (image.kind, mask.kind) == ("single", "single")
        else set()
        for image, mask in pairs
    ]
    return [pair for pair, own in zip(pairs, files, strict=True) if not own or not any(own < more for more in files)]


# Channels and classes


def _groups(pairs: list[Pair]) -> Iterator[tuple[list[Series], list[Series]]]:
    """Yield image series and mask series that belong together: each of these masks belongs to each of these images."""
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
    for kind in ("single", "stack", "channels"):
        channels = [item for item in images if item.kind == kind]
        if channels:
            for truth in truths_of(host, [mask for mask in masks if (mask.kind == "stack") == (kind == "stack")]):
                for choice in (
                    channel_choices(channels) if kind != "channels" else [[("image", item)] for item in channels]
                ):
                    yield truth, choice


# Layouts


def _layouts(host: HostFolder, channels: list[tuple[str, Series]], truth: Truth) -> Iterator[Layout]:
    """Yield the layout of images and masks, or two layouts if some images have several masks that overlap.

    See `with_further_masks`.
    """
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
    remarks = list(truth.remarks)
    if truth.region is not None:
        keys["train.region"] = truth.region.pattern
        reasons["train.region"] = (
            "these masks cover most of each image and contain the other masks, as the mask of a field of view does"
        )
    if first.kind == "stack" and not has_slice_word(first):
        remarks.append(
            f"the files of each case, such as {first.sample(1)[0]}, are read as the slices of a volume. If "
            "they are separate images (frames), choose the layout in which all folders are read together. If there is "
            "no such layout, put all images into one folder, with names that differ between the cases"
        )
    if truth.kind == "objects":
        keys["instances"] = True
        reasons["instances"] = "each case has one mask file for each object"
    further = {
        case_id: first.files[case_id][0]
        for case_id in sorted(image_ids - truth.ids)
        if is_further_mask(case_id, truth.ids)
    }
    unlabelled = tuple(sorted(image_ids - truth.ids - further.keys()))
    partial = [name for name, series in truth.classes if not set(ids) <= series.ids]
    if truth.kind == "classes" and partial:
        keys["train.missing_masks"] = "empty"
        reasons["train.missing_masks"] = (
            f"some cases have no mask file of {', '.join(partial[:4])}; a case without the file of a class is read as "
            "a case without this class"
        )
        remarks.append(
            "if the file of a class is missing, the case is read as a case without this class (train.missing_masks)"
        )
    layout = Layout(
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
        unlabelled=unlabelled,
    )
    if truth.unused is not None:
        layout = layout.with_explained(path for paths in truth.unused.files.values() for path in paths)
    if further:
        yield from with_further_masks(host, layout, further)
    else:
        yield layout


def _layout_name(image: Series, truth: Truth) -> str:
    name = _kind_name(image, truth)
    return name if truth.region is None else f"{name}, only within the region {truth.region.pattern}"


def _kind_name(image: Series, truth: Truth) -> str:
    if truth.kind == "objects":
        return (
            "an image and a folder of objects for each case" if "{id}/" in image.pattern else "a file for each object"
        )
    if image.kind in ("stack", "channels"):
        return "slice stacks" if image.kind == "stack" else "slices as channels"
    if truth.kind == "classes":
        return "a mask file for each class"
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
    if "{c}" in channels[0][1].pattern:
        reason += "; {c} is the number of the channel, because a case has many files, but one 2D mask"
    return reason


def _masks_reason(host: HostFolder, truth: Truth) -> str:
    if truth.kind == "classes":
        return f"{len(truth.classes)} files for each case, one for each class"
    if truth.kind == "objects":
        count = sum(len(files) for files in truth.first.files.values())
        return (
            f"{format_count(count, 'object')} of {format_count(len(truth.ids), 'case')}, with one file for each object"
        )
    return f"{format_count(len(truth.ids), 'mask')} with the names of the images"


def _dimensions_reason(image: Series, dimensions: int) -> str:
    if image.kind == "stack":
        return "a case is a stack of slices"
    return f"the files are {'2D images' if dimensions == 2 else 'volumes'} ({image.extension})"


# Training, validation and test


def _merge_splits(layouts: list[Layout]) -> list[Layout]:
    """Drop the layouts of labelled test or validation cases, if a training layout has the same structure.

    The training layout gets a note about the dropped cases.
    """

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
                use = USED_FOR_TEST if split(other) == "test" else "not used"
                kept[-1] = replace(kept[-1], notes=tuple(dict.fromkeys((*kept[-1].notes, f"{what}: {use}"))))
                kept[-1] = kept[-1].with_explained(_files_of(other))
    return kept


def _files_of(layout: Layout) -> set[str]:
    """Return the files that match the patterns of the layout's images and masks."""
    files = layout.folder.images
    return {*files}.difference(without_match([*list_patterns(layout.images), *list_patterns(layout.masks)], files))


def _correct_notes(layout: Layout) -> Layout:
    """Correct the notes about labelled test cases, if the layout has no test images.

    The notes say that the images of these cases are used as test images. In such a layout, they are not used at all.
    """
    if layout.test is not None:
        return layout
    return replace(layout, notes=tuple(note.replace(USED_FOR_TEST, "not used") for note in layout.notes))


def _first_pattern(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))
