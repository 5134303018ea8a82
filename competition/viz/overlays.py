"""Draw one case as a PNG file: image, truth and prediction side by side, or the comparison of two predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.geometry import find_axes, reorient
from competition.io import atomic_write
from competition.text import and_more
from competition.viz.reduction import BLOCK_PIXELS, reduce_image, reduce_mask, reduce_truth, reduction_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
RGB = tuple[float, float, float]
IGNORE_LABEL = 255
IGNORED_COLOUR: RGB = (0.6, 0.6, 0.6)
BETTER_COLOUR: RGB = (0.25, 0.85, 0.35)  # prediction B is right, and prediction A is wrong
WORSE_COLOUR: RGB = (1.0, 0.25, 0.25)  # prediction A is right, and prediction B is wrong
BOTH_WRONG_COLOUR: RGB = (0.95, 0.85, 0.2)
DIFFERENCE_COLOURS: dict[str, RGB] = {
    " only truth": (1.0, 0.25, 0.25),
    " only prediction": (0.2, 0.45, 1.0),
    " other class": (0.95, 0.85, 0.2),
}
MAX_CROP = 512  # maximum edge length of the part of a slice that `draw_finding` draws, pixels
VIEWS = ("sagittal", "coronal", "axial")  # for a volume in orientation LAS: the view of slices along each of its axes
PANEL_INCHES = {2: 4.2, 3: 2.8}  # number of spatial axes -> width of a panel in inches
SMOOTH_PIXELS = 256  # slices with smaller sides are enlarged before their contours are drawn, pixels
MAX_LEGEND_ENTRIES = 16
# Colours of the first classes: bright on grey, and distinguishable for most colour-blind readers.
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


def draw_case(
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
    """Draw image, truth and prediction side by side: one row for a 2D image, three orthogonal slices for a volume.

    If there is no truth, only image and prediction are drawn. Of a volume, the slices with the most foreground in the
    truth are drawn. If the truth has no foreground, the slices with the most foreground in the prediction are drawn. If
    the prediction has none either, the middle slices are drawn. All classes have the same weight in this choice.

    Args:
        path: the PNG file, written atomically.
        image: (C, *spatial) of any dtype. The image may already be reduced by `load_picture`. A 2D image with 3 or 4
            channels is drawn as RGB. Of any other image, the first channel is drawn.
        truth: (M, *spatial) uint8 from `competition.data.masks.load_mask`; 255 is ignored. None for a test case.
        masks: (K, *spatial) bool, the prediction.
        comp: the competition, which defines the classes and how labels are stored.
        title: title of the figure.
        spacing: voxel size along each axis in mm. None means that all axes have the same voxel size.
        dice: Dice per class for the legend; nan for a class that is absent from truth and prediction. If it is None,
            this function computes the Dice.
        affine: 4×4 matrix from voxel to world coordinates. With this matrix, a volume is drawn in radiological
            convention: the head at the top, the front at the top of axial slices, and the patient's right side on the
            left. Without it, the volume is drawn in the orientation of the file.
    """
    from matplotlib.figure import Figure

    order: tuple[int, ...] = ()
    if affine is not None and comp.dimensions == 3:
        order, flips = find_axes(affine, 3, "LAS", title)
        image, masks = reorient(image, order, flips), reorient(masks, order, flips)
        truth = None if truth is None else reorient(truth, order, flips)
        spacing = None if spacing is None else [spacing[axis] for axis in order]
    if dice is None and truth is not None:
        dice = _dice_per_class(truth, masks, comp)
    channels = drawn_channels(image)
    bounds = display_range(channels)
    if comp.dimensions == 2:  # reduce first, because all operations below need memory for each pixel
        step = reduction_step(masks.shape[1:])
        channels, masks = _reduce_unless_reduced(channels, masks.shape[1:], step), reduce_mask(masks, step)
        truth = None if truth is None else reduce_truth(truth, comp, step)
    ignored = None if truth is None else get_ignored_voxels(truth, comp)
    foreground = np.any(masks, axis=0) if truth is None else np.any((truth != 0) & (truth != IGNORE_LABEL), axis=0)
    layers = (
        iter(masks)
        if truth is None or not foreground.any()
        else (_class_mask(truth, index, comp) for index in range(len(comp.classes)))
    )
    planes = _select_planes(
        _foreground_profiles(layers, foreground.shape), spacing, is_stack="{z}" in str(comp.train.images)
    )
    width = PANEL_INCHES[comp.dimensions]
    heights = _row_heights(planes, foreground, width)
    names = ("image", "prediction") if truth is None else ("image", "truth", "prediction")
    figure = Figure(figsize=(len(names) * width, sum(heights) + 1.0), dpi=110, layout="constrained")
    grid = figure.subplots(len(planes), len(names), squeeze=False, height_ratios=heights)
    for row, plane in enumerate(planes):  # select slices before computing, because volumes are large
        slice_image = plane.cut(channels)
        step = reduction_step(slice_image.shape[1:])
        colours = to_rgb(reduce_image(slice_image, step), bounds)
        true_masks = [] if truth is None else [reduce_mask(label_to_class_masks(plane.cut(truth), comp), step)]
        for axes, name, layer in zip(
            grid[row], names, (None, *true_masks, reduce_mask(plane.cut(masks), step)), strict=True
        ):
            _draw_image(axes, colours, plane)
            if layer is not None:
                _draw_masks(axes, layer)
            if row == 0:
                axes.set_title(name, fontsize=10)
        if ignored is not None:
            _fill_area(grid[row, 1], reduce_mask(plane.cut(ignored), step), IGNORED_COLOUR, 0.6)
        if plane.axis is not None:
            label = f"axis {plane.axis}, slice {plane.position}"
            if order:  # axis and slice number in the file
                length = foreground.shape[plane.axis]
                position = length - 1 - plane.position if flips[plane.axis] else plane.position
                label = f"{VIEWS[plane.axis]}: axis {order[plane.axis]}, slice {position}"
            grid[row, 0].set_ylabel(label, fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    present = [
        index
        for index in range(len(comp.classes))
        if masks[index].any() or (truth is not None and _class_mask(truth, index, comp).any())
    ]
    _draw_legend(
        figure, [(class_colour(index), _label(comp.classes[index], dice)) for index in present], ignored is not None
    )
    save_figure(figure, path)


def draw_comparison(
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
    """Draw truth, predictions A and B, and their difference side by side.

    A 2D image has one row. A volume has one row for each of the three orthogonal slices in which the predictions differ
    most; if they are equal, the slices with the most foreground in the truth are drawn. Ignored pixels do not count as
    different. The last panel compares the two predictions over all classes. A pixel is green if only B is right, red if
    only A is right, and yellow if both are wrong.

    Args:
        path: the PNG file, written atomically.
        image: (C, *spatial), as in `draw_case`.
        truth: (M, *spatial) uint8; 255 is ignored.
        masks: predictions of A and B, each (K, *spatial) bool.
        comp: the competition, which defines the classes.
        title: title of the figure.
        names: titles of the panels of A and B.
        spacing: voxel size along each axis in mm. None means that all axes have the same voxel size.
        affine: 4×4 matrix from voxel to world coordinates, as in `draw_case`.
    """
    from matplotlib.figure import Figure

    order: tuple[int, ...] = ()
    if affine is not None and comp.dimensions == 3:
        order, flips = find_axes(affine, 3, "LAS", title)
        image, truth, masks_a, masks_b = (reorient(array, order, flips) for array in (image, truth, *masks))
        masks = masks_a, masks_b
        spacing = None if spacing is None else [spacing[axis] for axis in order]
    channels = drawn_channels(image)
    bounds = display_range(channels)
    if comp.dimensions == 2:  # reduce first, because all operations below need memory for each pixel
        step = reduction_step(truth.shape[1:])
        channels = _reduce_unless_reduced(channels, truth.shape[1:], step)
        truth = reduce_truth(truth, comp, step)
        masks = reduce_mask(masks[0], step), reduce_mask(masks[1], step)
    changed = (masks[0] != masks[1]).any(axis=0) & (truth != IGNORE_LABEL).all(axis=0)
    layers = [changed] if changed.any() else list(label_to_class_masks(truth, comp))
    planes = _select_planes(
        _foreground_profiles(layers, changed.shape), spacing, is_stack="{z}" in str(comp.train.images)
    )
    width = PANEL_INCHES[comp.dimensions]
    heights = _row_heights(planes, changed, width)
    figure = Figure(figsize=(4 * width, sum(heights) + 1.2), dpi=110, layout="constrained")
    grid = figure.subplots(len(planes), 4, squeeze=False, height_ratios=heights)
    for row, plane in enumerate(planes):
        slice_image = plane.cut(channels)
        step = reduction_step(slice_image.shape[1:])
        colours = to_rgb(reduce_image(slice_image, step), bounds)
        true_masks = reduce_mask(label_to_class_masks(plane.cut(truth), comp), step)
        predictions = [reduce_mask(plane.cut(mask), step) for mask in masks]
        ignored = reduce_mask((plane.cut(truth) == IGNORE_LABEL).any(axis=0), step)
        for axes, name, layer in zip(
            grid[row], ("truth", *names, "difference"), (true_masks, *predictions, None), strict=True
        ):
            _draw_image(axes, colours, plane)
            if layer is not None:
                _draw_masks(axes, layer)
            if row == 0:
                axes.set_title(name, fontsize=9.5, parse_math=False)
        wrong = [(mask != true_masks).any(axis=0) & ~ignored for mask in predictions]
        for area, colour in (
            (wrong[0] & ~wrong[1], BETTER_COLOUR),
            (wrong[1] & ~wrong[0], WORSE_COLOUR),
            (wrong[0] & wrong[1], BOTH_WRONG_COLOUR),
        ):
            _fill_area(grid[row, 3], area, colour, 0.75)
        if plane.axis is not None:
            view = f"{VIEWS[plane.axis]}: " if order else ""
            axis, position = plane.axis, plane.position
            if order:  # axis and slice number in the file
                position = changed.shape[axis] - 1 - position if flips[axis] else position
                axis = order[axis]
            grid[row, 0].set_ylabel(f"{view}axis {axis}, slice {position}", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    _draw_legend(figure, _legend_entries(comp, truth, masks), ignored=False)
    save_figure(figure, path)


def draw_finding(
    path: Path,
    image: Array,
    truth: Array,
    masks: Array,
    comp: Competition,
    centre: Sequence[int],
    position: int | None = None,
    spacing: Sequence[float] | None = None,
) -> None:
    """Draw truth, prediction and their difference side by side in one slice, and mark a point.

    If a side of the slice is longer than `MAX_CROP` pixels, only the part around the point is drawn.

    Args:
        path: the PNG file, written atomically.
        image: (C, *spatial), as in `draw_case`.
        truth: (M, *spatial) uint8; 255 is ignored.
        masks: (K, *spatial) bool, the prediction.
        comp: the competition, which defines the classes.
        centre: row and column of the point in the slice, along the first two axes of the file.
        position: index of the slice along the last axis of a volume. None for a 2D image.
        spacing: voxel size along each axis in mm. None means that all axes have the same voxel size.
    """
    from matplotlib.figure import Figure

    is_flat = position is not None and "{z}" not in str(comp.train.images)
    mm = [float(value) for value in spacing] if spacing is not None else [1.0] * (truth.ndim - 1)
    if position is not None:  # first cut out the part to draw, because volumes are large
        image, truth, masks = image[..., position], truth[..., position], masks[..., position]
    channels = drawn_channels(image) if position is None else image[:1]
    point = np.array(centre, float)
    if channels.shape[1:] != truth.shape[1:]:  # `load_picture` reduced the image
        step = reduction_step(truth.shape[1:])
        truth, masks, point = reduce_truth(truth, comp, step), reduce_mask(masks, step), point / step
    starts = [
        int(min(max(place - MAX_CROP // 2, 0), max(length - MAX_CROP, 0)))
        for place, length in zip(point, truth.shape[1:], strict=True)
    ]
    window = (slice(None), *(slice(start, start + MAX_CROP) for start in starts))
    channels, truth, masks, point = channels[window], truth[window], masks[window], point - starts
    plane = SlicePlane(None, 0, is_flat, is_flat, mm[1] / mm[0] if is_flat else mm[0] / mm[1])
    colours = to_rgb(plane.cut(channels), display_range(channels))
    true_masks, seen = plane.cut(label_to_class_masks(truth, comp)), plane.cut(masks)
    ignored = plane.cut((truth == IGNORE_LABEL).any(axis=0))
    rows, columns = colours.shape[:2]
    height = PANEL_INCHES[3] * min(max(plane.aspect * rows / columns, 0.3), 1.6)
    figure = Figure(figsize=(3 * PANEL_INCHES[3], height + 1.0), dpi=90, layout="constrained")
    grid = figure.subplots(1, 3, squeeze=False)[0]
    for axes, name, layer in zip(grid, ("truth", "prediction", "difference"), (true_masks, seen, None), strict=True):
        _draw_image(axes, colours, plane)
        axes.set_title(name, fontsize=9.5)
        if layer is not None:
            _draw_masks(axes, layer)
        horizontal, vertical = point if is_flat else point[::-1]
        axes.plot([horizontal], [vertical], "o", markersize=22, markerfacecolor="none", markeredgecolor="w", alpha=0.8)
        axes.set(xlim=axes.get_images()[0].get_extent()[:2], ylim=axes.get_images()[0].get_extent()[2:])
    only_true, only_seen = true_masks & ~seen, seen & ~true_masks
    both = only_true.any(axis=0) & only_seen.any(axis=0) & ~ignored
    areas = (only_true.any(axis=0) & ~both & ~ignored, only_seen.any(axis=0) & ~both & ~ignored, both)
    for area, colour in zip(areas, DIFFERENCE_COLOURS.values(), strict=True):
        _fill_area(grid[2], area, colour, 0.75)
    present = [index for index in range(len(comp.classes)) if true_masks[index].any() or seen[index].any()]
    entries = [(class_colour(index), f" {comp.classes[index]}") for index in present]
    shown = [entry for entry, area in zip(DIFFERENCE_COLOURS.items(), areas, strict=True) if area.any()]
    _draw_legend(figure, [*entries, *((colour, name) for name, colour in shown)], bool(ignored.any()))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and clear the figure.

    Clearing frees the figure's arrays (0.2 GiB for a large image) at once. Without it, Python would free them much
    later, because the parts of a figure refer to each other.
    """
    atomic_write(path, lambda file: figure.savefig(file, format="png"))
    for axes in figure.axes:
        axes.clear()
    figure.clear()


