"""Panels image · truth · prediction of one case, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config import Competition
from competition.data.files import write_whole
from competition.data.geometry import axes_of, reorient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
RGB = tuple[float, float, float]

IGNORE = 255
IGNORED_COLOUR: RGB = (0.6, 0.6, 0.6)
VIEWS = ("sagittal", "coronal", "axial")  # what is seen when the first, second, third axis of LAS is cut
PANEL_INCHES = {2: 4.2, 3: 2.8}  # width, by the dimensions of a case
SMOOTH_PIXELS = 256  # slices with fewer pixels a side are enlarged before their borders are traced
MOST_LEGEND_ENTRIES = 16
# the first classes' colours: bright enough to be seen on grey, and told apart by most colour-blind readers
PALETTE: tuple[RGB, ...] = tuple(
    (r / 255, g / 255, b / 255)
    for r, g, b in (
        (255, 140, 0),
        (0, 190, 255),
        (255, 80, 160),
        (120, 220, 60),
        (250, 230, 50),
        (170, 110, 255),
        (0, 200, 160),
        (255, 70, 60),
    )
)


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


def case_picture(
    path: Path,
    image: Array,
    truth: Array | None,
    masks: Array,
    comp: Competition,
    title: str,
    spacing: Sequence[float] | None = None,
    dice: Mapping[str, float] | None = None,
    affine: Array | None = None,
) -> None:
    """Draw image · truth · prediction: one row for a picture, three orthogonal slices for a volume.

    Where there is no truth: image · prediction.

    A volume is cut where the truth is largest (else the prediction, else in the middle), all classes counting alike.

    Args:
        path: the PNG; it appears whole or not at all.
        image: (C, *spatial), any number type. Three or four channels of a picture are shown as RGB, else the first one.
        truth: (M, *spatial) uint8 as `competition.data.table.load_mask` gives it; 255 is ignored. None: a test case.
        masks: (K, *spatial) bool, the prediction.
        comp: names the classes and says how they are stored.
        title: above the panels.
        spacing: mm per voxel and axis; None: all alike.
        affine: 4×4 voxel to world of a volume, which is then drawn with the head up, the front up in axial slices, and the
            patient's right on the left of the picture, as radiologists do; None: as it lies in the file.
        dice: Dice per class for the legend, nan for a class that is in neither; None: computed here.
    """
    from matplotlib.figure import Figure

    order: tuple[int, ...] = ()
    if affine is not None and comp.dimensions == 3:
        order, flips = axes_of(affine, 3, "LAS", title)
        image, masks = reorient(image, order, flips), reorient(masks, order, flips)
        truth = None if truth is None else reorient(truth, order, flips)
        spacing = None if spacing is None else [spacing[axis] for axis in order]
    ignored = None if truth is None else ignored_voxels(truth, comp)
    if dice is None and truth is not None:
        dice = _dice(truth, masks, ignored, comp)
    found = np.any(masks, axis=0) if truth is None else np.any((truth != 0) & (truth != IGNORE), axis=0)
    layers = (
        iter(masks)
        if truth is None or not found.any()
        else (_layer(truth, index, comp) for index in range(len(comp.classes)))
    )
    planes = _planes(_profiles(layers, found.shape), spacing, is_stack="{z}" in str(comp.train.images))
    channels = image[:3] if image.ndim == 3 and image.shape[0] in (3, 4) else image[:1]
    bounds = _bounds(channels)
    width = PANEL_INCHES[comp.dimensions]
    heights = _heights(planes, found, width)
    names = ("image", "prediction") if truth is None else ("image", "truth", "prediction")
    figure = Figure(figsize=(len(names) * width, sum(heights) + 1.0), dpi=110, layout="constrained")
    grid = figure.subplots(len(planes), len(names), squeeze=False, height_ratios=heights)
    for row, plane in enumerate(planes):  # slices are cut before anything is computed on them: volumes are large
        shown = [] if truth is None else [class_masks(plane.cut(truth), comp)]
        for axes, name, layer in zip(grid[row], names, (None, *shown, plane.cut(masks)), strict=True):
            _draw_image(axes, _displayable(plane.cut(channels), bounds), plane)
            if layer is not None:
                _draw_masks(axes, layer)
            if row == 0:
                axes.set_title(name, fontsize=10)
        if ignored is not None:
            _fill(grid[row, 1], plane.cut(ignored), IGNORED_COLOUR, 0.6)
        if plane.axis is not None:
            where = f"axis {plane.axis}, slice {plane.position}"
            if order:  # the file's own numbers
                length = found.shape[plane.axis]
                position = length - 1 - plane.position if flips[plane.axis] else plane.position
                where = f"{VIEWS[plane.axis]}: axis {order[plane.axis]}, slice {position}"
            grid[row, 0].set_ylabel(where, fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    there = [
        index
        for index in range(len(comp.classes))
        if masks[index].any() or (truth is not None and _is_in(truth, index, comp))
    ]
    _draw_legend(
        figure, [(class_colour(index), _label(comp.classes[index], dice)) for index in there], ignored is not None
    )
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def class_colour(index: int) -> RGB:
    """The colour of a class, the same in every picture: the palette first, then hues a golden angle apart."""
    import colorsys

    if index < len(PALETTE):
        return PALETTE[index]
    return colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.55 + 0.4 * (index % 2), 1.0)


def class_masks(truth: Array, comp: Competition) -> NDArray[np.bool_]:
    """Class masks (K, *spatial) bool of a stored mask (M, *spatial)."""
    if comp.labels == "overlapping":
        return truth == 1
    return truth[:1] == np.arange(1, len(comp.classes) + 1, dtype=truth.dtype).reshape(-1, *[1] * (truth.ndim - 1))


def ignored_voxels(truth: Array, comp: Competition) -> NDArray[np.bool_] | None:
    """Where the truth is ignored, (*spatial) bool; None where nothing is."""
    ignored = (truth == IGNORE).any(axis=0)
    return ignored if ignored.any() else None


def _is_in(truth: Array, index: int, comp: Competition) -> bool:
    """Whether a class is anywhere in the truth."""
    return bool(_layer(truth, index, comp).any())


def _dice(truth: Array, masks: Array, ignored: Array | None, comp: Competition) -> dict[str, float]:
    values = {}
    for index, name in enumerate(comp.classes):
        true = _layer(truth, index, comp)
        mask = masks[index] if ignored is None else masks[index] & ~ignored
        total = int(true.sum()) + int(mask.sum())
        values[name] = 2.0 * int((true & mask).sum()) / total if total else math.nan
    return values


def _layer(truth: Array, index: int, comp: Competition) -> NDArray[np.bool_]:
    """One class of a stored mask, (*spatial) bool."""
    return np.asarray(truth[index] == 1 if comp.labels == "overlapping" else truth[0] == index + 1)


def _profiles(layers: Iterable[Array], shape: Sequence[int]) -> list[NDArray[np.float64]]:
    """For each axis how much of the classes lies in each slice: shares of each class, so that small ones count as much."""
    profiles = [np.zeros(size) for size in shape]
    for layer in layers:  # one at a time: volumes are large
        if total := int(layer.sum()):
            for axis, profile in enumerate(profiles):
                profile += layer.sum(axis=tuple(other for other in range(layer.ndim) if other != axis)) / total
    return profiles


def _planes(profiles: Sequence[Array], spacing: Sequence[float] | None, is_stack: bool) -> list[Plane]:
    """Where to cut, and how to lay the slices: pictures and stacks rows downwards, NIfTI x rightwards and z upwards.

    Args:
        profiles: of each axis, what each slice would show; the cut goes where it is most.
        spacing: mm per voxel and axis.
        is_stack: the volume is a stack of slice files.
    """
    dims = len(profiles)
    mm = [float(value) for value in spacing] if spacing is not None else [1.0] * dims
    if dims == 2:
        return [Plane(None, 0, False, False, mm[0] / mm[1])]
    planes = []
    for axis in (2, 1, 0):
        first, second = [other for other in range(3) if other != axis]
        profile = profiles[axis]
        position = int(profile.argmax()) if profile.any() else len(profile) // 2
        as_picture = is_stack and axis == 2  # the host's own slice
        aspect = mm[first] / mm[second] if as_picture else mm[second] / mm[first]
        planes.append(Plane(axis, position, transpose=not as_picture, upwards=not as_picture, aspect=aspect))
    return planes


def _bounds(channels: Array) -> tuple[float, float]:
    """What is shown black and white: the 0.5th and the 99.5th percentile of all channels together.

    Microscopes leave most of the range empty, and colours keep their ratios. About a million values are looked at.
    """
    step = max(1, math.ceil((channels.size / 1e6) ** (1 / (channels.ndim - 1))))
    sample = channels[(slice(None), *[slice(None, None, step)] * (channels.ndim - 1))].astype(np.float32)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (0.5, 99.5)))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0


def _displayable(channels: Array, bounds: tuple[float, float]) -> NDArray[np.float32]:
    """(rows, columns, 3) float32 in [0, 1] of a slice (1 or 3, rows, columns)."""
    numbers = np.nan_to_num(channels.astype(np.float32), nan=bounds[0], posinf=bounds[1], neginf=bounds[0])
    scaled = np.clip((numbers - bounds[0]) / (bounds[1] - bounds[0]), 0.0, 1.0)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)


def _heights(planes: Sequence[Plane], found: Array, width: float) -> list[float]:
    """Inches: each row of panels is as high as its slice wants, within reason."""
    heights = []
    for plane in planes:
        rows, columns = plane.cut(found).shape
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


def _label(name: str, dice: Mapping[str, float] | None) -> str:
    if dice is None:
        return f" {name}"
    value = dice.get(name, math.nan)
    score = "no Dice" if value is None or math.isnan(value) else f"Dice {value:.3f}"
    return f" {name}: {score}"  # a label that begins with an underscore would be left out


def _draw_legend(figure: Figure, entries: Sequence[tuple[RGB, str]], ignored: bool) -> None:
    """The classes that are there; of very many the rest is counted."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for colour, label in entries[:MOST_LEGEND_ENTRIES]]
    if len(entries) > MOST_LEGEND_ENTRIES:
        handles.append(Patch(alpha=0.0, label=f" and {len(entries) - MOST_LEGEND_ENTRIES} more classes"))
    if not entries:
        handles.append(Patch(alpha=0.0, label=" no class in truth or prediction"))
    if ignored:
        handles.append(Patch(color=IGNORED_COLOUR, label=" ignored"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x
