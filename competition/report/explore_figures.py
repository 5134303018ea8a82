"""Figures of what was measured: sizes, intensities, classes and objects, and pictures that look the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.data.explore import Exploration
from competition.data.explore.words import dot, short
from competition.report.canvas import (
    FOLDS,
    INK,
    MOST_PANELS,
    drawn_classes,
    dress,
    ink,
    legend,
    log_axis,
    nothing,
    panels,
)
from competition.scoring.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = {"train": FOLDS[0], "test": FOLDS[1]}
BINS = 30
MOST_PAIRS = 6
WIDE, VAST = 20.0, 100.0  # times from least to greatest: a log axis, of counts and of measures


def draw_sizes(found: Exploration, path: Path) -> None:
    """Pictures: height against width. Volumes: a histogram of each axis, and of spacings where they differ."""
    cases = {split: [case for case in found.of(split) if case.shape and case.spacing] for split in SIDES}
    if found.comp.dimensions == 2:
        figure, axes = panels(1, height=4.4)
        dress(axes[0], "size of each picture", across="width, pixels (axis 1)", up="height, pixels (axis 0)")
        for split, colour in SIDES.items():
            shapes = [case.shape for case in cases[split] if case.shape]
            if shapes:
                axes[0].scatter(
                    [one[1] for one in shapes],
                    [one[0] for one in shapes],
                    s=22,
                    alpha=0.4,
                    color=colour,
                    linewidths=0,
                    label=f"{split} ({len(shapes)})",
                )
        if any(cases.values()):
            legend(figure, below=True, columns=2)  # a corner that is free of points cannot be counted on
        else:
            nothing(axes[0], "no image could be read")
        save_figure(figure, path)
        return
    measures: dict[str, tuple[str, dict[str, list[float]]]] = {}
    for axis in range(3):
        lengths = {split: [float(case.shape[axis]) for case in those if case.shape] for split, those in cases.items()}
        measures[f"size along axis {axis}"] = ("voxels", lengths)
    for axis in range(3):
        spacings = {split: [case.spacing[axis] for case in those if case.spacing] for split, those in cases.items()}
        if len({round(value, 4) for values in spacings.values() for value in values}) > 1:
            measures[f"spacing along axis {axis}"] = ("mm", spacings)
    figure, axes = panels(len(measures), height=2.8, columns=3)
    for one, (title, (unit, values)) in zip(axes, measures.items(), strict=True):
        dress(one, title, across=unit, up="share of cases")
        _histogram(one, values)
    legend(figure, below=True, columns=2)
    save_figure(figure, path)


def draw_intensities(found: Exploration, path: Path) -> None:
    """Mean and spread of each case's intensities, by channel, train against test."""
    names = list(dict.fromkeys(one.name for case in found.cases for one in case.values or []))[: MOST_PANELS // 2]
    figure, axes = panels(2 * len(names), height=2.7, columns=2)
    for row, name in enumerate(names):
        for column, (words, key) in enumerate(
            (("mean of a case", "mean"), ("standard deviation in a case", "deviation"))
        ):
            one = axes[2 * row + column]
            dress(one, name, across=words, up="share of cases")
            _histogram(
                one,
                {
                    split: [
                        getattr(value, key)
                        for case in found.of(split)
                        for value in case.values or []
                        if value.name == name
                    ]
                    for split in SIDES
                },
            )
    legend(figure, below=True, columns=2)
    save_figure(figure, path)


def draw_classes(found: Exploration, path: Path) -> list[int]:
    """Share of each class in the cases that have it; returns the classes drawn."""
    truths = [case.truth for case in found.of("train") if case.truth is not None]
    totals = [sum(int(one.voxels[index]) for one in truths) for index in range(len(found.comp.classes))]
    shown = drawn_classes(totals)
    figure, axes = panels(len(shown), height=2.7, columns=3)
    for one, index in zip(axes, shown, strict=True):
        values = [one.voxels[index] / one.total for one in truths if one.voxels[index]]
        dress(one, found.comp.classes[index], across="share of a case", up="cases")
        if values:
            _counted(one, np.array(values), ink(index))
        else:
            nothing(one, "absent")
    save_figure(figure, path)
    return shown


def draw_objects(found: Exploration, path: Path) -> None:
    """Objects in a case, and their sizes."""
    truths = [case.truth for case in found.of("train") if case.truth is not None]
    figure, axes = panels(2, height=3.0, columns=2)
    unit = f"{dot(found.comp.dimensions)}s"
    sizes = np.concatenate([one.sizes for one in truths])
    for one, title, values, across, up in (
        (axes[0], "objects in a case", np.array([len(truth.sizes) for truth in truths]), "objects", "cases"),
        (axes[1], "size of an object", sizes, unit, "objects"),
    ):
        dress(one, title, across=across, up=up)
        if values.size:
            _counted(one, values.astype(np.float64), INK)
        else:
            nothing(one, "absent")
    save_figure(figure, path)


def draw_pairs(found: Exploration, path: Path) -> None:
    """The thumbnails of pictures that look the same, side by side; of volumes the middle plane."""
    pairs = found.pairs[:MOST_PAIRS]
    figure, axes = panels(2 * len(pairs), height=2.7, columns=4)
    for number, pair in enumerate(pairs):
        for one, place in zip(axes[2 * number : 2 * number + 2], (pair.one, pair.other), strict=True):
            case = found.cases[place]
            small = case.thumbnail
            if small is None:
                continue
            if small.ndim == 3:
                small = small[:, :, small.shape[2] // 2]
            one.imshow(small, cmap="gray", interpolation="nearest")
            one.set_axis_off()
            one.set_title(
                f"{short(case.id)} ({case.split})\nlikeness {pair.likeness:.3f}",
                fontsize=8.5,
                color=INK,
                parse_math=False,
            )
    save_figure(figure, path)


def _histogram(axes: Axes, sides: Mapping[str, Sequence[float]]) -> None:
    """Shares over common bins, so that few test cases can be compared with many training cases."""
    values = np.array([value for side in sides.values() for value in side], np.float64)
    if not values.size:
        nothing(axes, "absent")
        return
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    if low > 0 and high / low > VAST:
        edges = np.geomspace(low, high * 1.0001, BINS + 1)
        log_axis(axes.xaxis, low / 1.05, high * 1.05)
    for split, side in sides.items():
        weights = np.full(len(side), 1 / max(1, len(side)))
        axes.hist(
            np.asarray(side, np.float64),
            bins=edges.tolist(),
            weights=weights,
            histtype="stepfilled",
            alpha=0.45,
            color=SIDES[split],
            label=split,
        )


def _counted(axes: Axes, values: np.ndarray, colour: tuple[float, float, float]) -> None:
    """A histogram of counts; over a wide range on a log axis."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > WIDE:
        edges = np.geomspace(low, high * 1.0001, BINS + 1)
        log_axis(axes.xaxis, low / 1.05, high * 1.05)
    elif high > low and high - low < BINS and (values == np.rint(values)).all():
        edges = np.arange(low - 0.5, high + 1)  # a bar for each number
        axes.set_xticks(np.arange(low, high + 1, max(1, (high - low) // 10)))
    elif high > low:
        edges = np.linspace(low, high, BINS + 1)
    else:
        edges = np.array([low - 0.5 * max(abs(low), 1e-3), low + 0.5 * max(abs(low), 1e-3)])
    axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.75)
