"""What was measured, in words and numbers: the rows of the tables on the terminal and on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from competition.data.explore import Exploration
from competition.data.explore.measured import Measured
from competition.data.explore.words import dot, many

Row = list[str]
NONE = "–"
MOST_KINDS = 4  # named in a cell
MOST_ROWS = 12  # of channels


def overview(found: Exploration) -> list[Row]:
    """Rows [what, train, test]."""
    sides = [found.of("train"), found.of("test")]
    rows = [["cases", *(str(len(side)) for side in sides)],
            ["of them readable", *(str(sum(case.readable for case in side)) for side in sides)],
            ["with truth", str(sum(case.truth is not None for case in sides[0])), NONE]]
    if any(case.left_out for case in found.cases):
        rows.append(["left out by cv", *(str(sum(case.left_out for case in side)) for side in sides)])
    read = [[case for case in side if case.readable] for side in sides]
    axes = found.comp.dimensions
    for axis in range(axes):
        rows.append([f"size along axis {axis}", *(three([case.shape[axis] for case in side if case.shape]) for side in read)])
    rows.append(["different sizes", *(str(len({case.shape for case in side})) for side in read)])
    rows.append(["longest side / shortest", *(three([case.aspect or 1 for case in side]) for side in read)])
    if axes == 3:
        for axis in range(axes):
            rows.append([f"spacing along axis {axis}, mm",
                         *(three([case.spacing[axis] for case in side if case.spacing]) for side in read)])
        rows.append(["orientation", *(kinds(case.orientation or "none" for case in side) for side in read)])
    rows.append(["dtype", *(kinds(case.dtype for case in side) for side in read)])
    rows.append(["channels", *(kinds(case.channels for case in side) for side in read)])
    if any(case.colour for case in found.cases):
        rows.append(["colour pictures", *(f"{sum(bool(case.colour) for case in side)} of {len(side)}" for side in read)])
    rows += _intensity_rows(read)
    if found.comp.group is not None:
        rows.append(["groups", *(_groups(side) for side in sides)])
        both = set.intersection(*({case.group for case in side if case.group is not None} for side in sides))
        rows.append(["groups in train and test", str(len(both)), str(len(both))])
    return rows


def _intensity_rows(sides: Sequence[Sequence[Measured]]) -> list[Row]:
    """Of each channel: the means of the cases, and the range of all."""
    rows = []
    names = list(dict.fromkeys(one.name for side in sides for case in side for one in case.values or []))
    for name in names[:MOST_ROWS]:
        cells = []
        for side in sides:
            values = [one for case in side for one in case.values or [] if one.name == name]
            if not values:
                cells.append(NONE)
                continue
            cells.append(f"{three([one.mean for one in values])}, from {number(min(one.least for one in values))} to "
                         f"{number(max(one.most for one in values))}")
        rows.append(["mean of " + ("a case" if name == "image" else name) + ", and the whole range", *cells])
    return rows


def truth_rows(found: Exploration) -> list[Row]:
    """Rows [what, train] about masks and objects."""
    truths = [case.truth for case in found.of("train") if case.truth is not None]
    if not truths:
        return []
    counts = [len(one.sizes) for one in truths]
    sizes = np.concatenate([one.sizes for one in truths])
    shares = [one.foreground / max(1, one.total - one.ignored) for one in truths]
    rows = [["empty masks", f"{sum(one.foreground == 0 for one in truths)} of {len(truths)}"],
            ["foreground, share of a case", three(shares, percent=True)],
            ["objects in a case", three(counts)]]
    if sizes.size:
        rows.append([f"{dot(found.comp.dimensions)}s of an object", three(sizes.tolist())])
    ignored = sum(one.ignored for one in truths)
    if ignored:
        rows.append(["ignored", f"{ignored / sum(one.total for one in truths):.2%} of all"])
    return rows


def class_rows(found: Exploration) -> list[Row]:
    """Rows [class, label value, cases with it, share of all pixels or voxels, share of the foreground, objects, median size]."""
    truths = [case.truth for case in found.of("train") if case.truth is not None]
    total = sum(one.total - one.ignored for one in truths)
    front = sum(int(one.voxels.sum()) for one in truths)
    rows = []
    for index, name in enumerate(found.comp.classes):
        voxels = sum(int(one.voxels[index]) for one in truths)
        objects = np.concatenate([*(one.objects[index] for one in truths), np.empty(0, np.int64)])
        value = "+".join(map(str, found.comp.class_values[index])) if isinstance(found.comp.train.masks, str) else NONE
        there = sum(bool(one.voxels[index]) for one in truths)
        rows.append([name, value, f"{there} of {len(truths)}" if there else f"absent (0 of {len(truths)})",
                     f"{voxels / total:.3%}" if total else NONE, f"{voxels / front:.1%}" if front else NONE,
                     f"{len(objects):,}", f"{median(objects.tolist()):,.0f}" if len(objects) else NONE])
    for number, (cases, voxels) in found.strange().items():
        rows.append(["not declared", str(number), f"{cases} (not read)", NONE, NONE,
                     many(voxels, dot(found.comp.dimensions)), NONE])
    return rows


def class_header(found: Exploration) -> list[str]:
    """The names of the columns of `class_rows`."""
    return ["class", "label value", "cases with it", f"of all {dot(found.comp.dimensions)}s", "of the foreground", "objects",
            "median size"]


def contrast_rows(found: Exploration) -> list[Row]:
    """Rows [channel, median |d|, foreground brighter in], the best first."""
    return [[one.name, f"{one.size:.2f}", f"{one.brighter:.0%} of {one.cases}"] for one in found.contrasts[:MOST_ROWS]]


CONTRAST_HEADER = ["channel", "contrast |d|", "foreground brighter in"]


def three(values: Sequence[float], percent: bool = False) -> str:
    """Least, median and greatest; one number where all are the same."""
    if not len(values):
        return NONE
    ends = [min(values), median(values), max(values)]
    write = (lambda value: f"{value:.2%}") if percent else number
    return write(ends[0]) if ends[0] == ends[2] else " / ".join(map(write, ends))


def number(value: float) -> str:
    """1,388 and 0.6875."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def kinds(values: Iterable[object]) -> str:
    """`uint8`, or `uint8 in 60, uint16 in 4` where they differ."""
    counts = Counter(map(str, values)).most_common()
    if len(counts) < 2:
        return counts[0][0] if counts else NONE
    more = f" and {len(counts) - MOST_KINDS} more kinds" if len(counts) > MOST_KINDS else ""
    return ", ".join(f"{value} in {count}" for value, count in counts[:MOST_KINDS]) + more


def _groups(side: Sequence[Measured]) -> str:
    counts = Counter(case.group for case in side if case.group is not None)
    if not counts:
        return NONE
    none = sum(case.group is None for case in side)
    sizes = list(counts.values())
    of = many(sizes[0], "case") if len(set(sizes)) == 1 else f"{three(sizes)} cases"
    return f"{len(counts)} of {of}" + (f"; {many(none, 'case')} without" if none else "")
