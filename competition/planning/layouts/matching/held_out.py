"""Find the test images, and leave out labelled cases of the validation and test split.

Test images lie in a folder with a name such as `test`, and are named like the training images. In other competitions,
file names begin with the split: `train_1.bmp`, `testA_1.bmp`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from competition.planning.folder import HostFolder
from competition.planning.layout import Layout, first_path
from competition.planning.layouts.content import dimensions_of
from competition.planning.layouts.series import Series
from competition.planning.words import (
    HELD_OUT_WORDS,
    MASK_WORDS,
    TEST_WORDS,
    TRAIN_WORDS,
    UNLABELLED_WORDS,
    VALIDATION_WORDS,
    Split,
    has_word,
    split_of,
    tokens,
)
from competition.text import format_count, has_or_have, name_some

NO_TEST_FOLDER = "no folder is named test"  # beginning of the remark on other folders
MIN_TEST = 2  # a single image without a mask is rather a mistake than a test set


def structure(pattern: str) -> str:
    """Return the words of a pattern, without the extension and without words such as train, val and test.

    Patterns whose folders differ only in such words, such as `train/{id}` and `test/{id}`, have the same result.
    """
    splits = TRAIN_WORDS | TEST_WORDS | VALIDATION_WORDS
    plain = re.sub(r"\.[A-Za-z*][\w.*]*$", "", pattern)
    parts = ["_".join(word for word in tokens(part) if word not in splits) for part in plain.split("/")]
    return "/".join(part for part in parts if part)


def find_test(host: HostFolder, layout: Layout, images: Sequence[Series], masks: Sequence[Series] = ()) -> Layout:
    """Return a layout with the test images, which are the images in a test folder.

    If there are several such folders, the one whose files are named like the training images is taken.

    Args:
        host: the scanned folder.
        layout: layout with training images.
        images: all series of images; if the names or the format of the test images differ from those of the training
            images, the test images are one of these series.
        masks: all series of masks. Test images whose pattern would also match masks are not taken.
    """
    channels = layout.images if isinstance(layout.images, dict) else {"image": layout.images}
    possible = _same_names(host, channels, _is_test)
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
    mask_files = {path for item in masks for paths in item.files.values() for path in paths}
    mixed: list[tuple[str, str]] = []  # patterns that match files that look like masks, and the first of these files
    unmixed = []
    for patterns, count in possible:
        like_masks = [
            (pattern, min(matched))
            for pattern in patterns.values()
            if (matched := mask_files & set(files_matching(host, pattern).values()))
        ]
        mixed += like_masks
        if not like_masks:
            unmixed.append((patterns, count))
    if mixed:
        pattern, example = mixed[0]
        layout = layout.with_remarks(
            f"no test images are set, because the pattern `{pattern}` would also match files that may be "
            f"masks or previews, such as {example}. Move these files out of that folder, or predict the "
            "images with maskfold predict RUN --images FOLDER"
        )
    possible = unmixed
    if len(possible) > 1:
        listed = ", ".join(next(iter(patterns.values())) for patterns, _ in possible[:4])
        return layout.with_remarks(
            f"several folders may contain the test images: {listed}. Set test.images to one of these patterns"
        )
    if not possible:
        return layout if mixed else _find_held_out(host, layout, channels, masks)
    patterns, count = possible[0]
    longer = _longer_names(files_matching(host, next(iter(patterns.values()))))
    if longer:
        layout = layout.with_remarks(
            f"{format_count(len(longer), 'test image')} such as {longer[0]} {has_or_have(len(longer))} a name that "
            "begins with the name of another test image. If such files are results or masks, move them out of the "
            "folder of the test images"
        )
    return _with_region(_with_test(layout, patterns, format_count(count, "case")), next(iter(patterns.values())))


def _with_region(layout: Layout, pattern: str) -> Layout:
    """Set `test.region`, the pattern of the test images' region masks, if the training images have region masks.

    A region mask, such as a field of view, is 0 where pixels are excluded from training and scoring. If no region masks
    of the test images are found, only add a remark.

    Args:
        layout: layout with test images.
        pattern: pattern of the test images, or of their first channel.
    """
    region = layout.keys.get("train.region")
    if region is None:
        return layout
    host, ids = layout.folder, set(files_matching(layout.folder, pattern))
    folder, rest = _fixed_folder(region)
    others = sorted(other for other in {*host.folders, *host.children} if _is_test(other))
    beside = _sibling(folder, rest, others)
    if beside and ids <= set(files_matching(host, beside)):
        reason = "pixels outside these masks are not predicted, because the network is not trained there"
        return layout.with_keys({"test.region": beside}, {"test.region": reason})
    return layout.with_remarks(
        f"the network is trained only within the region masks `{region}`, but no region masks of the test images were "
        "found. Outside these regions, the predictions mean nothing. If the host scores pixels outside the regions, "
        "remove train.region; if there are region masks of the test images, set test.region"
    )


def _with_test(layout: Layout, patterns: dict[str, str], reason: str) -> Layout:
    test = patterns if isinstance(layout.images, dict) else next(iter(patterns.values()))
    return replace(layout, test=test, reasons=layout.reasons | {"test.images": reason})


def _is_test(folder: str) -> bool:
    return split_of(folder) == "test"


def _is_held_out(folder: str) -> bool:
    return split_of(folder) == "val" or has_word(folder.replace("hold_out", "holdout"), HELD_OUT_WORDS)


def _is_unlabelled(folder: str) -> bool:
    return has_word(folder, UNLABELLED_WORDS)


def _find_held_out(host: HostFolder, layout: Layout, channels: dict[str, str], masks: Sequence[Series]) -> Layout:
    """Return a layout with the images of a folder such as `external` or `val` as test images, if they have no masks.

    Many hosts give only the images of a validation set or of an external set, and score the predictions of these
    images. If there are several such folders, no test images are set, and a remark lists the folders. For folders of
    unlabelled images, only a remark is added.

    Args:
        host: the scanned folder.
        layout: layout without a test folder.
        channels: pattern of the training images by channel.
        masks: all series of masks.
    """
    labelled = [item.ids for item in masks if _is_held_out(item.pattern) or _is_unlabelled(item.pattern)]
    found = [
        (patterns, count)
        for patterns, count in _same_names(host, channels, _is_held_out)
        if not any(_share_cases(host, patterns, ids) for ids in labelled)
    ]
    for patterns, count in _same_names(host, channels, _is_unlabelled):
        pattern = next(iter(patterns.values()))
        if not any(_share_cases(host, patterns, ids) for ids in labelled):
            layout = layout.with_remarks(
                f"{format_count(count, 'image')} of `{pattern}`: not used, because {'it' if count == 1 else 'they'} "
                f"{has_or_have(count)} no masks. To train on pseudo-labels of such images, set "
                f"pseudo.images: '{pattern}' in experiment.yaml"
            ).with_explained(path for each in patterns.values() for path in files_matching(host, each).values())
    listed = ", ".join(f"`{next(iter(patterns.values()))}`" for patterns, _ in found[:4])
    if len(found) != 1:
        several = f"several folders have images without masks, which may be the test images: {listed}"
        return layout.with_remarks(f"{several}. Set test.images to one of these patterns") if found else layout
    patterns, count = found[0]
    images = f"{format_count(count, 'case')} without masks"
    return _with_test(layout, patterns, f"{images}; {NO_TEST_FOLDER}").with_remarks(
        f"{NO_TEST_FOLDER}, so {listed} ({images}) is read as the pattern of the test images. If the host scores other "
        "images, change test.images, or remove the key `test`"
    )


def _share_cases(host: HostFolder, patterns: dict[str, str], ids: frozenset[str]) -> bool:
    """Return whether at least half of the images that match the patterns have an id that is in `ids`."""
    own = frozenset.intersection(*(_match_ids(host, pattern) for pattern in patterns.values()))
    return 2 * len(own & ids) >= len(own)


def _longer_names(files: Mapping[str, str]) -> list[str]:
    """Return the files whose id is another file's id followed by a word, such as `0_predict` beside `0`."""
    cuts = {case_id: re.match(r"(.+?)[_\-. ][A-Za-z]\w*$", case_id) for case_id in files}
    return sorted(files[case_id] for case_id, match in cuts.items() if match and match[1] in files)


