"""Which files make up each case: images by channel, and its truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.names import why_unfit
from competition.data.chosen import chosen
from competition.data.rle_table import find_rows
from competition.data.skipped import Skipped
from competition.data.sources import Case, find, find_many, is_folder_of_instances, refuse_case_twins

Images = dict[str, Case]  # by channel, in the YAML's order


def find_images(comp: Competition, split: str, skipped: Skipped) -> dict[str, Images]:
    """Finds the images of every case.

    Args:
        comp: what the host gave.
        split: train or test.
        skipped: takes cases that lack a channel.

    Returns:
        Files by channel (a single pattern is the channel `image`), by id, sorted by id.

    Raises:
        MaskfoldError: see `sources.find`; or an id lacks a channel; or channels have different slices.
    """
    section = comp.train if split == "train" else comp.test
    if section is None:
        raise MaskfoldError(f"The competition {comp.name} has no `test` section.",
                            "Add `test: {images: …}` to the competition's YAML.", status=2)
    key = f"{split}.images"
    patterns = section.images if isinstance(section.images, dict) else {"image": section.images}
    _refuse_stack_of_pictures(comp, patterns, key)
    channels = {name: find(Path(comp.root), pattern, key if len(patterns) == 1 else f"{key}.{name}")
                for name, pattern in patterns.items()}
    ids = sorted(set().union(*channels.values()))
    refuse_case_twins(ids, key)
    ids = chosen(comp, ids) if split == "train" else ids
    for case_id in ids:
        if (why := why_unfit(case_id)) is not None:
            skipped.add(case_id, MaskfoldError(f"The id {case_id!r} that {key} finds {why}.", "Rename the file."))
    for name, cases in channels.items():
        without = [case_id for case_id in ids if case_id not in cases]
        _refuse(without, f"has no channel {name} ({key}.{name} `{patterns[name]}` finds nothing)",
                "Add the file, or leave such cases out with competition.on_bad_case=skip.", skipped)
    found = {case_id: {name: cases[case_id] for name, cases in channels.items()}
             for case_id in ids if case_id not in skipped.reasons}
    for case_id, images in found.items():
        _refuse_other_slices(case_id, images, key, skipped)
    return {case_id: images for case_id, images in found.items() if case_id not in skipped.reasons}


def find_masks(comp: Competition, images: dict[str, Images], skipped: Skipped) -> dict[str, dict[str, Any]]:
    """Finds the truth of every training case.

    Args:
        comp: what the host gave.
        images: as `find_images` gives them.
        skipped: takes cases without a mask, masks without a case, and rows of unknown ids.

    Returns:
        By id, one of: ``{"kind": "labels", "files": path or slices}``, ``{"kind": "classes", "files": {class: path or
        slices}}``, ``{"kind": "instances", "files": {class: paths}}``, ``{"kind": "rle", "table": path, "rows":
        [[line, class, slice or null], …]}``.

    Raises:
        MaskfoldError: an image has no mask, a mask no image, or a pattern or table is wrong.
    """
    if comp.train.rle is not None:
        rows = find_rows(comp, {case_id: next(iter(files.values())) for case_id, files in images.items()}, skipped)
        return {case_id: {"kind": "rle", "table": comp.train.rle, "rows": rows[case_id]} for case_id in images}
    masks = comp.train.masks
    patterns = masks if isinstance(masks, dict) else {comp.classes[0]: str(masks)}
    many = {is_folder_of_instances(pattern) for pattern in patterns.values()}
    if len(many) > 1:
        raise MaskfoldError("train.masks mixes single files with folders of instances (a `*` in the name).",
                            "Write all its patterns the same way.", status=2)
    _refuse_stack_of_pictures(comp, patterns, "train.masks")
    if many == {True}:
        return _instances(comp, patterns, images, skipped)
    found: dict[str, dict[str, Case]] = {case_id: {} for case_id in images}
    for name, pattern in patterns.items():
        key = f"train.masks.{name}" if isinstance(masks, dict) else "train.masks"
        cases = find(Path(comp.root), pattern, key)
        _refuse_strangers(comp, list(cases), images, f"{key} `{pattern}`", skipped)
        _refuse([case_id for case_id in images if case_id not in cases],
                f"has an image ({{image}}) and no mask ({key} `{pattern}`)",
                "Add the mask, or leave such cases out with competition.on_bad_case=skip.", skipped, images)
        for case_id in images:
            if case_id in cases:
                found[case_id][name] = cases[case_id]
                _refuse_other_slices(case_id, {**images[case_id], f"mask {name}": cases[case_id]}, key, skipped)
    kept = {case_id: cases for case_id, cases in found.items() if case_id not in skipped.reasons}
    if isinstance(masks, dict):
        return {case_id: {"kind": "classes", "files": {name: case.files for name, case in cases.items()}}
                for case_id, cases in kept.items()}
    return {case_id: {"kind": "labels", "files": cases[comp.classes[0]].files} for case_id, cases in kept.items()}


def _instances(comp: Competition, patterns: dict[str, str], images: dict[str, Images],
               skipped: Skipped) -> dict[str, dict[str, Any]]:
    """Folders of instance masks, one file per object."""
    if not isinstance(comp.train.masks, dict) and len(comp.classes) > 1:
        raise MaskfoldError("train.masks is one folder of instances, and there are several classes.",
                            "Give train.masks one pattern for each class.", status=2)
    files: dict[str, dict[str, list[str]]] = {case_id: {} for case_id in images}
    for name, pattern in patterns.items():
        if "{z}" in pattern:
            raise MaskfoldError(f"train.masks `{pattern}` mixes slices ({{z}}) with a folder of instances (`*`).",
                                "Write one file per slice or per case.", status=2)
        found = find_many(Path(comp.root), pattern, "train.masks")
        _refuse_strangers(comp, list(found), images, f"train.masks `{pattern}`", skipped)
        _refuse([case_id for case_id in images if case_id not in found],
                f"has an image ({{image}}) and no folder of masks (train.masks `{pattern}`)",
                "Add the folder, empty if nothing is to be seen, or set competition.on_bad_case=skip.", skipped, images)
        for case_id in images:
            files[case_id][name] = found.get(case_id, [])
    return {case_id: {"kind": "instances", "files": names} for case_id, names in files.items()
            if case_id not in skipped.reasons}


def _refuse(ids: list[str], what: str, cure: str, skipped: Skipped, images: dict[str, Images] | None = None) -> None:
    """One error for the first of the ids, saying how many more there are; or all of them left out."""
    more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
    for case_id in ids:
        first = next(iter(images[case_id].values())).files if images else ""
        shown = what.replace("{image}", first if isinstance(first, str) else first[0])
        skipped.add(case_id, MaskfoldError(f"The case {case_id}{'' if skipped.allowed else more} {shown}.", cure))


def _refuse_strangers(comp: Competition, ids: list[str], images: dict[str, Images], source: str, skipped: Skipped) -> None:
    """Masks whose image is missing; where `train.cases` names the cases, other masks are nobody's concern."""
    strangers = [case_id for case_id in ids if case_id not in images and case_id not in skipped.reasons
                 and comp.train.cases is None]
    _refuse(strangers, f"has a mask ({source}) and no image", "Add the image, remove the mask, or leave such cases out "
            "with competition.on_bad_case=skip.", skipped)


def _refuse_other_slices(case_id: str, cases: dict[str, Case], key: str, skipped: Skipped) -> None:
    """Stacks of one case must have the same slices."""
    stacks = {name: {int(one.z) for one in case.slices} for name, case in cases.items() if case.slices}
    if not stacks:
        return
    first, *others = stacks
    for other in others:
        odd = sorted(stacks[first] ^ stacks[other])
        if odd:
            missing = other if odd[0] in stacks[first] else first
            skipped.add(case_id, MaskfoldError(
                f"The case {case_id} has no slice {odd[0]} in {missing} ({key}; {len(odd)} slices differ).",
                "Add the file, or leave such cases out with competition.on_bad_case=skip."))


def _refuse_stack_of_pictures(comp: Competition, patterns: dict[str, str], key: str) -> None:
    for pattern in patterns.values():
        if comp.dimensions == 2 and "{z}" in pattern:
            raise MaskfoldError(f"{key} `{pattern}` names slices with {{z}}, but competition.dimensions is 2.",
                                "Set `dimensions: 3`, or let {id} stand for each slice.", status=2)
