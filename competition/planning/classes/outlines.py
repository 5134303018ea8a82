"""Find masks in which objects are drawn as closed lines, while the areas inside the lines are not filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from competition.planning.layout import Layout
from competition.planning.layouts.content import read_mask

SAMPLE = 8  # masks that are compared
MAX_WIDTH = 7  # pixels of a line
MIN_FILLED = 3.0  # the filled outline has at least this many times the pixels of the line
MIN_SHARE = 0.8  # share of the masks that are outlines

REMARK = (
    "the masks are closed lines around areas, so a network would learn the lines: if the host scores the areas, fill "
    "the lines first, for example with scipy.ndimage.binary_fill_holes"
)


def are_outlines(layout: Layout) -> bool:
    """Return whether most masks of 2D images are closed lines, such as the ellipses of HC18."""
    if layout.dimensions != 2 or set(layout.mask_files) != {""}:
        return False
    files: Sequence[str] = [paths[0] for _, paths in sorted(layout.mask_files[""].items())]
    chosen = files[:: max(1, len(files) // SAMPLE)][:SAMPLE]
    found = [_is_outline(layout.folder.root / path) for path in chosen]
    known = [answer for answer in found if answer is not None]
    return bool(known) and sum(known) >= MIN_SHARE * len(known)


def _is_outline(path: Path) -> bool | None:
    """Return whether a mask consists of thin lines, each of which encloses one area; None if the mask is empty."""
    import cv2
    from scipy import ndimage

    mask = read_mask(path, 2)
    if mask is None or not mask.any():
        return None
    core = cv2.erode(mask.astype(np.uint8), np.ones((MAX_WIDTH, MAX_WIDTH), np.uint8))
    filled = ndimage.binary_fill_holes(mask)
    if core.any() or np.count_nonzero(filled) < MIN_FILLED * np.count_nonzero(mask):
        return False
    lines = ndimage.label(mask, np.ones((3, 3)))[1]
    areas = ndimage.label(filled & ~mask)[1]
    return bool(areas <= lines)  # a net of streets or vessels encloses more areas
