"""Find the files of each case by the patterns of competition.yaml: images by channel, and ground truth.

If the files of a case are incomplete, the key `on_bad_case` decides whether the case is skipped or an error is raised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition.config.competition import Competition
from competition.data.patterns import (
    CaseFiles,
    check_ids_differ_by_more_than_case,
    drop_undecodable,
    id_problem,
    list_patterns,
    match_cases,
    match_channels,
    match_files,
    matches_many_files,
)
from competition.data.readers import extension_of
from competition.data.rle.tables import assign_rows
from competition.data.selection import SkippedCases, select_test_cases, select_training_cases
from competition.errors import MaskfoldError
from competition.text import same_problem

ImagesByChannel = dict[str, CaseFiles]  # files by channel, in the order of the YAML


def find_images(comp: Competition, split: str, skipped: SkippedCases) -> dict[str, ImagesByChannel]:
    """Find the images of every case.

    Args:
        comp: the competition.
        split: train or test.
        skipped: receives the bad cases, for example those that lack the file of a channel. If `on_bad_case` is `stop`,
            the first bad case is an error instead.

    Returns:
        Files by channel for each id, sorted by id. The YAML gives each channel its name; for a pattern with `{c}`, the
        name is the text that `{c}` matched. A single pattern without a name and without `{c}` is the channel `image`.

    Raises:
        MaskfoldError: a pattern is invalid or matches no file (see `match_cases`), or a case is bad and `on_bad_case`
            is `stop`.
    """
    section = comp.train if split == "train" else comp.test
    if section is None:
        raise MaskfoldError(
            f"The competition {comp.name} has no `test` section.",
            "Add `test: {images: …}` to the competition's YAML.",
            status=2,
        )
    key = f"{split}.images"
    patterns = section.images if isinstance(section.images, dict) else {"image": section.images}
    _check_no_2d_stacks(comp, patterns, key)
    channels = {
        name: match_cases(Path(comp.root), pattern, key if len(patterns) == 1 else f"{key}.{name}")
        for name, pattern in patterns.items()
        if "{c}" not in pattern
    }
    for pattern in patterns.values():
        if "{c}" in pattern:
            _check_single_pattern(patterns, key)
            channels = match_channels(Path(comp.root), pattern, key)
            patterns = dict.fromkeys(channels, pattern)
    for cases in channels.values():
        _drop_masks(comp, split, cases)
    channels = {name: drop_undecodable(cases, key, Path(comp.root), skipped) for name, cases in channels.items()}
    ids = sorted(set().union(*channels.values()))
    check_ids_differ_by_more_than_case(ids, key)
    if split == "train":
        ids, skipped.excluded = select_training_cases(comp, ids)
    else:
        ids = select_test_cases(comp, ids)
    for case_id in ids:
        if (reason := id_problem(comp, case_id)) is not None:
            skipped.add(
                case_id, MaskfoldError(f"Invalid case id from {key}: {case_id!r} {reason}.", "Rename the file.")
            )
    for name, cases in channels.items():
        incomplete = [case_id for case_id in ids if case_id not in cases]
        pattern_key = key if "{c}" in patterns[name] else f"{key}.{name}"
        _skip_all(
            incomplete,
            f"has no channel {name}: no file matches {pattern_key} `{patterns[name].replace('{c}', name)}`",
            "Add the file, or skip such cases with competition.on_bad_case=skip.",
            skipped,
        )
    images_of = {
        case_id: {name: cases[case_id] for name, cases in channels.items()}
        for case_id in ids
        if case_id not in skipped.reasons
    }
    for case_id, images in images_of.items():
        _check_same_slices(case_id, images, key, skipped)
    return {case_id: images for case_id, images in images_of.items() if case_id not in skipped.reasons}


def _drop_masks(comp: Competition, split: str, cases: dict[str, CaseFiles]) -> None:
    """Remove mask files from `cases`, because an image pattern such as `{id}.png` also matches `a_mask.png`."""
    if split == "train":
        patterns = [*list_patterns(comp.train.masks), *list_patterns(comp.train.region)]
    else:
        patterns = list_patterns(comp.test.region if comp.test is not None else None)
    case_of = {
        _with_lower_extension(path): case_id
        for case_id, case in cases.items()
        for path in [*case.paths[:1], *(item.path for item in case.slices)]
    }
    for pattern in patterns:
        if "*" in pattern:
            _drop_matches(comp, pattern, cases, case_of)
            continue
        for case_id in list(cases):
            for z in [item.z for item in cases[case_id].slices] if case_id in cases and "{z}" in pattern else [""]:
                path = pattern.replace("{id}", case_id).replace("{z}", z)
                mask = case_of.get(_with_lower_extension(path))
                if mask is not None and mask != case_id:
                    cases.pop(mask, None)


def _with_lower_extension(path: str) -> str:
    """Return a path with its extension in lower case, because patterns match extensions in any case."""
    extension = extension_of(path)
    return path[: len(path) - len(extension)] + extension


def _drop_matches(comp: Competition, pattern: str, cases: dict[str, CaseFiles], case_of: dict[str, str]) -> None:
    """Remove from `cases` each image that is a mask of another case by a pattern with `*`, such as `*/{id}_mask.png`.

    `case_of` maps the path of each image, with its extension in lower case, to the image's id.
    """
    try:
        masks = match_files(Path(comp.root), pattern, "train.masks")
    except MaskfoldError:  # `find_masks` reports a pattern without a match
        return
    for case_id, paths in masks.items():
        for path in paths if case_id in cases else ():
            other = case_of.get(_with_lower_extension(path))
            if other is not None and other != case_id:
                cases.pop(other, None)


def find_masks(
    comp: Competition, images: dict[str, ImagesByChannel], skipped: SkippedCases
) -> dict[str, dict[str, Any]]:
    """Find the ground truth of every training case.

    Args:
        comp: the competition.
        images: as `find_images` returns them.
        skipped: receives cases without a mask, masks without a case, and table rows with unknown ids. If `on_bad_case`
            is `stop`, the first of these is an error instead.

    Returns:
        A mapping from each id to one of the following; `slices` is the list of the paths of a stack's slices:
        ``{"kind": "labels", "files": path or slices}``, ``{"kind": "classes", "files": {class: path or slices}}``,
        ``{"kind": "instances", "files": {class: paths}}``, ``{"kind": "rle", "table": path, "rows": [[line, class,
        slice or null], …]}``. If `train.region` is set, the key `region` (a path or slices) is added.

    Raises:
        MaskfoldError: a pattern or table is invalid; or an image has no mask, or a mask has no image, and `on_bad_case`
            is `stop`.
    """
    masks = _find_truth(comp, images, skipped)
    if comp.train.region is None:
        return masks
    root, key = Path(comp.root), "train.region"
    regions = drop_undecodable(match_cases(root, comp.train.region, key), key, root, skipped)
    _skip_all(
        [case_id for case_id in masks if case_id not in regions],
        f"has no region mask: no file matches {key} `{comp.train.region}`",
        "Add the file, or skip such cases with competition.on_bad_case=skip.",
        skipped,
    )
    for case_id in masks:
        if case_id in regions:
            _check_same_slices(case_id, {**images[case_id], "region": regions[case_id]}, key, skipped)
    return {
        case_id: {**truth, "region": regions[case_id].files}
        for case_id, truth in masks.items()
        if case_id not in skipped.reasons
    }


def _find_truth(
    comp: Competition, images: dict[str, ImagesByChannel], skipped: SkippedCases
) -> dict[str, dict[str, Any]]:
    """Find the ground truth of every training case, without the region masks."""
    if comp.train.rle is not None:
        rows = assign_rows(comp, {case_id: next(iter(files.values())) for case_id, files in images.items()}, skipped)
        return {case_id: {"kind": "rle", "table": comp.train.rle, "rows": rows[case_id]} for case_id in images}
    masks = comp.train.masks
    patterns = masks if isinstance(masks, dict) else {comp.classes[0]: str(masks)}
    kinds = {matches_many_files(pattern) for pattern in patterns.values()}
    if len(kinds) > 1:
        raise MaskfoldError(
            "train.masks mixes single files with folders of instances (a pattern with `*`), expected one kind "
            "for all classes.",
            "Use the same kind of pattern for all classes.",
            status=2,
        )
    _check_no_2d_stacks(comp, patterns, "train.masks")
    if kinds == {True}:
        return _find_instances(comp, patterns, images, skipped)
    masks_of: dict[str, dict[str, CaseFiles]] = {case_id: {} for case_id in images}
    for name, pattern in patterns.items():
        key = f"train.masks.{name}" if isinstance(masks, dict) else "train.masks"
        cases = drop_undecodable(match_cases(Path(comp.root), pattern, key), key, Path(comp.root), skipped)
        _skip_masks_without_image(comp, list(cases), images, f"{key} `{pattern}`", skipped)
        _skip_all(
            [case_id for case_id in images if case_id not in cases and comp.train.missing_masks == "error"],
            f"has an image ({{image}}) but no mask: no file matches {key} `{pattern}`",
            _channel_suffix_hint(comp, images, list(cases))
            or "Add the mask"
            + (
                ", set competition.train.missing_masks=empty if the case has no such object"
                if isinstance(masks, dict)
                else ""
            )
            + ", or skip such cases with competition.on_bad_case=skip.",
            skipped,
            images,
        )
        for case_id in images:
            if case_id in cases:
                masks_of[case_id][name] = cases[case_id]
                _check_same_slices(case_id, {**images[case_id], f"mask {name}": cases[case_id]}, key, skipped)
    kept = {case_id: cases for case_id, cases in masks_of.items() if case_id not in skipped.reasons}
    if isinstance(masks, dict):
        return {
            case_id: {"kind": "classes", "files": {name: case.files for name, case in cases.items()}}
            for case_id, cases in kept.items()
        }
    return {case_id: {"kind": "labels", "files": cases[comp.classes[0]].files} for case_id, cases in kept.items()}


def _find_instances(
    comp: Competition, patterns: dict[str, str], images: dict[str, ImagesByChannel], skipped: SkippedCases
) -> dict[str, dict[str, Any]]:
    """Find the instance masks (one file per object) of every training case."""
    if not isinstance(comp.train.masks, dict) and len(comp.classes) > 1:
        raise MaskfoldError(
            f"train.masks is one folder of instances, expected one pattern for each of the {len(comp.classes)} "
            "classes in competition.classes.",
            "Set train.masks to a mapping with one pattern for each class.",
            status=2,
        )
    files: dict[str, dict[str, list[str]]] = {case_id: {} for case_id in images}
    for name, pattern in patterns.items():
        if "{z}" in pattern:
            raise MaskfoldError(
                f"train.masks: the pattern `{pattern}` mixes slices ({{z}}) with a folder of instances (`*`), expected "
                "only one of them.",
                "Remove {z}, and save one file per object. Or remove `*`, and save one label file per slice.",
                status=2,
            )
        paths_of = drop_undecodable(
            match_files(Path(comp.root), pattern, "train.masks"), "train.masks", Path(comp.root), skipped
        )
        _skip_masks_without_image(comp, list(paths_of), images, f"train.masks `{pattern}`", skipped)
        in_own_folder = "{id}" in pattern.rpartition("/")[0]
        _skip_all(
            [case_id for case_id in images if case_id not in paths_of and comp.train.missing_masks == "error"],
            f"has an image ({{image}}) but no {'folder of masks' if in_own_folder else 'mask'}: nothing matches "
            f"train.masks `{pattern}`",
            (
                "Add the folder; it may be empty if the case has no object."
                if in_own_folder
                else "Add the masks. If the case has no object, put the masks of each case into a folder of its own, "
                "such as masks/{id}/*.png; the folder may be empty."
            )
            + " Or skip such cases with competition.on_bad_case=skip.",
            skipped,
            images,
        )
        for case_id in images:
            files[case_id][name] = paths_of.get(case_id, [])
    return {
        case_id: {"kind": "instances", "files": names}
        for case_id, names in files.items()
        if case_id not in skipped.reasons
    }


def _skip_all(
    ids: list[str], problem: str, hint: str, skipped: SkippedCases, images: dict[str, ImagesByChannel] | None = None
) -> None:
    """Skip the cases `ids` if bad cases may be skipped; otherwise raise one error that names the first case."""
    more = "" if skipped.allowed else same_problem(len(ids) - 1, "case")
    for case_id in ids:
        files = next(iter(images[case_id].values())).files if images else ""
        shown = problem.replace("{image}", files if isinstance(files, str) else files[0])
        skipped.add(case_id, MaskfoldError(f"Case {case_id} {shown}.{more}", hint))


def _skip_masks_without_image(
    comp: Competition, ids: list[str], images: dict[str, ImagesByChannel], source: str, skipped: SkippedCases
) -> None:
    """Skip cases with a mask but no image, or raise an error if bad cases must not be skipped.

    If `train.cases` or `train.exclude` is set, such masks are ignored.
    """
    without_image = [
        case_id
        for case_id in ids
        if case_id not in images and case_id not in skipped.reasons and not comp.train.selects_cases
    ]
    _skip_all(
        without_image,
        f"has a mask ({source}) but no image",
        _channel_suffix_hint(comp, images, ids)
        or "Add the image, remove the mask, or skip such cases with competition.on_bad_case=skip.",
        skipped,
    )


def _channel_suffix_hint(comp: Competition, images: dict[str, ImagesByChannel], mask_ids: list[str]) -> str | None:
    """Return a hint if images are named as in nnU-Net, otherwise None.

    nnU-Net appends a channel number to the id, e.g. `a_0000`, but not to the name of the mask.
    """
    patterns = comp.train.images
    if isinstance(patterns, dict) or not any(f"{mask_id}_0000" in images for mask_id in mask_ids):
        return None
    likely = patterns.replace("{id}", "{id}_0000")
    return (
        "The names look like those of nnU-Net, with the number of the channel at the end: set train.images "
        f'to "{likely}".'
    )


def _check_same_slices(case_id: str, cases: dict[str, CaseFiles], key: str, skipped: SkippedCases) -> None:
    """Check that all stacks of a case have the same slice numbers; if not, add the case to `skipped`."""
    stacks = {name: {int(item.z) for item in case.slices} for name, case in cases.items() if case.slices}
    if not stacks:
        return
    first, *others = stacks
    for name in others:
        different = sorted(stacks[first] ^ stacks[name])
        if different:
            incomplete = name if different[0] in stacks[first] else first
            skipped.add(
                case_id,
                MaskfoldError(
                    f"Case {case_id} has no slice {different[0]} in {incomplete} ({key}), although other files of the "
                    f"case have this slice.{same_problem(len(different) - 1, 'slice')}",
                    "Add the file, or skip such cases with competition.on_bad_case=skip.",
                ),
            )


def _check_single_pattern(patterns: dict[str, str], key: str) -> None:
    """Check that a pattern with `{c}`, which stands for all channels, is the only pattern."""
    if len(patterns) > 1:
        raise MaskfoldError(
            f"{key} has several patterns, but one of them has {{c}}, which already stands for all channels.",
            "Use only the pattern with {c}, or one pattern without {c} for each channel.",
            status=2,
        )


def _check_no_2d_stacks(comp: Competition, patterns: dict[str, str], key: str) -> None:
    for pattern in patterns.values():
        if comp.dimensions == 2 and "{z}" in pattern:
            raise MaskfoldError(
                f"{key}: the pattern `{pattern}` has {{z}}, which stands for the slices of a volume, but "
                "competition.dimensions is 2.",
                "Set `dimensions: 3` for volumes. For 2D images, replace {z} so that {id} matches each slice as a "
                "case.",
                status=2,
            )


# Test images that the host hides

# A test set that is smaller than both limits (number of images; share of the training cases) counts as placeholders.
MAX_PLACEHOLDERS, PLACEHOLDER_SHARE = 10, 0.05


def count_test_images(comp: Competition) -> int | None:
    """Return the number of test cases with an image.

    Return None if the competition has no `test` section, or if the competition's folder is missing. Return 0 if the
    pattern matches no file or is invalid; `find_images` reports the error.
    """
    if comp.test is None or not Path(comp.root).is_dir():
        return None
    pattern = next(iter(list_patterns(comp.test.images)))
    try:
        matched = match_files(Path(comp.root), pattern, "test.images")
        return len(select_test_cases(comp, sorted(case_id for case_id, paths in matched.items() if paths)))
    except MaskfoldError:
        return 0


def has_hidden_test(test_count: int | None, train_count: int) -> bool:
    """Return whether the host seems to hide the test set: there are no test images, or very few.

    If `test_count` is None (see `count_test_images`), return False.
    """
    return test_count is not None and test_count < min(MAX_PLACEHOLDERS, max(1, PLACEHOLDER_SHARE * train_count))
