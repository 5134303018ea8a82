"""Write the HTML page of a data exploration: faults of the data, measurements, and a suggested experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from competition.data.masks import IGNORED, load_mask
from competition.errors import MaskfoldError
from competition.explore import Exploration, summary
from competition.explore.summary import case_rows, finding_rows
from competition.explore.types import CaseStats, Finding
from competition.io import atomic_write
from competition.report.html import Table, create_figure_folder, render, write_page
from competition.tables import write_table
from competition.text import format_count, pixel_or_voxel, shorten_id
from competition.viz.overlays import class_colour, label_to_class_masks, save_figure
from competition.viz.preview import load_picture
from competition.viz.reduction import reduce_image, reduce_truth, reduction_step
from competition.viz.style import (
    FOLD_COLOURS,
    MAX_PANELS,
    TEXT_COLOUR,
    add_legend,
    dark_class_colour,
    panel_grid,
    select_drawn_classes,
    set_log_axis,
    show_empty_text,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from competition.config.competition import Competition


TEMPLATE = "explore.html.j2"
SHIFT_HEADER = ["measure", "median, train", "median, test", "distance", "p", ""]
MAX_ROWS = 500  # maximum number of faults, and of remarks, on the page; findings.csv contains all


def write_exploration(exploration: Exploration, output: Path) -> Path:
    """Write the page of a data exploration, and a folder with its figures and tables.

    The page is a single HTML file that contains its figures. The folder has the name of the page, and contains
    copies of the figures, `cases.csv`, `findings.csv` and `suggested.yaml`.

    Args:
        exploration: the exploration.
        output: path of the page, which ends in `.html`.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: the page cannot be written.
    """
    folder = create_figure_folder(output)
    try:
        for old in folder.glob("*.png"):
            old.unlink()  # remove figures of an earlier exploration
        write_table(case_rows(exploration), folder / "cases.csv")
        write_table(finding_rows(exploration), folder / "findings.csv")
        atomic_write(folder / "suggested.yaml", lambda file: file.write(exploration.snippet.encode()))
        sections = {
            "faults": ("Faults", _findings(exploration)),
            "sizes": ("Sizes", _sizes(exploration, folder)),
            "intensities": ("Intensities", _intensities(exploration, folder)),
            "truth": ("Truth", _truth(exploration, folder)),
        }
        if exploration.pairs:
            sections["alike"] = ("Near-duplicates", _near_duplicates(exploration, folder))
        sections["suggested"] = ("Suggested", render(TEMPLATE, "suggested", snippet=exploration.snippet))
        return write_page(f"{exploration.comp.name} · data", _head(exploration), sections, output)
    except OSError as error:
        raise MaskfoldError(
            f"The page {output} cannot be written: {error.strerror or error}.",
            "Set another file with --output, or free disk space.",
        ) from error


def _head(exploration: Exploration) -> Markup:
    comp = exploration.comp
    n_train, n_test = (len(exploration.cases_of(split)) for split in ("train", "test"))
    facts = {
        "cases": f"{n_train} train, {n_test} test ({comp.dimensions}D)",
        "classes": f"{len(comp.classes)} {comp.labels}" + (", scored by object" if comp.instances else ""),
        "faults": str(len(exploration.faults)),
        "remarks": str(len(exploration.remarks)),
        "folder": str(comp.root),
    }
    faults = format_count(len(exploration.faults), "fault") if exploration.faults else ""
    return render(TEMPLATE, "head", name=comp.name, faults=faults, facts=facts)


def _findings(exploration: Exploration) -> Markup:
    groups = [
        {"title": title, "count": len(findings), "table": _finding_table(findings)}
        for title, findings in (("Faults", exploration.faults), ("Remarks", exploration.remarks))
    ]
    return render(TEMPLATE, "findings", groups=groups)


def _finding_table(findings: Sequence[Finding]) -> Table:
    rows = [[finding.kind, finding.split or "both", finding.message, finding.hint] for finding in findings[:MAX_ROWS]]
    return Table(["kind", "split", "problem", "solution"], rows, text_columns=(0, 1, 2, 3))


def _sizes(exploration: Exploration, folder: Path) -> Markup:
    picture = folder / "sizes.png"
    draw_sizes(exploration, picture)
    overview = Table(["", "train", "test"], summary.overview_rows(exploration), text_columns=(0, 1, 2))
    return render(TEMPLATE, "sizes", overview=overview, picture=picture)


def _intensities(exploration: Exploration, folder: Path) -> Markup:
    picture = None
    if any(case.stats for case in exploration.cases):
        picture = folder / "intensities.png"
        draw_intensities(exploration, picture)
    shifts = [
        [
            shift.measure,
            f"{shift.train_median:.4g}",
            f"{shift.test_median:.4g}",
            f"{shift.distance:.2f}",
            f"{shift.p_value:.2g}",
            "differs" if shift.significant else "",
        ]
        for shift in exploration.shifts
    ]
    contrasts = summary.contrast_rows(exploration)
    return render(
        TEMPLATE,
        "intensities",
        picture=picture,
        shifts=Table(SHIFT_HEADER, shifts, text_columns=(0, 5)) if shifts else None,
        contrasts=Table(summary.CONTRAST_HEADER, contrasts) if contrasts else None,
    )


def _truth(exploration: Exploration, folder: Path) -> Markup:
    comp, overview = exploration.comp, summary.truth_rows(exploration)
    has_samples, drawn = False, ""
    if overview:
        has_samples = bool(draw_samples(exploration, folder / "samples.png"))
        shown = draw_class_shares(exploration, folder / "classes.png")
        draw_objects(exploration, folder / "objects.png")
        if len(shown) < len(comp.classes):
            drawn = f" (the {len(shown)} largest of {len(comp.classes)})"
    is_given = comp.train.rle or "*" in str(comp.train.masks)
    return render(
        TEMPLATE,
        "truth",
        overview=Table(["", "train"], overview, text_columns=(0, 1)) if overview else None,
        classes=Table(summary.class_header(exploration), summary.class_rows(exploration)),
        samples=folder / "samples.png" if has_samples else None,
        class_picture=folder / "classes.png",
        drawn=drawn,
        object_picture=folder / "objects.png",
        source="as the host provides them" if is_given else "connected components",
    )


def _near_duplicates(exploration: Exploration, folder: Path) -> Markup:
    picture = folder / "alike.png"
    draw_near_duplicates(exploration, picture)
    return render(TEMPLATE, "near_duplicates", pairs=format_count(len(exploration.pairs), "pair"), picture=picture)


# Figures of measurements

SPLIT_COLOURS = {"train": FOLD_COLOURS[0], "test": FOLD_COLOURS[1]}
BINS = 30
MAX_PAIRS = 6
# An axis is logarithmic if the ratio of maximum to minimum is larger than this, for counts and for other measurements.
LOG_RATIO_COUNTS, LOG_RATIO_MEASURES = 20.0, 100.0


def draw_sizes(exploration: Exploration, path: Path) -> None:
    """Draw the sizes of the cases.

    For 2D images, this is a plot of height against width. For volumes, these are histograms of the size along each
    axis, and of the spacing along each axis if it differs between cases.
    """
    cases = {
        split: [case for case in exploration.used_cases(split) if case.shape and case.spacing]
        for split in SPLIT_COLOURS
    }
    if exploration.comp.dimensions == 2:
        figure, grid = panel_grid(1, height=4.4)
        style_axes(grid[0], "size of each image", xlabel="width, pixels (axis 1)", ylabel="height, pixels (axis 0)")
        for split, colour in SPLIT_COLOURS.items():
            shapes = [case.shape for case in cases[split] if case.shape]
            if shapes:
                grid[0].scatter(
                    [shape[1] for shape in shapes],
                    [shape[0] for shape in shapes],
                    s=22,
                    alpha=0.4,
                    color=colour,
                    linewidths=0,
                    label=f"{split} ({len(shapes)})",
                )
        if any(cases.values()):
            # Below the panel, because inside it the legend could cover points.
            add_legend(figure, below=True, columns=2)
        else:
            show_empty_text(grid[0], "no image could be read")
        save_figure(figure, path)
        return
    measures: dict[str, tuple[str, dict[str, list[float]]]] = {}
    for axis in range(3):
        lengths = {split: [float(case.shape[axis]) for case in group if case.shape] for split, group in cases.items()}
        measures[f"size along axis {axis}"] = ("voxels", lengths)
    for axis in range(3):
        spacings = {split: [case.spacing[axis] for case in group if case.spacing] for split, group in cases.items()}
        if len({round(value, 4) for values in spacings.values() for value in values}) > 1:
            measures[f"spacing along axis {axis}"] = ("mm", spacings)
    figure, grid = panel_grid(len(measures), height=2.8, columns=3)
    for axes, (title, (unit, values)) in zip(grid, measures.items(), strict=True):
        style_axes(axes, title, xlabel=unit, ylabel="share of cases")
        _split_histogram(axes, values)
    add_legend(figure, below=True, columns=2)
    save_figure(figure, path)


def draw_intensities(exploration: Exploration, path: Path) -> None:
    """Draw two histograms for each channel: the mean and the standard deviation of the intensities of each case.

    Training and test cases are drawn separately.
    """
    channels = dict.fromkeys(channel.name for case in exploration.cases for channel in case.stats or [])
    names = list(channels)[: MAX_PANELS // 2]
    figure, grid = panel_grid(2 * len(names), height=2.7, columns=2)
    for row, name in enumerate(names):
        for column, (label, key) in enumerate((("mean of a case", "mean"), ("standard deviation in a case", "std"))):
            axes = grid[2 * row + column]
            style_axes(axes, name, xlabel=label, ylabel="share of cases")
            values = {split: _channel_values(exploration, split, name, key) for split in SPLIT_COLOURS}
            _split_histogram(axes, values)
    add_legend(figure, below=True, columns=2)
    save_figure(figure, path)


def _channel_values(exploration: Exploration, split: str, name: str, key: str) -> list[float]:
    channels = [channel for case in exploration.used_cases(split) for channel in case.stats or []]
    return [getattr(channel, key) for channel in channels if channel.name == name]


def draw_class_shares(exploration: Exploration, path: Path) -> list[int]:
    """Draw a histogram for each class: the share of a case that the class covers.

    Returns:
        The indices of the drawn classes. If there are many classes, only the largest ones are drawn.
    """
    truths = [case.truth for case in exploration.used_cases("train") if case.truth is not None]
    totals = [sum(int(truth.voxels[index]) for truth in truths) for index in range(len(exploration.comp.classes))]
    shown = select_drawn_classes(totals)
    figure, grid = panel_grid(len(shown), height=2.7, columns=3)
    for axes, index in zip(grid, shown, strict=True):
        shares = [truth.voxels[index] / truth.total for truth in truths if truth.voxels[index]]
        style_axes(axes, exploration.comp.classes[index], xlabel="share of a case", ylabel="cases")
        if shares:
            _count_histogram(axes, np.array(shares), dark_class_colour(index))
        else:
            show_empty_text(axes, "absent")
    save_figure(figure, path)
    return shown


def draw_objects(exploration: Exploration, path: Path) -> None:
    """Draw two histograms: the number of objects per case, and the sizes of objects in pixels or voxels."""
    truths = [case.truth for case in exploration.used_cases("train") if case.truth is not None]
    figure, grid = panel_grid(2, height=3.0, columns=2)
    unit = f"{pixel_or_voxel(exploration.comp.dimensions)}s"
    counts = np.array([len(truth.object_sizes) for truth in truths])
    sizes = np.concatenate([truth.object_sizes for truth in truths])
    for axes, title, values, xlabel, ylabel in (
        (grid[0], "objects per case", counts, "objects", "cases"),
        (grid[1], "size of an object", sizes, unit, "objects"),
    ):
        style_axes(axes, title, xlabel=xlabel, ylabel=ylabel)
        if values.size:
            _count_histogram(axes, values.astype(np.float64), TEXT_COLOUR)
        else:
            show_empty_text(axes, "absent")
    save_figure(figure, path)


def draw_near_duplicates(exploration: Exploration, path: Path) -> None:
    """Draw the thumbnails of pairs of near-duplicates side by side; of a volume, draw the middle slice."""
    pairs = exploration.pairs[:MAX_PAIRS]
    figure, grid = panel_grid(2 * len(pairs), height=2.7, columns=4)
    for number, pair in enumerate(pairs):
        for axes, index in zip(grid[2 * number : 2 * number + 2], (pair.first, pair.second), strict=True):
            case = exploration.cases[index]
            image = case.thumbnail
            if image is None:
                continue
            if image.ndim == 3:
                image = image[:, :, image.shape[2] // 2]
            axes.imshow(image, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(
                f"{shorten_id(case.id)} ({case.split})\ncorrelation {pair.correlation:.3f}{', turned' * pair.turned}",
                fontsize=8.5,
                color=TEXT_COLOUR,
                parse_math=False,
            )
    save_figure(figure, path)


def _split_histogram(axes: Axes, values_by_split: Mapping[str, Sequence[float]]) -> None:
    """Draw histograms of the training and the test cases into the same axes.

    The heights are shares of the training or test cases, so they are comparable even if the numbers of cases differ.

    Args:
        axes: the axes.
        values_by_split: the values of the training cases (`train`) and of the test cases (`test`).
    """
    values = np.array([value for split_values in values_by_split.values() for value in split_values], np.float64)
    if not values.size:
        show_empty_text(axes, "absent")
        return
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    if low > 0 and high / low > LOG_RATIO_MEASURES:
        edges = np.geomspace(low, high * 1.0001, BINS + 1)
        set_log_axis(axes.xaxis, low / 1.05, high * 1.05)
    for split, split_values in values_by_split.items():
        weights = np.full(len(split_values), 1 / max(1, len(split_values)))
        axes.hist(
            np.asarray(split_values, np.float64),
            bins=edges.tolist(),
            weights=weights,
            histtype="stepfilled",
            alpha=0.45,
            color=SPLIT_COLOURS[split],
            label=split,
        )


def _count_histogram(axes: Axes, values: np.ndarray, colour: tuple[float, float, float]) -> None:
    """Draw a histogram of counts or sizes; the horizontal axis is logarithmic if their range is wide."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > LOG_RATIO_COUNTS:
        edges = np.geomspace(low, high * 1.0001, BINS + 1)
        set_log_axis(axes.xaxis, low / 1.05, high * 1.05)
    elif high > low and high - low < BINS and (values == np.rint(values)).all():
        edges = np.arange(low - 0.5, high + 1)  # one bar for each integer
        axes.set_xticks(np.arange(low, high + 1, max(1, (high - low) // 10)))
    elif high > low:
        edges = np.linspace(low, high, BINS + 1)
    else:
        edges = np.array([low - 0.5 * max(abs(low), 1e-3), low + 0.5 * max(abs(low), 1e-3)])
    axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.75)


# Sample cases

MAX_CASES = 8


def draw_samples(exploration: Exploration, path: Path) -> list[str]:
    """Draw at most eight training cases and their masks, sorted by their share of foreground, the smallest first.

    If there are more cases, eight are selected at equal distances in this order. Of a volume, the slice with the most
    foreground is drawn.

    Returns:
        The ids of the drawn cases. If no case has a mask, the list is empty and no figure is written.
    """
    cases = [case for case in exploration.used_cases("train") if case.truth is not None and case.stats is not None]
    cases = _select(cases)
    if not cases:
        return []
    figure, grid = panel_grid(len(cases), height=3.0, columns=4)
    for axes, case in zip(grid, cases, strict=True):
        try:
            _draw(axes, case, exploration.comp)
        except MaskfoldError:  # the file was removed after it was measured
            continue
    save_figure(figure, path)
    return [case.id for case in cases]


def _select(cases: Sequence[CaseStats]) -> list[CaseStats]:
    """Return at most eight cases, selected at equal distances in the order of their share of foreground."""
    ordered = sorted(cases, key=lambda case: (_foreground_share(case), case.id))
    if len(ordered) <= MAX_CASES:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MAX_CASES - 1))] for index in range(MAX_CASES)]


