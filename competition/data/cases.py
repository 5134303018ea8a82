"""Build the case table: the checked files of each case (images by channel, ground truth), and the case's group."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from competition.config.axes import case_axes, file_axes, plausible_array_axes
from competition.config.competition import Competition
from competition.data.content.digests import case_digest, image_digest, label_files, reading_parts, truth_parts
from competition.data.geometry import check_same_grid
from competition.data.image_types import FIRST_SIDEWAYS, Header, combined_digest
from competition.data.masks import load_mask
from competition.data.patterns import (
    CaseFiles,
    SkippedCases,
    check_ids_differ_by_more_than_case,
    drop_undecodable,
    id_problem,
    match_cases,
    match_channels,
    match_files,
    matches_many_files,
    unmatched_images,
)
from competition.data.readers import display_name, exif_orientation, load_image, read_case_header
from competition.data.rle_tables import assign_rows
from competition.data.selection import WEIGHT, case_weights, select_test_cases, select_training_cases
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.text import format_count, has_or_have, join_or, same_problem

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)
COLUMNS = (
    "id", "split", "images", "masks", "group", "stratum", "shape", "spacing", "channels", "slices", "hash", "image_hash"
)  # fmt: skip
ImagesByChannel = dict[str, CaseFiles]  # files by channel, in the order of the YAML


def case_table(comp: Competition, split: str = "train") -> pandas.DataFrame:
    """Find and check all cases by file names, headers and tables; `load_image` and `load_mask` read the pixels.

    With `on_bad_case: skip` each case is read completely once, so that the table has only usable cases.

    Args:
        comp: the competition.
        split: train or test.

    Returns:
        Sorted by id, with the columns

        - id, split;
        - images: JSON, channel to path below the root, or to the paths of a stack's slices;
        - masks: JSON as described in `find_masks`; null for test cases;
        - group: value of `competition.group`; the id if it is not set. stratum: value of `competition.stratum`, or
          empty;
        - shape, spacing (mm): JSON lists along the spatial axes. channels: their number;
        - slices: JSON, the text that {z} matched in each slice; null for other cases;
        - image_hash: SHA-256 (hexadecimal) of the image files' bytes. hash: SHA-256 of the images and the ground truth.

        If `train.weights` gives any case another weight than 1, there is a column `weight` (text). ``attrs["skipped"]``
        lists (id, reason) of skipped cases, ``attrs["excluded"]`` the ids that `train.exclude` leaves out.

    Raises:
        MaskfoldError: a pattern or table is invalid, or a case is bad and `on_bad_case` is stop; or no case is left.
    """
    import pandas

    skipped = SkippedCases(comp)
    images = find_images(comp, split, skipped)
    masks = find_masks(comp, images, skipped) if split == "train" else {}
    rows = []
    for case_id in images:
        if case_id not in skipped.reasons:
            try:
                rows.append(case_row(comp, split, case_id, images[case_id], masks.get(case_id)))
            except MaskfoldError as error:
                skipped.add(case_id, error)
    if not rows:
        first, reason = next(iter(skipped.reasons.items()))
        raise MaskfoldError(
            f"No case is left, because {format_count(len(skipped.reasons), 'case')} "
            f"{'is' if len(skipped.reasons) == 1 else 'are'} skipped. The first is {first}: {reason}",
            "Correct the files of the cases, or the competition's YAML.",
        )
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    if split == "train":
        for key in ("group", "stratum"):
            table[key] = group_values(comp, table["id"].tolist(), key) or table[key]
        known = {*table["id"], *skipped.reasons, *skipped.excluded}
        if weights := case_weights(comp, known):
            table[WEIGHT] = [weights.get(case_id, "1") for case_id in table["id"]]
    table.attrs.update({"skipped": sorted(skipped.reasons.items()), "excluded": skipped.excluded})
    _warn_unmatched_images(comp, split)
    _warn_turned_images(comp, split, {case_id: images[case_id] for case_id in table["id"]})
    return table


def _warn_unmatched_images(comp: Competition, split: str) -> None:
    unmatched = unmatched_images(comp, split)
    if unmatched:
        named = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
        log.warning(
            "The folder of %s.images contains %s that no pattern of the YAML matches: %s. If such a file is a "
            "case, change the pattern.",
            split,
            format_count(len(unmatched), "image file"),
            named,
        )


def _warn_turned_images(comp: Competition, split: str, images: dict[str, ImagesByChannel]) -> None:
    turned = find_turned_images(comp, (case for channels in images.values() for case in channels.values()))
    if turned:
        log.warning("%s %s", turned_images_message(turned, split), TURNED_IMAGES_HINT)


def find_turned_images(comp: Competition, files: Iterable[CaseFiles]) -> list[str]:
    """Return the images (paths below the root) that have an EXIF orientation although `train.exif` is not set.

    Args:
        comp: the competition.
        files: the images of the competition's cases.
    """
    if comp.train.exif is not None:
        return []
    single = comp.dimensions == 2  # a volume in one file is never rotated, but slices of a stack are
    paths = (path for case in files for path in (case.files if isinstance(case.files, list) else [case.files] * single))
    return [path for path in paths if exif_orientation(Path(comp.root) / path) != 1]


def turned_images_message(paths: list[str], split: str) -> str:
    """Return a message about images that viewers rotate by their EXIF orientation."""
    return (
        f"{format_count(len(paths), f'{split} image')} {has_or_have(len(paths))} an EXIF orientation, such as "
        f"{paths[0]}. Maskfold reads pixels as they are stored, but viewers turn such images."
    )


TURNED_IMAGES_HINT = (
    "If the masks fit the turned images, set competition.train.exif=apply. If they fit the stored "
    "pixels, set competition.train.exif=ignore."
)


def data_hash(table: pandas.DataFrame) -> str:
    """Return the SHA-256 (hexadecimal) of a case table's content, independent of where the files are."""
    columns = ("id", "split", "group", "stratum", "hash")
    lines = ["\0".join(map(str, row)) for row in table[list(columns)].itertuples(index=False)]
    if WEIGHT in table.columns:
        lines = [line + (f"\0weight {text}" if text != "1" else "") for line, text in zip(lines, table[WEIGHT])]
    return combined_digest(line.encode() for line in sorted(lines))