def _same_names(
    host: HostFolder, channels: dict[str, str], is_possible: Callable[[str], bool]
) -> list[tuple[dict[str, str], int]]:
    """Return patterns of images that are named like the training images, but lie in other folders.

    Args:
        host: the scanned folder.
        channels: pattern of the training images by channel.
        is_possible: function that takes the path of a folder, and returns whether the folder may be used.

    Returns:
        For each folder that has images of all channels: the pattern of each channel, and the number of cases.
    """
    parts = {name: _fixed_folder(pattern) for name, pattern in channels.items()}
    own = {folder for folder, _ in parts.values()}
    folders = sorted(folder for folder in {*host.folders, *host.children} if is_possible(folder))
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
    """Return the pattern of a channel's test images; an empty text if no folder fits.

    Args:
        folder: the folder of the channel's training images. The test folder has the same name, apart from words such as
            train and test.
        rest: the pattern below this folder.
        folders: all test folders.
    """
    same = [other for other in folders if structure(f"{other}/x") == structure(f"{folder}/x")]
    return f"{same[0]}/{rest}" if same else ""


def _fixed_folder(pattern: str) -> tuple[str, str]:
    """Split a pattern into its leading folders, which have no placeholder, and the rest."""
    parts = pattern.split("/")
    count = next(number for number, part in enumerate(parts) if "{" in part or "*" in part)
    return "/".join(parts[:count]), "/".join(parts[count:])