def class_colour(index: int) -> RGB:
    """Return the colour that a class has in all figures with images.

    The first classes have the colours of `PALETTE`. For further classes, the colour is computed.
    """
    import colorsys

    if index < len(PALETTE):
        return PALETTE[index]
    return colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.55 + 0.4 * (index % 2), 1.0)


# Classes of a stored mask


def label_to_class_masks(truth: Array, comp: Competition) -> NDArray[np.bool_]:
    """Convert a stored mask (M, *spatial), a result of `load_mask`, to one mask per class, (K, *spatial) bool."""
    if comp.labels == "overlapping":
        return truth == 1
    return truth[:1] == np.arange(1, len(comp.classes) + 1, dtype=truth.dtype).reshape(-1, *[1] * (truth.ndim - 1))


def get_ignored_voxels(truth: Array, comp: Competition) -> NDArray[np.bool_] | None:
    """Return the ignored voxels of the truth, (*spatial) bool, or None if no voxel is ignored."""
    ignored = (truth == IGNORE_LABEL).any(axis=0)
    return ignored if ignored.any() else None


def _class_mask(truth: Array, index: int, comp: Competition) -> NDArray[np.bool_]:
    """Return the mask of one class, (*spatial) bool, from a stored mask (M, *spatial)."""
    return np.asarray(truth[index] == 1 if comp.labels == "overlapping" else truth[0] == index + 1)


