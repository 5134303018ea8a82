"""Write the calibration section of a run's HTML report: reliability diagrams, calibration errors, Dice by threshold.

A network is calibrated if its probabilities are frequencies: of the pixels with the probability 0.8 for a class, 80 %
belong to the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask
from competition.inference.masks import merge_boundary_class
from competition.report.html import ABSENT_LABEL, Table, format_score, render
from competition.report.results import RunResults
from competition.runs.oof import OofPredictions
from competition.text import format_count
from competition.viz.overlays import IGNORE_LABEL, label_to_class_masks, save_figure
from competition.viz.style import (
    GREY_COLOUR,
    MAX_PANELS,
    TEXT_COLOUR,
    add_legend,
    dark_class_colour,
    panel_grid,
    select_drawn_classes,
    show_empty_text,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


# Section

TEMPLATE = "run.html.j2"
ABSENT_TEXT = "the truth of these cases does not contain the class"
# Number of bins of the reliability diagram: (0, 1/15], (1/15, 2/15] and so on. The first one also has probability 0.
BINS = 15


def calibration_section(results: RunResults, oof: OofPredictions, folder: Path, context: Context) -> Markup:
    """Return the section with reliability diagrams, calibration errors, and Dice as a function of the threshold.

    Args:
        results: the results of the run.
        oof: the run's out-of-fold predictions.
        folder: folder for the figures.
        context: context whose log receives progress messages.
    """
    comp = results.run.exp.competition
    cases = sample_evenly(list(oof.fold_of))
    context.say(f"measuring the calibration on {format_count(len(cases), 'case')}")
    tallies, scored = count_calibration(oof, cases), mean_scored_dice(results, cases)
    shown = select_drawn_classes([float(class_tally.positives.sum()) for class_tally in tallies])
    exclusive = comp.labels == "exclusive"
    draw_reliability(tallies, comp.classes, shown, folder / "calibration.png")
    draw_thresholds(tallies, comp.classes, shown, scored, exclusive, folder / "thresholds.png")
    header = [
        "class",
        "pixels",
        "ECE",
        "ECE of uncertain pixels",
        "best threshold",
        "Dice at best threshold",
        f"Dice at {'argmax' if exclusive else '0.5'}",
    ]
    rows = [_row(*columns) for columns in zip(comp.classes, tallies, scored, strict=True)]
    return render(
        TEMPLATE,
        "calibration",
        table=Table(header, rows),
        reliability=folder / "calibration.png",
        thresholds=folder / "thresholds.png",
        sample=describe_sample(cases, oof),
        bins=BINS,
        boundary=results.run.exp.prepare.object_key is not None,
        drawn=MAX_PANELS if len(shown) < len(tallies) else None,
        exclusive=exclusive,
        left_empty=any(class_tally.left_empty for class_tally in tallies),
    )


def mean_scored_dice(results: RunResults, cases: list[str]) -> list[float]:
    """Return the mean Dice of each class over the given cases whose labels contain the class.

    If there are no such cases, the Dice of the class is nan.

    Args:
        results: the results of the run, from which the Dice of each case is taken.
        cases: ids of the cases.
    """
    rows = results.rows()
    rows = rows[rows["id"].isin(cases) & (rows["tp"] + rows["fn"] > 0)]
    means = rows.groupby("class")["dice"].mean()
    return [float(means.get(name, nan)) for name in results.run.exp.competition.classes]


def _row(name: str, class_tally: CalibrationCounts, scored: float) -> list[str]:
    if class_tally.absent:
        return [name, *[ABSENT_LABEL] * 6]
    curve = class_tally.mean_dice()
    best = int(np.argmax(curve))
    return [
        name,
        f"{int(class_tally.positives.sum()):,}",
        f"{class_tally.ece():.4f}",
        format_score(class_tally.ece(uncertain_only=True)),
        f"{THRESHOLDS[best]:.2f}",
        f"{curve[best]:.4f}",
        format_score(scored),
    ]


def draw_reliability(tallies: list[CalibrationCounts], classes: list[str], shown: list[int], path: Path) -> None:
    """Draw a reliability diagram of each class: the share of the class among pixels of similar probability.

    Args:
        tallies: counts of each class.
        classes: names of the classes.
        shown: indices of the classes to draw.
        path: path of the figure.
    """
    figure, grid = panel_grid(len(shown), height=3.2, columns=3)
    for axes, index in zip(grid, shown, strict=True):
        class_tally = tallies[index]
        if class_tally.absent:
            style_axes(axes, classes[index])
            show_empty_text(axes, ABSENT_TEXT)
            continue
        title = f"{classes[index]} · ECE {class_tally.ece():.4f}"
        style_axes(axes, title, xlabel="probability", ylabel="share of the class")
        pixels, mean, share = class_tally.bins()
        behind = axes.twinx()
        behind.bar(
            (np.arange(BINS) + 0.5) / BINS, pixels, width=0.85 / BINS, color=GREY_COLOUR, alpha=0.22, linewidth=0
        )
        behind.set_yscale("log")
        behind.set_ylim(max(0.5, min(pixels[pixels > 0]) / 10), float(pixels.max()) * 300)
        _hide_axes(behind)
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.plot([0, 1], [0, 1], color=GREY_COLOUR, linewidth=1, linestyle="--")
        axes.plot(mean, share, "o-", color=dark_class_colour(index), linewidth=1.6, markersize=4.5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    save_figure(figure, path)


def _hide_axes(axes: Axes) -> None:
    """Hide the vertical ticks and the frame of a histogram of which only the shape matters, not the numbers."""
    axes.set_yticks([])
    axes.minorticks_off()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def draw_thresholds(
    tallies: list[CalibrationCounts],
    classes: list[str],
    shown: list[int],
    scored: list[float],
    exclusive: bool,
    path: Path,
) -> None:
    """Draw the mean Dice of each class as a function of the probability threshold.

    A ring at the threshold 0.5 marks the mean Dice of the run's masks. If there are cases without the class, a dotted
    line shows the share of these cases whose mask is empty at each threshold.

    Args:
        tallies: counts of each class.
        classes: names of the classes.
        shown: indices of the classes to draw.
        scored: mean Dice of each class in the run, which the ring marks.
        exclusive: whether classes are exclusive, so that the run assigns each pixel its most probable class.
        path: path of the figure.
    """
    figure, grid = panel_grid(len(shown), height=2.9, columns=3)
    for axes, index in zip(grid, shown, strict=True):
        style_axes(axes, classes[index], xlabel="threshold", ylabel="mean Dice")
        class_tally, left_empty = tallies[index], tallies[index].share_left_empty()
        if class_tally.absent and left_empty is None:
            show_empty_text(axes, ABSENT_TEXT)
            continue
        axes.axvline(0.5, color=GREY_COLOUR, linewidth=1, linestyle="--")
        if not class_tally.absent:
            mean_dice = class_tally.mean_dice()
            axes.plot(
                THRESHOLDS,
                mean_dice,
                "o-",
                color=dark_class_colour(index),
                linewidth=1.6,
                markersize=3.5,
                label=" Dice",
            )
            axes.plot(
                [0.5],
                [scored[index]],
                "o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=TEXT_COLOUR,
                markeredgewidth=1.5,
                label=f" {'argmax' if exclusive else '0.5'}: {scored[index]:.4f}",
            )
        else:
            axes.set_title(f"{classes[index]}: {ABSENT_TEXT}", fontsize=9.5, loc="left", parse_math=False)
        if left_empty is not None:
            axes.plot(
                THRESHOLDS,
                left_empty,
                ":",
                color=dark_class_colour(index),
                linewidth=1.8,
                label=f" share of empty masks, {format_count(len(class_tally.left_empty), 'case')} without the class",
            )
        axes.set_xlim(0, 1)
        add_legend(axes)
    save_figure(figure, path)


# Counts

MAX_CASES = 60
HISTOGRAM_STEPS = 60  # a multiple of 15 and 20, so that one histogram gives both the bins and the thresholds
THRESHOLDS: Floats = np.arange(1, 20) / 20  # 0.05, 0.10, …, 0.95
PIXELS_PER_CHUNK = 2**21  # number of pixels that are processed at once


@dataclass
class CalibrationCounts:
    """Collect histograms of the probability of one class over all cases, and the Dice of each case by threshold.

    The mask of a threshold consists of the pixels whose probability is above the threshold.

    Attributes:
        pixels: (61,) histogram: entry k is the number of pixels with a probability in ((k - 1)/60, k/60]. Entry 0 is
            the number of pixels with the probability 0.
        positives: (61,) like `pixels`, but only pixels that belong to the class are counted.
        sums: (61,) for each entry of `pixels`, the sum of the probabilities of its pixels.
        dice: for each case with the class, (19,) Dice of the masks of the 19 thresholds.
        left_empty: for each case without the class, (19,) bool: whether the masks of the 19 thresholds are empty.
    """

    pixels: Ints = field(default_factory=lambda: np.zeros(HISTOGRAM_STEPS + 1, np.int64))
    positives: Ints = field(default_factory=lambda: np.zeros(HISTOGRAM_STEPS + 1, np.int64))
    sums: Floats = field(default_factory=lambda: np.zeros(HISTOGRAM_STEPS + 1))
    dice: list[Floats] = field(default_factory=list)
    left_empty: list[NDArray[np.bool_]] = field(default_factory=list)

    def add_case(self, pixels: Ints, positives: Ints, sums: Floats) -> None:
        """Add the histograms of one case; see the attributes with the same names for the shapes."""
        self.pixels += pixels
        self.positives += positives
        self.sums += sums
        first_steps = [round(threshold * HISTOGRAM_STEPS) + 1 for threshold in THRESHOLDS.tolist()]
        predicted = np.array([pixels[first:].sum() for first in first_steps])
        true_positives = np.array([positives[first:].sum() for first in first_steps])
        if positives.any():
            self.dice.append(2.0 * true_positives / (predicted + positives.sum()))
        else:
            self.left_empty.append(predicted == 0)

    @property
    def absent(self) -> bool:
        """Whether the class is absent from the labels of all cases."""
        return not self.positives.any()

    def bins(self) -> tuple[Ints, Floats, Floats]:
        """Return the content of the bins of the reliability diagram.

        Returns:
            Number of pixels, mean probability, and share of the class, (15,) each. The last two are nan in empty bins.
        """
        pixels, positives, sums = (_to_bins(values) for values in (self.pixels, self.positives, self.sums))
        return (
            pixels.astype(np.int64),
            np.divide(sums, pixels, out=np.full(BINS, nan), where=pixels > 0),
            np.divide(positives, pixels, out=np.full(BINS, nan), where=pixels > 0),
        )

    def ece(self, uncertain_only: bool = False) -> float:
        """Return the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

        In each bin, the error is |mean probability - share of the class|. The result is the mean over the bins,
        weighted by their numbers of pixels. It is nan for a class that no case has.

        Args:
            uncertain_only: whether to leave out the first and the last bin, because the many certain background pixels
                dominate the mean.
        """
        pixels, mean, share = self.bins()
        if uncertain_only:
            pixels, mean, share = pixels[1:-1], mean[1:-1], share[1:-1]
        if self.absent or not pixels.any():
            return nan
        return float(np.nansum(pixels * np.abs(mean - share)) / pixels.sum())

    def mean_dice(self) -> Floats:
        """Return the mean Dice at each threshold, (19,), over the cases with the class; nan if no case has it."""
        return np.mean(self.dice, axis=0) if self.dice else np.full(len(THRESHOLDS), nan)

    def share_left_empty(self) -> Floats | None:
        """Return the share of empty masks at each threshold, (19,), among the cases without the class.

        If all cases have the class, return None.
        """
        return np.mean(self.left_empty, axis=0) if self.left_empty else None


def sample_evenly(cases: Sequence[str], limit: int = MAX_CASES) -> list[str]:
    """Return at most `limit` cases, evenly distributed from the first to the last."""
    if len(cases) <= limit:
        return list(cases)
    return [cases[index] for index in np.linspace(0, len(cases) - 1, limit).round().astype(int)]


def describe_sample(cases: Sequence[str], oof: OofPredictions) -> str:
    """Return a description of a sample of cases, e.g. `all 40 cases` or `60 of 564 cases, evenly sampled`."""
    total = len(oof.fold_of)
    if len(cases) == total:
        return f"all {total} cases" if total > 1 else "the only case"
    return f"{len(cases)} of {total} cases, evenly sampled"


def count_calibration(oof: OofPredictions, cases: Sequence[str]) -> list[CalibrationCounts]:
    """Return the counts of each class over the cases; one case is in memory at a time."""
    comp = oof.run.exp.competition
    tallies = [CalibrationCounts() for _ in comp.classes]
    rows = oof.rows()
    for case in cases:
        histograms = _histograms(oof.read(case), load_unchanged_mask(comp, rows[case]), comp)
        for class_tally, (pixels, positives, sums) in zip(tallies, histograms, strict=True):
            class_tally.add_case(pixels, positives, sums)
    return tallies


def _histograms(probabilities: NDArray[Any], truth: NDArray[Any], comp: Competition) -> list[tuple[Ints, Ints, Floats]]:
    """Return the histograms of each class in one case: pixels, positives and sums, (61,) each.

    Ignored pixels are left out. If the network predicts a boundary class, its probability is distributed over the
    classes.

    Args:
        probabilities: (P, *spatial) predicted probabilities.
        truth: (M, *spatial) uint8 labels, a result of `competition.data.masks.load_mask`.
        comp: the competition.
    """
    bins = HISTOGRAM_STEPS + 1
    histograms = [(np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins)) for _ in comp.classes]
    step = max(1, PIXELS_PER_CHUNK // max(1, truth[0, 0].size))
    for low in range(0, truth.shape[1], step):
        chunk_truth = truth[:, low : low + step]
        chunk, masks = (
            merge_boundary_class(probabilities[:, low : low + step], comp),
            label_to_class_masks(chunk_truth, comp),
        )
        for index, (pixels, positives, sums) in enumerate(histograms):
            valid = chunk_truth[0 if comp.labels == "exclusive" else index] != IGNORE_LABEL
            probability, mask = chunk[index + (comp.labels == "exclusive")][valid], masks[index][valid]
            # The product of a float16 and 60 is exact in float32, so rounding cannot move a pixel to another entry.
            code = np.clip(np.ceil(probability * np.float32(HISTOGRAM_STEPS)), 0, HISTOGRAM_STEPS).astype(np.int64)
            pixels += np.bincount(code, minlength=bins)
            positives += np.bincount(code[mask], minlength=bins)
            sums += np.bincount(code, weights=probability, minlength=bins)
    return histograms


def _to_bins(values: NDArray[Any]) -> NDArray[Any]:
    """Sum the 61 entries of a histogram into the 15 bins of the reliability diagram."""
    sums = values[1:].reshape(BINS, HISTOGRAM_STEPS // BINS).sum(axis=1)
    sums[0] += values[0]
    return sums