def _match_ids(host: HostFolder, pattern: str) -> frozenset[str]:
    """Return the ids of the images that match a pattern."""
    return frozenset(files_matching(host, pattern))


def test_ids(layout: Layout) -> frozenset[str]:
    """Return the ids of the images that match the patterns of the test images; empty without test images."""
    if layout.test is None:
        return frozenset()
    patterns = [layout.test] if isinstance(layout.test, str) else layout.test.values()
    return frozenset.intersection(*(_match_ids(layout.folder, pattern) for pattern in patterns))


def files_matching(host: HostFolder, pattern: str) -> dict[str, str]:
    """Return one file of the host's folder for each id that the pattern matches, as a path by id."""
    folder = _fixed_folder(pattern)[0] if pattern else ""
    start = f"{folder}/" if folder else ""
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
    return {match["id"]: match[0] for match in matches if match}


def keep_training_ids(layout: Layout) -> Layout:
    """Return a layout with only the training cases, if the name of each case begins with its split.

    The splits are training, validation and test. A note counts the cases that are left out. If a name begins with
    another word, or if no case is a training case, the layout is returned unchanged.
    """
    splits = {case_id: _split_of_name(case_id) for case_id in layout.ids}
    kinds = set(splits.values())
    if "train" not in kinds or "" in kinds or len(kinds) < 2:
        return layout
    ids = tuple(case_id for case_id in layout.ids if splits[case_id] == "train")
    others = [case_id for case_id in layout.ids if splits[case_id] != "train"]
    note = (
        f"{format_count(len(others), 'labelled case')}, such as {others[0]}: not used, because the names begin with a "
        "word for validation or test"
    )
    return replace(
        layout.with_cases(ids, "the images whose names begin with a word for training, such as train"),
        notes=(*layout.notes, note),
    )


def mark_unlabelled(layout: Layout) -> Layout:
    """Read images without a mask as test cases, if their names come last and there are no other test cases.

    Some hosts, such as the host of KiTS, give the highest numbers to the cases whose masks they keep secret. Whether or
    not the images become test cases, a remark states how many images have no mask. If they are left out, the remark
    names up to three of them, because a missing mask may be a mistake.
    """
    if not layout.unlabelled:
        return layout
    count = format_count(len(layout.unlabelled), "image")
    is_last = min(map(natural, layout.unlabelled)) > max(map(natural, layout.ids))
    patterns = layout.images if isinstance(layout.images, str) else " ".join(layout.images.values())
    may_be_test = is_last and len(layout.unlabelled) >= MIN_TEST and not split_of(patterns)
    if layout.test is not None or not may_be_test or layout.folder.broken:  # a broken link may be a mask
        named = name_some(sorted(layout.unlabelled, key=natural))
        return layout.with_remarks(f"{count} without a mask ({named}): left out of training (train.cases)")
    return replace(
        layout.with_remarks(f"{count} without a mask, whose names come last: read as test cases (test.cases)"),
        test=layout.images,
        test_listed=layout.unlabelled,
        reasons=layout.reasons | {"test.images": "the same folder", "test.cases": "the last images have no mask"},
    )


def list_training_ids(layout: Layout) -> Layout:
    """Return a layout that lists its training cases, if the patterns of the images also match other files.

    For example, `{id}.png` also matches `a_overlay.png`, which is no image of a case.
    """
    if layout.listed is not None or "{z}" in str(layout.images) or "{c}" in str(layout.images):
        return layout
    masks = {path for by_id in layout.mask_files.values() for paths in by_id.values() for path in paths}
    masks |= set(files_matching(layout.folder, layout.keys.get("train.region", "")).values())
    for pattern in [layout.images] if isinstance(layout.images, str) else layout.images.values():
        matches = files_matching(layout.folder, pattern)
        others = [path for case_id, path in matches.items() if case_id not in layout.ids and path not in masks]
        if others:
            return layout.with_cases(layout.ids, f"`{pattern}` also matches other files, such as {min(others)}")
    return layout


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `case2` before `case10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _split_of_name(case_id: str) -> Split:
    first = next(iter(tokens(case_id)), "")
    if first in TRAIN_WORDS:
        return "train"
    return "test" if first in TEST_WORDS else "val" if first in VALIDATION_WORDS else ""