def _dice_per_class(truth: Array, masks: Array, comp: Competition) -> dict[str, float]:
    """Return the Dice of each class, or nan for a class that is absent from both truth and prediction.

    The Dice is computed in blocks of rows, to limit memory.
    """
    shared, total = np.zeros((2, len(comp.classes)), np.int64)
    rows = max(1, BLOCK_PIXELS // max(1, math.prod(truth.shape[2:])))
    for first in range(0, truth.shape[1], rows):
        block = slice(first, first + rows)
        valid = ~(truth[:, block] == IGNORE_LABEL).any(axis=0)
        for index in range(len(comp.classes)):
            true_mask, mask = _class_mask(truth[:, block], index, comp), masks[index, block] & valid
            shared[index] += np.count_nonzero(true_mask & mask)
            total[index] += np.count_nonzero(true_mask) + np.count_nonzero(mask)
    return {
        name: 2.0 * int(both) / int(size) if size else math.nan
        for name, both, size in zip(comp.classes, shared, total, strict=True)
    }


# Slices


class SlicePlane(NamedTuple):
    """Describe one slice to draw.

    Attributes:
        axis: axis along which slices are counted. None for a 2D image.
        position: slice index along `axis`.
        transpose: whether the first axis of the slice points to the right instead of downwards.
        upwards: whether the vertical axis points upwards instead of downwards.
        aspect: height of a pixel divided by its width.
    """

    axis: int | None
    position: int
    transpose: bool
    upwards: bool
    aspect: float

    def cut(self, array: Array) -> Array:
        """Return the slice (…, rows, columns) of an array (…, *spatial)."""
        if self.axis is not None:
            array = np.take(array, self.position, axis=array.ndim - 3 + self.axis)
        return np.swapaxes(array, -1, -2) if self.transpose else array


def _foreground_profiles(layers: Iterable[Array], shape: Sequence[int]) -> list[NDArray[np.float64]]:
    """Return the amount of foreground in each slice, as one array per axis.

    The amounts of each class are divided by the total of this class, so that small and large classes have the same
    weight.

    Args:
        layers: mask of each class, (*spatial) bool.
        shape: shape of a mask.
    """
    profiles = [np.zeros(size) for size in shape]
    for layer in layers:  # process one layer at a time, because volumes are large
        if total := int(layer.sum()):
            for axis, profile in enumerate(profiles):
                other_axes = tuple(i for i in range(layer.ndim) if i != axis)
                profile += layer.sum(axis=other_axes) / total
    return profiles


def _select_planes(profiles: Sequence[Array], spacing: Sequence[float] | None, is_stack: bool) -> list[SlicePlane]:
    """Select the slices to draw, and their orientation.

    In 2D images and in stacks of slice files, rows point downwards. In NIfTI volumes, x points to the right and z
    upwards.

    Args:
        profiles: amount of foreground in each slice, one array per axis. The slice with the largest value is drawn.
        spacing: voxel size along each axis in mm. None means that all axes have the same voxel size.
        is_stack: whether the volume is a stack of slice files.
    """
    dims = len(profiles)
    mm = [float(value) for value in spacing] if spacing is not None else [1.0] * dims
    if dims == 2:
        return [SlicePlane(None, 0, False, False, mm[0] / mm[1])]
    planes = []
    for axis in (2, 1, 0):
        first, second = [i for i in range(3) if i != axis]
        profile = profiles[axis]
        position = int(profile.argmax()) if profile.any() else len(profile) // 2
        is_slice_file = is_stack and axis == 2
        aspect = mm[first] / mm[second] if is_slice_file else mm[second] / mm[first]
        planes.append(SlicePlane(axis, position, transpose=not is_slice_file, upwards=not is_slice_file, aspect=aspect))
    return planes


def _row_heights(planes: Sequence[SlicePlane], foreground: Array, width: float) -> list[float]:
    """Return the height of each row of panels in inches.

    The heights are proportional to the heights of the slices, within limits.

    Args:
        planes: the slices, one per row.
        foreground: any array with the spatial shape of the case; its values are not used.
        width: width of a panel in inches.
    """
    heights = []
    for plane in planes:
        rows, columns = plane.cut(foreground).shape
        heights.append(width * min(max(plane.aspect * rows / columns, 0.3), 1.6))
    return heights


# Drawing


def drawn_channels(image: Array) -> Array:
    """Return the channels to draw.

    For a 2D image with 3 or 4 channels, these are the first three channels. For any other image, this is the first
    channel.
    """
    return image[:3] if image.ndim == 3 and image.shape[0] in (3, 4) else image[:1]


def _reduce_unless_reduced(channels: Array, shape: Sequence[int], step: int) -> Array:
    """Reduce the channels of a 2D image to the size of a figure.

    If `load_picture` has already reduced the image, the channels are returned unchanged.
    """
    return reduce_image(channels, step) if channels.shape[1:] == tuple(shape) else channels


def display_range(channels: Array) -> tuple[float, float]:
    """Return the lowest and highest value to draw: the 0.5th and 99.5th percentiles over all channels.

    All channels have the same range, so that the ratios of colours are preserved. The range of the dtype is not used,
    because microscopy images use only a part of that range. The percentiles come from a sample of about a million
    values.
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


def to_rgb(channels: Array, bounds: tuple[float, float]) -> NDArray[np.float32]:
    """Scale the values of a slice to [0, 1], and return the slice as an RGB image.

    Args:
        channels: (1 or 3, rows, columns).
        bounds: values that become 0 and 1. Values outside of these bounds are clipped.

    Returns:
        (rows, columns, 3) float32.
    """
    finite = np.nan_to_num(channels.astype(np.float32), nan=bounds[0], posinf=bounds[1], neginf=bounds[0])
    scaled = np.clip((finite - bounds[0]) / (bounds[1] - bounds[0]), 0.0, 1.0)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)


def _draw_image(axes: Axes, image: Array, plane: SlicePlane) -> None:
    axes.imshow(image, origin="lower" if plane.upwards else "upper", aspect=plane.aspect)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_masks(axes: Axes, layers: Array) -> None:
    """Fill the area of each class and draw its contour.

    Args:
        axes: panel of the figure.
        layers: (K, rows, columns) bool.
    """
    for index, layer in enumerate(layers):
        if not layer.any():
            continue
        colour = class_colour(index)
        _fill_area(axes, layer, colour, 0.25)
        # The mask is enlarged so that contours follow the pixel edges instead of cutting corners. A frame of background
        # closes contours at the image's edge. It also makes contours possible in images with a single row.
        scale = min(max(SMOOTH_PIXELS // max(layer.shape), 1), 8)
        padded = np.pad(np.kron(layer, np.ones((scale, scale), np.uint8)), 1)
        rows, columns = ((np.arange(size) - 0.5) / scale - 0.5 for size in padded.shape)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1.2)
        axes.set(xlim=limits[0], ylim=limits[1])


def _fill_area(axes: Axes, layer: Array, colour: RGB, strength: float) -> None:
    tint = np.zeros((*layer.shape, 4), dtype=np.float32)
    tint[layer] = (*colour, strength)
    image = axes.get_images()[0]
    axes.imshow(tint, origin=image.origin, aspect=axes.get_aspect(), interpolation="nearest")


def _label(name: str, dice: Mapping[str, float] | None) -> str:
    if dice is None:
        return f" {name}"
    value = dice.get(name, math.nan)
    score = "no Dice" if value is None or math.isnan(value) else f"Dice {value:.3f}"
    return f" {name}: {score}"  # matplotlib omits labels that begin with an underscore


def _draw_legend(figure: Figure, entries: Sequence[tuple[RGB, str]], ignored: bool) -> None:
    """Draw a legend of the classes that are present.

    If there are more than `MAX_LEGEND_ENTRIES` classes, the legend shows the first ones and the number of further
    classes.
    """
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for colour, label in entries[:MAX_LEGEND_ENTRIES]]
    if len(entries) > MAX_LEGEND_ENTRIES:
        handles.append(Patch(alpha=0.0, label=and_more(len(entries), MAX_LEGEND_ENTRIES, "class")))
    if not entries:
        handles.append(Patch(alpha=0.0, label=" no class in truth or prediction"))
    if ignored:
        handles.append(Patch(color=IGNORED_COLOUR, label=" ignored"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x


def _legend_entries(comp: Competition, truth: Array, masks: tuple[Array, Array]) -> list[tuple[RGB, str]]:
    """Return the legend's entries: the classes that are present, then the colours of the comparison of A and B."""
    present: list[Any] = [
        index
        for index, class_truth in enumerate(label_to_class_masks(truth, comp))
        if class_truth.any() or np.any([mask[index].any() for mask in masks])
    ]
    return [
        *((class_colour(index), f" {comp.classes[index]}") for index in present),
        (BETTER_COLOUR, " only B is right"),
        (WORSE_COLOUR, " only A is right"),
        (BOTH_WRONG_COLOUR, " both are wrong"),
    ]
