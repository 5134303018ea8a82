"""Panels image · truth · prediction of one case, as one PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config import Competition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
RGB = tuple[float, float, float]

IGNORE = 255
IGNORED_COLOUR: RGB = (0.6, 0.6, 0.6)
PANEL_INCHES = {2: 4.2, 3: 2.8}  # width, by the dimensions of a case
SMOOTH_PIXELS = 256  # slices with fewer pixels a side are enlarged before their borders are traced
MOST_LEGEND_ENTRIES = 16
# the first classes' colours: bright enough to be seen on grey, and told apart by most colour-blind readers
PALETTE: tuple[RGB, ...] = tuple((r / 255, g / 255, b / 255) for r, g, b in (
    (255, 140, 0), (0, 190, 255), (255, 80, 160), (120, 220, 60), (250, 230, 50), (170, 110, 255), (0, 200, 160), (255, 70, 60)))


class Plane(NamedTuple):
    """One slice to draw.

    Attributes:
        axis: the axis that is cut; None: a picture, nothing is cut.
        position: where it is cut.
        transpose: draw the first remaining axis to the right, not downwards.
        upwards: draw the vertical axis from bottom to top.
        aspect: height of a pixel over its width.
    """

    axis: int | None
    position: int
    transpose: bool
    upwards: bool
    aspect: float

    def cut(self, array: Array) -> Array:
        """The slice of a (…, *spatial) array with rows downwards: (…, rows, columns)."""
        if self.axis is not None:
            array = np.take(array, self.position, axis=array.ndim - 3 + self.axis)
        return np.swapaxes(array, -1, -2) if self.transpose else array


def case_picture(path: Path, image: Array, truth: Array, masks: Array, comp: Competition, title: str,
                 spacing: Sequence[float] | None = None, dice: Mapping[str, float] | None = None) -> None:
    """Draw image · truth · prediction: one row for a picture, three orthogonal slices for a volume.

    A volume is cut where the truth is largest (else the prediction, else in the middle).

    Args:
        path: the PNG; it appears whole or not at all.
        image: (C, *spatial), any number type. Three or four channels of a picture are shown as RGB, else the first one.
        truth: (M, *spatial) uint8 as `competition.data.table.load_mask` gives it; 255 is ignored.
        masks: (K, *spatial) bool, the prediction.
        comp: names the classes and says how they are stored.
        title: above the panels.
        spacing: mm per voxel and axis; None: all alike.
        dice: Dice per class for the legend, nan for a class that is in neither; None: computed here.
    """
    from matplotlib.figure import Figure

    true_masks, ignored = split_truth(truth, comp)
    if dice is None:
        dice = _dice(true_masks, masks, ignored, comp.classes)
    planes = _planes(true_masks, masks, spacing, is_stack="{z}" in str(comp.train.images))
    shown = _displayable(image)
    width = PANEL_INCHES[comp.dimensions]
    heights = _heights(planes, shown, width)
    figure = Figure(figsize=(3 * width, sum(heights) + 1.0), dpi=110, layout="constrained")
    grid = figure.subplots(len(planes), 3, squeeze=False, height_ratios=heights)
    for row, plane in enumerate(planes):
        picture = plane.cut(np.moveaxis(shown, -1, 0)).transpose(1, 2, 0)
        for column, layers in enumerate((None, true_masks, masks)):
            axes: Axes = grid[row, column]
            _draw_image(axes, picture, plane)
            if layers is not None:
                _draw_masks(axes, plane.cut(layers))
            if column == 1 and ignored.any():
                _fill(axes, plane.cut(ignored), IGNORED_COLOUR, 0.6)
            if row == 0:
                axes.set_title(("image", "truth", "prediction")[column], fontsize=10)
        if plane.axis is not None:
            grid[row, 0].set_ylabel(f"axis {plane.axis}, slice {plane.position}", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    _draw_legend(figure, comp.classes, true_masks, masks, dice, bool(ignored.any()))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(beside, format="png")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def class_colour(index: int) -> RGB:
    """The colour of a class, the same in every picture: the palette first, then hues a golden angle apart."""
    import colorsys

    if index < len(PALETTE):
        return PALETTE[index]
    return colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.55 + 0.4 * (index % 2), 1.0)


def split_truth(truth: Array, comp: Competition) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Class masks (K, *spatial) and ignored voxels (*spatial), both bool, of a stored mask (M, *spatial)."""
    if comp.labels == "exclusive":
        values = np.arange(1, len(comp.classes) + 1, dtype=truth.dtype).reshape(-1, *[1] * (truth.ndim - 1))
        classes = truth[:1] == values
    else:
        classes = truth == 1
    ignored = (truth == IGNORE).any(axis=0) if comp.ignore is not None else np.zeros(truth.shape[1:], bool)
    return classes, ignored


