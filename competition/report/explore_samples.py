"""A sheet of training cases with the borders of their classes, from the smallest foreground to the largest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.config import MaskfoldError
from competition.data.explore import Exploration, Measured
from competition.data.explore.words import short
from competition.data.table import load_image, load_mask
from competition.report.canvas import INK, panels
from competition.scoring.pictures import class_colour, class_masks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.config import Competition

MOST = 8


def draw_samples(found: Exploration, path: Path) -> list[str]:
    """Draws at most eight cases, evenly spread by the share of their foreground; the plane of a volume with most of it.

    Returns:
        Their ids; empty where no case has truth, and then nothing is drawn.
    """
    cases = _chosen([case for case in found.of("train") if case.truth is not None and case.values is not None])
    if not cases:
        return []
    figure, axes = panels(len(cases), height=3.0, columns=4)
    for one, case in zip(axes, cases, strict=True):
        try:
            _draw(one, case, found.comp)
        except MaskfoldError:  # gone since it was measured
            continue
    save_figure(figure, path)
    return [case.id for case in cases]


def _chosen(cases: Sequence[Measured]) -> list[Measured]:
    order = sorted(cases, key=lambda case: (_share(case), case.id))
    if len(order) <= MOST:
        return order
    return [order[round(at * (len(order) - 1) / (MOST - 1))] for at in range(MOST)]


def _share(case: Measured) -> float:
    return case.truth.foreground / case.truth.total if case.truth is not None else 0.0


def _draw(axes: Axes, case: Measured, comp: Competition) -> None:
    image, layers = load_image(comp, case.row).array, class_masks(load_mask(comp, case.row), comp)
    channels = image[:3] if comp.dimensions == 2 and len(image) in (3, 4) else image[:1]
    aspect, upwards = 1.0, False
    if comp.dimensions == 3:
        counts = layers.sum(axis=(0, 1, 2))
        at = int(counts.argmax()) if counts.any() else layers.shape[-1] // 2
        channels, layers = channels[..., at], layers[..., at]
        spacing = case.spacing or (1.0, 1.0, 1.0)
        aspect = spacing[0] / spacing[1]
        if "{z}" not in str(comp.train.images):  # x to the right, y upwards; a stack is drawn as its files are
            channels, layers = np.swapaxes(channels, -1, -2), np.swapaxes(layers, -1, -2)
            aspect, upwards = spacing[1] / spacing[0], True
    values = channels.astype(np.float32)
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    shown = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    axes.imshow(
        np.moveaxis(np.broadcast_to(shown, (3, *shown.shape[1:])), 0, -1),
        aspect=aspect,
        origin="lower" if upwards else "upper",
    )
    for index, layer in enumerate(layers):
        if layer.any() and min(layer.shape) > 1:
            framed = np.pad(layer.astype(np.uint8), 1)  # closes borders at the picture's edge
            rows, columns = (np.arange(-1, size + 1) for size in layer.shape)
            axes.contour(columns, rows, framed, levels=[0.5], colors=[class_colour(index)], linewidths=1.0)
    axes.set_xlim(-0.5, shown.shape[2] - 0.5)
    axes.set_ylim((-0.5, shown.shape[1] - 0.5) if upwards else (shown.shape[1] - 0.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{short(case.id)}\nforeground {_share(case):.2%}", fontsize=8.5, color=INK, parse_math=False)