def case_rows(table: pandas.DataFrame) -> list[SimpleNamespace]:
    """Return the rows of a case table as objects with an attribute for each column, in the table's order."""
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in table.to_dict("records")]


def case_row(
    comp: Competition, split: str, case_id: str, images: ImagesByChannel, masks: dict[str, Any] | None
) -> dict[str, Any]:
    """Build one row of the case table, without group and stratum, which `case_table` adds.

    Raises:
        MaskfoldError: the case's files differ in shape or affine, or a file cannot be read.
    """
    header = check_files_agree(comp, case_id, images, masks)
    channels = [case.files for case in images.values()]
    image_hash = image_digest(comp, channels)
    slices = next(iter(images.values())).slices
    row = {
        "id": case_id,
        "split": split,
        "images": json.dumps({name: case.files for name, case in images.items()}, ensure_ascii=False),
        "masks": json.dumps(masks, ensure_ascii=False),
        "group": case_id,
        "stratum": "",
        "shape": json.dumps(header.shape),
        "spacing": json.dumps(header.spacing),
        "channels": header.channels,
        "slices": json.dumps([item.z for item in slices] or None),
        "hash": case_digest(image_hash, [*truth_parts(comp, masks), *reading_parts(comp, header, channels, masks)]),
        "image_hash": image_hash,
    }
    if comp.on_bad_case == "skip":
        load_image(comp, SimpleNamespace(**row))
        if masks is not None:
            load_mask(comp, SimpleNamespace(**row))
    return row


# Images and ground truth of each case