def _foreground_share(case: CaseStats) -> float:
    return case.truth.foreground / case.truth.total if case.truth is not None else 0.0


def _sample_layers(case: CaseStats, comp: Competition) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the class masks of a case for a figure, reduced in size.

    Of a volume, this is the slice along the last axis with the most foreground.

    Returns:
        Channels (C, rows, columns), and masks (K, rows, columns) bool.
    """
    image, mask = load_picture(comp, case.row).array, load_mask(comp, case.row)
    channels = image[:3] if comp.dimensions == 2 and len(image) in (3, 4) else image[:1]
    if comp.dimensions == 3:
        is_class = mask == 1 if comp.labels == "overlapping" else (mask != 0) & (mask != IGNORED)
        counts = is_class.sum(axis=(0, 1, 2))
        z = int(counts.argmax()) if counts.any() else mask.shape[-1] // 2
        channels, mask = channels[..., z], mask[..., z]
    step = reduction_step(mask.shape[1:])
    channels = reduce_image(channels, step) if channels.shape[1:] == mask.shape[1:] else channels
    return channels, label_to_class_masks(reduce_truth(mask, comp, step), comp)


def _draw(axes: Axes, case: CaseStats, comp: Competition) -> None:
    channels, layers = _sample_layers(case, comp)
    aspect, upwards = 1.0, False
    if comp.dimensions == 3:
        spacing = case.spacing or (1.0, 1.0, 1.0)
        aspect = spacing[0] / spacing[1]
        # Draw volumes with x to the right and y upwards. Stacks of slices keep the orientation of their files.
        if "{z}" not in str(comp.train.images):
            channels, layers = np.swapaxes(channels, -1, -2), np.swapaxes(layers, -1, -2)
            aspect, upwards = spacing[1] / spacing[0], True
    values = channels.astype(np.float32)
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    scaled = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    axes.imshow(
        np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1),
        aspect=aspect,
        origin="lower" if upwards else "upper",
    )
    for index, layer in enumerate(layers):
        if layer.any() and min(layer.shape) > 1:
            padded = np.pad(layer.astype(np.uint8), 1)  # with a frame of background, contours close at the image's edge
            rows, columns = (np.arange(-1, size + 1) for size in layer.shape)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[class_colour(index)], linewidths=1.0)
    axes.set_xlim(-0.5, scaled.shape[2] - 0.5)
    axes.set_ylim((-0.5, scaled.shape[1] - 0.5) if upwards else (scaled.shape[1] - 0.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks([])
    title = f"{shorten_id(case.id)}\nforeground {_foreground_share(case):.2%}"
    axes.set_title(title, fontsize=8.5, color=TEXT_COLOUR, parse_math=False)
