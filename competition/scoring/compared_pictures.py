"""Panels truth · A · B · difference of one case, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import Competition
from competition.data.geometry import axes_of, reorient
from competition.scoring import pictures as plain
from competition.scoring.pictures import RGB, Array

BETTER: RGB = (0.25, 0.85, 0.35)  # B is right where A is wrong
WORSE: RGB = (1.0, 0.25, 0.25)
BOTH: RGB = (0.95, 0.85, 0.2)


def compared_picture(
    path: Path,
    image: Array,
    truth: Array,
    masks: tuple[Array, Array],
    comp: Competition,
    title: str,
    names: tuple[str, str] = ("A", "B"),
    spacing: Sequence[float] | None = None,
    affine: Array | None = None,
) -> None:
    """Draw one row of truth · A · B · difference for a picture, three orthogonal slices for a volume.

    A volume is cut where the two predictions differ most. In the last panel a pixel is green where B is right and A
    wrong, red where it is the other way round, and yellow where both are wrong; of any class.

    Args:
        path: the PNG; it appears whole or not at all.
        image: (C, *spatial), see `pictures.case_picture`.
        truth: (M, *spatial) uint8; 255 is ignored.
        masks: of A and of B, (K, *spatial) bool.
        comp: names the classes.
        title: above the panels.
        names: above the panels of A and B.
        spacing: mm per voxel and axis; None: all alike.
        affine: 4×4 voxel to world of a volume, see `pictures.case_picture`.
    """
    from matplotlib.figure import Figure

    order: tuple[int, ...] = ()
    if affine is not None and comp.dimensions == 3:
        order, flips = axes_of(affine, 3, "LAS", title)
        image, truth, first, second = (reorient(one, order, flips) for one in (image, truth, *masks))
        masks = first, second
        spacing = None if spacing is None else [spacing[axis] for axis in order]
    changed = (masks[0] != masks[1]).any(axis=0)
    layers = [changed] if changed.any() else list(plain.class_masks(truth, comp))
    planes = plain._planes(plain._profiles(layers, changed.shape), spacing, is_stack="{z}" in str(comp.train.images))
    channels = image[:3] if image.ndim == 3 and image.shape[0] in (3, 4) else image[:1]
    bounds, width = plain._bounds(channels), plain.PANEL_INCHES[comp.dimensions]
    heights = plain._heights(planes, changed, width)
    figure = Figure(figsize=(4 * width, sum(heights) + 1.2), dpi=110, layout="constrained")
    grid = figure.subplots(len(planes), 4, squeeze=False, height_ratios=heights)
    for row, plane in enumerate(planes):
        true = plain.class_masks(plane.cut(truth), comp)
        found = [plane.cut(mask) for mask in masks]
        ignored = (plane.cut(truth) == plain.IGNORE).any(axis=0)
        for axes, name, layer in zip(grid[row], ("truth", *names, "difference"), (true, *found, None), strict=True):
            plain._draw_image(axes, plain._displayable(plane.cut(channels), bounds), plane)
            if layer is not None:
                plain._draw_masks(axes, layer)
            if row == 0:
                axes.set_title(name, fontsize=9.5, parse_math=False)
        wrong = [(mask != true).any(axis=0) & ~ignored for mask in found]
        for area, colour in (
            (wrong[0] & ~wrong[1], BETTER),
            (wrong[1] & ~wrong[0], WORSE),
            (wrong[0] & wrong[1], BOTH),
        ):
            plain._fill(grid[row, 3], area, colour, 0.75)
        if plane.axis is not None:
            view = f"{plain.VIEWS[plane.axis]}: " if order else ""
            axis, position = plane.axis, plane.position
            if order:  # the file's own numbers
                position = changed.shape[axis] - 1 - position if flips[axis] else position
                axis = order[axis]
            grid[row, 0].set_ylabel(f"{view}axis {axis}, slice {position}", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    plain._draw_legend(figure, _entries(comp, truth, masks), ignored=False)
    plain.save_figure(figure, path)


def _entries(comp: Competition, truth: Array, masks: tuple[Array, Array]) -> list[tuple[RGB, str]]:
    """Classes that are anywhere, then what the colours of the last panel say."""
    there: list[Any] = [
        index
        for index, true in enumerate(plain.class_masks(truth, comp))
        if true.any() or np.any([mask[index].any() for mask in masks])
    ]
    return [
        *((plain.class_colour(index), f" {comp.classes[index]}") for index in there),
        (BETTER, " only B is right"),
        (WORSE, " only A is right"),
        (BOTH, " both are wrong"),
    ]