def find_images(comp: Competition, split: str, skipped: SkippedCases) -> dict[str, ImagesByChannel]:
    """Find the images of every case.

    Args:
        comp: the competition.
        split: train or test.
        skipped: receives the cases that are bad, for example because a channel is missing. If `on_bad_case` is `stop`,
            the first bad case is an error instead.

    Returns:
        Files by channel for each id, sorted by id. If there is one pattern, its channel is called `image`.

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
    if split == "train":
        for cases in channels.values():
            _drop_masks(comp, cases)
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
        _skip_all(
            incomplete,
            f"has no channel {name}: no file matches {key}.{name} `{patterns[name]}`",
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


def _drop_masks(comp: Competition, cases: dict[str, CaseFiles]) -> None:
    """Remove from `cases` the label files that the image pattern also matches: `{id}.png` also matches `a_mask.png`."""
    masks, region = comp.train.masks, comp.train.region
    case_of = {case.paths[0]: case_id for case_id, case in cases.items() if case.paths}
    patterns = list(masks.values()) if isinstance(masks, dict) else [masks] if masks else []
    for pattern in [*patterns, *([region] if region else [])]:
        if "*" in pattern:
            _drop_matches(comp, pattern, cases, case_of)
            continue
        for case_id in list(cases):
            mask = case_of.get(pattern.replace("{id}", case_id))
            if mask is not None and mask != case_id:
                cases.pop(mask, None)


def _drop_matches(comp: Competition, pattern: str, cases: dict[str, CaseFiles], case_of: dict[str, str]) -> None:
    """Remove from `cases` the label files that a pattern with `*`, e.g. `*/{id}_mask.png`, finds for other cases."""
    try:
        masks = match_files(Path(comp.root), pattern, "train.masks")
    except MaskfoldError:  # `find_masks` reports a pattern without a match
        return
    for case_id, paths in masks.items():
        for path in paths if case_id in cases else ():
            other = case_of.get(path)
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
        By id, one of: ``{"kind": "labels", "files": path or slices}``, ``{"kind": "classes", "files": {class: path or
        slices}}``, ``{"kind": "instances", "files": {class: paths}}``, ``{"kind": "rle", "table": path, "rows":
        [[line, class, slice or null], …]}``. With `train.region` each has the key `region`: a path or slices.

    Raises:
        MaskfoldError: an image has no mask, a mask has no image, or a pattern or table is invalid.
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
            + (", set train.missing_masks=empty if the case has no such object" if isinstance(masks, dict) else "")
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
                "Write one file per slice or per case.",
                status=2,
            )
        paths_of = drop_undecodable(
            match_files(Path(comp.root), pattern, "train.masks"), "train.masks", Path(comp.root), skipped
        )
        _skip_masks_without_image(comp, list(paths_of), images, f"train.masks `{pattern}`", skipped)
        _skip_all(
            [case_id for case_id in images if case_id not in paths_of],
            f"has an image ({{image}}) but no folder of masks: nothing matches train.masks `{pattern}`",
            "Add the folder; it may be empty if the case has no object. Or set competition.on_bad_case=skip.",
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
    """Check that all stacks of a case have the same slices."""
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
            f"{key} has several patterns, and one of them has {{c}}, which stands for all channels, so the channels "
            "are not unique.",
            "Use only the pattern with {c}, or one pattern without {c} for each channel.",
            status=2,
        )


def _check_no_2d_stacks(comp: Competition, patterns: dict[str, str], key: str) -> None:
    for pattern in patterns.values():
        if comp.dimensions == 2 and "{z}" in pattern:
            raise MaskfoldError(
                f"{key}: the pattern `{pattern}` has slices ({{z}}), expected none, because "
                "competition.dimensions is 2.",
                "Set `dimensions: 3` for volumes. For 2D images, replace {z} so that {id} matches each slice as a "
                "case.",
                status=2,
            )


# Checks that the files of a case agree


def check_files_agree(
    comp: Competition, case_id: str, images: dict[str, CaseFiles], masks: dict[str, Any] | None
) -> Header:
    """Read the headers of all files of a case, and check that the files have the same grid.

    Args:
        comp: the competition.
        case_id: id of the case, for messages.
        images: files by channel.
        masks: the ground truth's files as `find_masks` returns them; None for test cases.

    Returns:
        The case's shape, spacing, affine and number of channels, in the case's order of axes
        (`competition.config.axes`).

    Raises:
        MaskfoldError: a file cannot be read, its shape or affine differs from the first image, or the order of
            its axes is unknown.
    """
    channels = [case.files for case in images.values()]
    if not channels:
        raise ValueError("a case has at least one image")
    axes, count = case_axes(comp, channels[0]), 0
    first, first_name = read_case_header(comp, channels[0], False, axes), display_name(channels[0])
    all_files = [(files, False) for files in channels] + [(files, True) for files in label_files(masks)]
    for number, (files, is_mask) in enumerate(all_files):
        header = first if number == 0 else read_case_header(comp, files, is_mask, axes)
        count += 0 if is_mask else header.channels
        _check_array_axes(comp, case_id, (channels[0], first), (files, header))
        _check_turned(comp, case_id, (channels[0], first), (files, header))
        check_same_grid(
            case_id,
            (first_name, first),
            (display_name(files), header),
            is_mask=is_mask,
            compare_affines=not (is_mask and comp.train.masks_on_image_grid),
        )
    return replace(first, channels=count)


def _check_turned(
    comp: Competition, case_id: str, first: tuple[str | list[str], Header], other: tuple[str | list[str], Header]
) -> None:
    """Check that an EXIF orientation does not exchange rows and columns between two files of a case.

    Raises:
        MaskfoldError: the shapes of the files differ in the order of rows and columns, and one file has an EXIF
            orientation that exchanges rows and columns.
    """
    (name, header), (other_name, other_header) = first, other
    if not isinstance(name, str) or not isinstance(other_name, str) or comp.applies_exif or comp.dimensions == 3:
        return
    if header.shape == other_header.shape or header.shape != other_header.shape[::-1]:
        return
    root = Path(comp.root)
    if max(exif_orientation(root / name), exif_orientation(root / other_name)) >= FIRST_SIDEWAYS:
        raise MaskfoldError(
            f"The files of case {case_id} differ in rows and columns: {name} has "
            f"{'×'.join(map(str, header.shape))}, and {other_name} has {'×'.join(map(str, other_header.shape))}. "
            "The EXIF orientation of one of the files exchanges rows and columns.",
            "Set competition.train.exif=apply, so that Maskfold turns images and masks as viewers do.",
        )


def _check_array_axes(
    comp: Competition, case_id: str, first: tuple[str | list[str], Header], other: tuple[str | list[str], Header]
) -> None:
    """Check that the order of axes of an NPY file is unambiguous, if another file of the case has another format.

    NPY files do not store their order. It is unambiguous if the NPY file's shape fits the order of the other file's
    axes, and fits no other usual order.

    Raises:
        MaskfoldError: several orders fit, or only another order fits.
    """
    if (file_axes(comp, first[0]) is None) == (file_axes(comp, other[0]) is None):
        return
    array, partner = (first, other) if file_axes(comp, first[0]) is None else (other, first)
    axes = case_axes(comp, first[0]) or file_axes(comp, partner[0])
    shape, sizes = array[1].shape, dict(zip(axes or "", partner[1].shape, strict=True))
    partner_name = partner[0] if isinstance(partner[0], str) else partner[0][0]
    usual = plausible_array_axes(comp, partner_name, not isinstance(array[0], str))
    fitting = [order for order in usual if tuple(sizes[axis] for axis in order) == shape]
    if fitting and fitting != [axes]:
        raise MaskfoldError(
            f"The order of axes of {display_name(array[0])} of case {case_id} is unknown: found the shape "
            f"{'×'.join(map(str, shape))}. The order may be {join_or(fitting)}, because {display_name(partner[0])} has "
            f"{'×'.join(map(str, partner[1].shape))} voxels along the axes {axes}.",
            f"Set competition.array_axes to the order of the array, {join_or(fitting)}. xyz is the order of nibabel, "
            "zyx the order of SimpleITK, and yxz means rows, columns and slices.",
        )
