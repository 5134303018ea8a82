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
from competition.data.case_files import ImagesByChannel, find_images, find_masks
from competition.data.content.digests import case_digest, image_digest, label_files, reading_parts, truth_parts
from competition.data.geometry import check_same_grid
from competition.data.image_types import FIRST_SIDEWAYS, Header, combined_digest
from competition.data.masks import load_mask
from competition.data.patterns import CaseFiles, unmatched_images
from competition.data.readers import display_name, exif_orientation, load_image, read_case_header
from competition.data.selection import WEIGHT, SkippedCases, case_weights
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.text import format_count, has_or_have, join_or

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)
COLUMNS = (
    "id", "split", "images", "masks", "group", "stratum", "shape", "spacing", "channels", "slices", "hash", "image_hash"
)  # fmt: skip


def case_table(comp: Competition, split: str = "train") -> pandas.DataFrame:
    """Find the cases of a split, and check their file names, headers and tables.

    Pixels are read only if `on_bad_case` is `skip`. Then each case is read completely once, so that the table has only
    usable cases.

    Args:
        comp: the competition.
        split: train or test.

    Returns:
        A table with a row for each case, sorted by id, and the columns

        - id, split;
        - images: JSON object that maps each channel to a path below the root, or to the paths of a stack's slices;
        - masks: JSON as described in `find_masks`; null for test cases;
        - group: value of `competition.group`; the id if this key is not set. stratum: value of `competition.stratum`;
          empty if this key is not set;
        - shape, spacing (mm): JSON lists, one number per spatial axis. channels: number of channels;
        - slices: JSON, the text that {z} matched in each slice; null for a case that is no stack of slices;
        - image_hash: SHA-256 (hexadecimal) of the image files' digests. hash: SHA-256 of `image_hash` and the digests
          of the ground truth.

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
            "case, change %s.images.",
            split,
            format_count(len(unmatched), "image file"),
            named,
            split,
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
        f"{format_count(len(paths), f'{split} image')} ({'such as ' if len(paths) > 1 else ''}{paths[0]}) "
        f"{has_or_have(len(paths))} an EXIF orientation. Maskfold reads pixels as they are stored, but viewers turn "
        "such images."
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
        MaskfoldError: a file cannot be read, its shape or affine differs from that of the first image, or the order of
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
    """Check that the rows and columns of two files are not exchanged because of an EXIF orientation.

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

    NPY files do not store the order of their axes. A usual order is possible if the shapes of both files agree in this
    order. The check passes if the case's own order is the only possible one. It also passes if no order is possible,
    because `check_same_grid` then reports the shapes.

    Raises:
        MaskfoldError: several orders are possible, or the only possible order is not the case's own order.
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
