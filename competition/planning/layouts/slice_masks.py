"""Make the error for volumes in which only some slices have a mask, and each mask is a separate file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layout import first_path
from competition.planning.layouts.content import Role, dimensions_of
from competition.planning.layouts.series import MOST, Series
from competition.text import format_count

# What follows the volume's id in the name of a slice's mask: `_z012`, `-slice_3`, ` 7`
SLICE = re.compile(r"[_\-. ]+(?:[A-Za-z]+[_\-. ]?)?\d+(?:[_\-. ].*)?")


def slice_masks_error(host: HostFolder, series: Sequence[Series], roles: Mapping[str, Role]) -> MaskfoldError | None:
    """Return the error for volumes whose masks are files of single slices; None if no files look like such masks.

    Args:
        host: the scanned folder.
        series: result of `find_series`.
        roles: role of each series, by pattern.
    """
    volumes = [item for item in series if roles[item.pattern] == "image" and _is_volume(host, item)]
    masks = [item for item in series if roles[item.pattern] in ("mask", "either") and item.kind in ("single", "stack")]
    for image in volumes:
        for mask in masks:
            if not (mask.kind == "single" and dimensions_of(first_path(host, mask)) == 3):
                count = _count_slices(image, mask)
                if count:
                    return _error(host, image, mask, masks, count)
    return None


def _is_volume(host: HostFolder, series: Series) -> bool:
    return series.kind == "stack" or (series.kind == "single" and dimensions_of(first_path(host, series)) == 3)


def _count_slices(image: Series, mask: Series) -> int:
    """Return the number of volumes whose slices the masks show; 0 if the masks do not belong to these volumes."""
    if mask.kind == "stack":
        shared = image.ids & mask.ids
        is_part = image.kind == "stack" and any(len(mask.files[i]) < len(image.files[i]) for i in shared)
        return len(shared) if is_part and len(shared) >= MOST * len(mask.ids) else 0
    fixed = re.search(r"\d", mask.pattern.rpartition("/")[2].replace("{id}", ""))
    if fixed and len(image.ids & mask.ids) >= MOST * len(mask.ids):  # `{id}/slice_004.png`, `{id}_z004_mask.png`
        return len(image.ids & mask.ids)
    owners = {name: _owner(name, image.ids) for name in mask.ids}
    known = {owner for owner in owners.values() if owner}
    return len(known) if known and sum(map(bool, owners.values())) >= MOST * len(owners) else 0


def _owner(name: str, ids: frozenset[str]) -> str:
    """Return the id of the volume with which the name of a slice's mask begins; an empty text if no id fits."""
    cuts = (match.start() for match in re.finditer(r"[_\-. ]", name))
    return next((name[:cut] for cut in cuts if name[:cut] in ids and SLICE.fullmatch(name[cut:])), "")


def _error(host: HostFolder, image: Series, mask: Series, masks: Sequence[Series], count: int) -> MaskfoldError:
    folder = mask.pattern.rpartition("/")[0]
    files = {
        path
        for item in masks
        if item.pattern.rpartition("/")[0] == folder
        for paths in item.files.values()
        for path in paths
    }
    return MaskfoldError(
        f"{host.root} has volumes `{image.pattern}`, but masks of single slices: {format_count(len(files), 'mask')} of "
        f"{format_count(count, 'volume')}, such as {min(files)}. "
        "Maskfold needs one mask file per volume, with all slices of the volume.",
        "Write one label file for each volume, and fill the slices without a drawn mask with 255, so that training "
        "ignores these slices. docs/init.md has a script for this, under Masks of single slices.",
        status=2,
    )