def _dice(truth: Array, masks: Array, ignored: Array, classes: Sequence[str]) -> dict[str, float]:
    values = {}
    for name, true, mask in zip(classes, truth, masks, strict=True):
        true, mask = true & ~ignored, mask & ~ignored
        total = int(true.sum()) + int(mask.sum())
        values[name] = 2.0 * int((true & mask).sum()) / total if total else math.nan
    return values


def _planes(truth: Array, masks: Array, spacing: Sequence[float] | None, is_stack: bool) -> list[Plane]:
    """Where to cut, and how to lay the slices: pictures and stacks rows downwards, NIfTI x rightwards and z upwards."""
    dims = truth.ndim - 1
    mm = [float(value) for value in spacing] if spacing is not None else [1.0] * dims
    if dims == 2:
        return [Plane(None, 0, False, False, mm[0] / mm[1])]
    found = truth.any(axis=0)
    if not found.any():
        found = masks.any(axis=0)
    planes = []
    for axis in (2, 1, 0):
        first, second = [other for other in range(3) if other != axis]
        counts = found.sum(axis=(first, second))
        position = int(counts.argmax()) if counts.any() else found.shape[axis] // 2
        as_picture = is_stack and axis == 2  # the host's own slice
        aspect = mm[first] / mm[second] if as_picture else mm[second] / mm[first]
        planes.append(Plane(axis, position, transpose=not as_picture, upwards=not as_picture, aspect=aspect))
    return planes


def _displayable(image: Array) -> NDArray[np.float32]:
    """(*spatial, 3) float32 in [0, 1]: RGB where a picture has it, else the first channel as grey.

    Stretched from the 0.5th to the 99.5th percentile of all its channels together: microscopes leave most of the range
    empty, and colours keep their ratios.
    """
    colour = image.ndim == 3 and image.shape[0] in (3, 4)
    numbers = np.nan_to_num((image[:3] if colour else image[:1]).astype(np.float32), posinf=0.0, neginf=0.0)
    step = max(1, numbers.size // 1_000_000)  # percentiles of a million values are exact enough
    low, high = (float(value) for value in np.percentile(numbers.reshape(-1)[::step], (0.5, 99.5)))
    if high <= low:
        low, high = float(numbers.min()), float(numbers.max())
    scaled = np.clip((numbers - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)


def _heights(planes: Sequence[Plane], shown: Array, width: float) -> list[float]:
    """Inches: each row of panels is as high as its slice wants, within reason."""
    heights = []
    for plane in planes:
        rows, columns = plane.cut(np.moveaxis(shown, -1, 0)).shape[1:]
        heights.append(width * min(max(plane.aspect * rows / columns, 0.3), 1.6))
    return heights


def _draw_image(axes: Axes, picture: Array, plane: Plane) -> None:
    axes.imshow(picture, origin="lower" if plane.upwards else "upper", aspect=plane.aspect)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_masks(axes: Axes, layers: Array) -> None:
    """Tint each class's area and draw its border; `layers` is (K, rows, columns) bool."""
    for index, layer in enumerate(layers):
        if not layer.any():
            continue
        colour = class_colour(index)
        _fill(axes, layer, colour, 0.25)
        # enlarged, the line follows the edges of big pixels instead of cutting their corners; a frame of background
        # closes the border of areas at the edge, and gives a single row two neighbours
        times = min(max(SMOOTH_PIXELS // max(layer.shape), 1), 8)
        framed = np.pad(np.kron(layer, np.ones((times, times), np.uint8)), 1)
        rows, columns = ((np.arange(size) - 0.5) / times - 0.5 for size in framed.shape)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.contour(columns, rows, framed, levels=[0.5], colors=[colour], linewidths=1.2)
        axes.set(xlim=limits[0], ylim=limits[1])


def _fill(axes: Axes, layer: Array, colour: RGB, strength: float) -> None:
    tint = np.zeros((*layer.shape, 4), dtype=np.float32)
    tint[layer] = (*colour, strength)
    image = axes.get_images()[0]
    axes.imshow(tint, origin=image.origin, aspect=axes.get_aspect(), interpolation="nearest")


def _draw_legend(figure: Figure, classes: Sequence[str], truth: Array, masks: Array, dice: Mapping[str, float],
                 ignored: bool) -> None:
    """Classes that are there, each with its Dice; the rest are counted."""
    from matplotlib.patches import Patch

    there = [index for index in range(len(classes)) if truth[index].any() or masks[index].any()]
    handles = []
    for index in there[:MOST_LEGEND_ENTRIES]:
        value = dice.get(classes[index], math.nan)
        score = "no Dice" if value is None or math.isnan(value) else f"Dice {value:.3f}"
        handles.append(Patch(color=class_colour(index), label=f" {classes[index]}: {score}"))
    if len(there) > MOST_LEGEND_ENTRIES:
        handles.append(Patch(alpha=0.0, label=f" and {len(there) - MOST_LEGEND_ENTRIES} more classes"))
    if not there:
        handles.append(Patch(alpha=0.0, label=" no class in truth or prediction"))
    if ignored:
        handles.append(Patch(color=IGNORED_COLOUR, label=" ignored"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9,
                           frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x
