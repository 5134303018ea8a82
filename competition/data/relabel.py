"""Another competition's truth in the classes of ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.masks import IGNORED, load_mask


def relabelled(theirs: Competition, row: Any, ours: Competition, mapping: dict[str, str]) -> np.ndarray:
    """Reads the truth of their case as `load_mask` would give it for our classes.

    Their classes that are not in the mapping are background. Our classes that no class of theirs stands for may be
    anywhere: of overlapping classes these are ignored everywhere, of exclusive ones their background is ignored.

    Args:
        theirs: the other competition.
        row: a row of its case table.
        ours: the competition that learns.
        mapping: their class to ours.

    Returns:
        (M, *spatial) uint8 in our classes; 255 where nobody knows.

    Raises:
        MaskfoldError: the truth cannot be read, or a voxel would be of two of our exclusive classes.
    """
    mask = load_mask(theirs, row)
    unknown = (mask == IGNORED).any(axis=0)
    planes = {name: np.zeros(mask.shape[1:], bool) for name in ours.classes if name in mapping.values()}
    for number, name in enumerate(theirs.classes):
        if name in mapping:
            planes[mapping[name]] |= mask[0] == number + 1 if theirs.labels == "exclusive" else mask[number] == 1
    if ours.labels == "overlapping":
        nobody = np.full(mask.shape[1:], IGNORED, np.uint8)
        found = np.stack([planes[name].astype(np.uint8) if name in planes else nobody for name in ours.classes])
        found[:, unknown] = IGNORED
        return found
    twice = int(np.count_nonzero(np.sum(list(planes.values()), axis=0) > 1))
    if twice:
        raise MaskfoldError(f"The case {row.id} of {theirs.name} has {twice:,} voxels in two of our classes, which are exclusive.",
                            "Map one of its classes to null in extra.classes.", status=2)
    single = np.full(mask.shape[1:], 0 if len(planes) == len(ours.classes) else IGNORED, np.uint8)
    for number, name in enumerate(ours.classes, start=1):
        if name in planes:
            single[planes[name]] = number
    single[unknown] = IGNORED
    return single[None]
