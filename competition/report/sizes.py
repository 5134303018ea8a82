"""Error against size: are the small ones the hard ones?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.data.table import load_instances, load_mask
from competition.inference.masks import to_masks
from competition.report import markup as html
from competition.report.canvas import INK, MOST_PANELS, drawn_classes, dress, ink, log_axis, nothing, panels
from competition.report.markup import Html, section
from competition.report.objects import match
from competition.report.reliability import counted, evenly
from competition.report.results import Results
from competition.scoring.instances import components
from competition.scoring.pictures import class_masks, ignored_voxels, save_figure
from competition.training.oof import OutOfFold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

GROUPS = 8  # of about equally many cases or objects, for the line of medians
FEWEST = 5  # in a group


class Sized(NamedTuple):
    """Size and quality of the objects, or cases, of one class.

    Attributes:
        sizes: (n,) of the truth, in pixels or mm³.
        values: (n,) IoU of each object, or Dice of each case.
        predicted: (m,) best IoU of each predicted object; none for cases.
    """

    sizes: Floats
    values: Floats
    predicted: Floats


def sizes_section(results: Results, oof: OutOfFold, folder: Path, say: Callable[[str], None]) -> Html:
    """Objects where the competition counts objects, else cases."""
    comp = results.run.exp.competition
    unit = (
        "mm³"
        if comp.dimensions == 3 and "{z}" not in str(comp.train.images)
        else "voxels"
        if comp.dimensions == 3
        else "pixels"
    )
    picture = folder / "sizes.png"
    if not comp.instances:
        found = sized_cases(results)
        draw_sizes(found, comp.classes, "Dice of a case", f"size in truth, {unit}", picture)
        return section(
            "sizes",
            "Error against size",
            html.figure(
                picture,
                f"Dice of each case against the size of the class in its truth ({unit}, log axis); the line joins "
                "the medians of groups of equally many cases, the band their quartiles. Cases whose truth is empty have no "
                "size and are left out.",
                "Dice against size per class",
            ),
            _thirds(found, comp.classes, unit, "case"),
        )
    cases = evenly(list(oof.fold_of))
    say(f"objects of {len(cases)} cases")
    found = sized_objects(oof, cases)
    draw_sizes(found, comp.classes, "best IoU of an object", f"size in truth, {unit}", picture)
    return section(
        "sizes",
        "Error against size",
        html.figure(
            picture,
            f"Each true object's largest IoU with a predicted one against its size ({unit}, log axis), "
            f"of {counted(cases, oof)}; the line joins the medians of groups of equally many objects, the band "
            "their quartiles. Predicted objects are connected components of the masks, before post-processing.",
            "IoU against size per class",
        ),
        html.table(
            [
                "class",
                "true objects",
                "predicted",
                "found, IoU > 0.5",
                "found, IoU > 0.75",
                "right, IoU > 0.5",
                "median IoU",
            ],
            [_objects_row(name, one) for name, one in zip(comp.classes, found, strict=True)],
        ),
        html.paragraph(
            "Found: share of the true objects that a predicted one covers so well. Right: share of the "
            "predicted objects that cover a true one so well.",
            note=True,
        ),
        _thirds(found, comp.classes, unit, "object"),
    )


def sized_cases(results: Results) -> list[Sized]:
    """Of each class, size and Dice of the cases whose truth has it."""
    comp = results.run.exp.competition
    scale = {
        row.id: float(np.prod(json.loads(str(row.spacing)))) if comp.dimensions == 3 else 1.0
        for row in results.run.cases.itertuples(index=False)
    }
    found = []
    for name in comp.classes:
        rows = results.rows(cls=name)
        rows = rows[rows["tp"] + rows["fn"] > 0]
        sizes = (rows["tp"] + rows["fn"]).to_numpy(np.float64) * rows["id"].map(scale).to_numpy(np.float64)
        found.append(Sized(sizes, rows["dice"].to_numpy(np.float64), np.empty(0)))
    return found


def sized_objects(oof: OutOfFold, cases: list[str]) -> list[Sized]:
    """Of each class, size and best IoU of the true objects, with one case in memory at a time."""
    comp = oof.run.exp.competition
    rows = {row.id: row for row in oof.cases.itertuples(index=False)}
    found: list[tuple[list[Floats], list[Floats], list[Floats]]] = [([], [], []) for _ in comp.classes]
    for case in cases:
        truth, instances = load_mask(comp, rows[case]), load_instances(comp, rows[case])
        masks, there, ignored = to_masks(oof.read(case), comp), class_masks(truth, comp), ignored_voxels(truth, comp)
        voxel = float(np.prod(json.loads(str(rows[case].spacing)))) if comp.dimensions == 3 else 1.0
        for index, (sizes, values, predicted) in enumerate(found):
            mask = masks[index] if ignored is None else masks[index] & ~ignored
            one = match(components(mask), np.where(there[index], instances, 0))
            sizes.append(one.sizes.astype(np.float64) * voxel)
            values.append(one.ious)
            predicted.append(one.predicted)
    return [Sized(*(np.concatenate(parts) if parts else np.empty(0) for parts in lists)) for lists in found]


def medians(sizes: Floats, values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Groups of equally many by size: geometric mean of the sizes; quartile, median, quartile of the values."""
    groups = min(GROUPS, len(sizes) // FEWEST)
    if groups < 2:
        return np.empty(0), np.empty(0), np.empty(0), np.empty(0)
    parts = np.array_split(np.argsort(sizes, kind="stable"), groups)
    quartiles = np.array([np.quantile(values[part], (0.25, 0.5, 0.75)) for part in parts])
    return np.array([np.exp(np.log(sizes[part]).mean()) for part in parts]), *quartiles.T


def draw_sizes(found: list[Sized], classes: list[str], up: str, across: str, path: Path) -> None:
    """Draws one panel for each class, at most twelve."""
    shown = drawn_classes([len(one.sizes) for one in found])
    figure, axes = panels(len(shown), height=3.0, columns=3)
    for one, index in zip(axes, shown, strict=True):
        dress(one, classes[index], across=across, up=up)
        if not len(found[index].sizes):
            nothing(one, "absent")
            continue
        _scatter(one, found[index], ink(index))
    save_figure(figure, path)


def _scatter(axes: Axes, found: Sized, colour: tuple[float, float, float]) -> None:
    size, alpha = (7, 0.25) if len(found.sizes) > 400 else (16, 0.5)
    axes.scatter(found.sizes, found.values, s=size, color=colour, alpha=alpha, linewidths=0)
    middle, low, median, high = medians(found.sizes, found.values)
    axes.fill_between(middle, low, high, color=INK, alpha=0.10, linewidth=0)
    axes.plot(middle, median, "o-", color=INK, linewidth=1.6, markersize=4)
    smallest, largest = float(found.sizes.min()), float(found.sizes.max())
    log_axis(axes.xaxis, smallest / 1.05, largest * 1.05)
    axes.set_xlim(smallest / 1.15, largest * 1.15)
    lowest = float(found.values.min())
    axes.set_ylim(max(-0.03, lowest - 0.06), 1.02)


def _objects_row(name: str, one: Sized) -> list[str]:
    if not len(one.sizes):
        return [name, html.ABSENT, f"{len(one.predicted):,}", html.ABSENT, html.ABSENT, html.ABSENT, html.ABSENT]
    right = f"{(one.predicted > 0.5).mean():.3f}" if len(one.predicted) else html.ABSENT
    return [
        name,
        f"{len(one.sizes):,}",
        f"{len(one.predicted):,}",
        f"{(one.values > 0.5).mean():.3f}",
        f"{(one.values > 0.75).mean():.3f}",
        right,
        f"{np.median(one.values):.3f}",
    ]


def _thirds(found: list[Sized], classes: list[str], unit: str, what: str) -> Html:
    """The smallest, the middle and the largest third of the cases or objects, in numbers."""
    rows = []
    for name, one in zip(classes, found, strict=True):
        if len(one.sizes) < 3 * FEWEST:
            rows.append([name, html.ABSENT if not len(one.sizes) else f"only {len(one.sizes)} {what}s", "", ""])
            continue
        cells = [name]
        for part in np.array_split(np.argsort(one.sizes, kind="stable"), 3):
            values = one.values[part]
            value = f"recall {(values > 0.5).mean():.3f}" if what == "object" else f"Dice {values.mean():.4f}"
            cells.append(
                html.joined(
                    [
                        value,
                        html.element("small", f"{one.sizes[part].min():,.0f} to {one.sizes[part].max():,.0f} {unit}"),
                    ]
                )
            )
        rows.append(cells)
    few = "" if len(classes) <= MOST_PANELS else f" (drawn: the {MOST_PANELS} with the most {what}s)"
    recall = ", with the share found at IoU > 0.5" if what == "object" else ", with their mean Dice"
    return html.joined(
        [
            html.table(["class", "smallest third", "middle third", "largest third"], rows),
            html.paragraph(f"Thirds of equally many {what}s{recall}{few}.", note=True),
        ]
    )
