"""Make the tables of an exploration.

These are summaries for the terminal and the HTML report, and CSVs with one row per case or per finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.explore import Exploration
from competition.explore.types import CaseStats
from competition.text import format_count, pixel_or_voxel

if TYPE_CHECKING:
    import pandas


Row = list[str]
NO_VALUE = "–"
MAX_VALUES = 4  # maximum number of distinct values per cell
MAX_CHANNELS = 12


def overview_rows(exploration: Exploration) -> list[Row]:
    """Return the table of the cases: one row [property, training cases, test cases] per property."""
    splits = [exploration.cases_of("train"), exploration.cases_of("test")]
    rows = [
        ["cases", *(str(len(cases)) for cases in splits)],
        ["readable", *(str(sum(case.readable for case in cases)) for cases in splits)],
        ["with truth", str(sum(case.truth is not None for case in splits[0])), NO_VALUE],
    ]
    if any(case.skipped for case in exploration.cases):
        rows.append(["skipped by cv", *(str(sum(case.skipped for case in cases)) for cases in splits)])
    read = [[case for case in cases if case.readable and not case.skipped] for cases in splits]
    axes = exploration.comp.dimensions
    for axis in range(axes):
        rows.append(
            [
                f"size along axis {axis}",
                *(format_range([case.shape[axis] for case in cases if case.shape]) for cases in read),
            ]
        )
    rows.append(["different sizes", *(str(len({case.shape for case in cases})) for cases in read)])
    rows.append(
        ["longest side divided by shortest", *(format_range([case.aspect or 1 for case in cases]) for cases in read)]
    )
    if axes == 3:
        for axis in range(axes):
            rows.append(
                [
                    f"spacing along axis {axis}, mm",
                    *(format_range([case.spacing[axis] for case in cases if case.spacing]) for cases in read),
                ]
            )
        rows.append(["orientation", *(format_counts(case.orientation or "none" for case in cases) for cases in read)])
    rows.append(["dtype", *(format_counts(case.dtype for case in cases) for cases in read)])
    rows.append(["channels", *(format_counts(case.channels for case in cases) for cases in read)])
    if any(case.is_colour for case in exploration.cases):
        rows.append(
            ["colour images", *(f"{sum(bool(case.is_colour) for case in cases)} of {len(cases)}" for cases in read)]
        )
    rows += _intensity_rows(read)
    if exploration.comp.group is not None:
        rows.append(["groups", *(_group_cell(cases) for cases in splits)])
        both = set.intersection(*({case.group for case in cases if case.group is not None} for cases in splits))
        rows.append(["groups in train and test", str(len(both)), str(len(both))])
    return rows


def _intensity_rows(splits: Sequence[Sequence[CaseStats]]) -> list[Row]:
    """Return one row per channel: the range of the cases' mean intensities, and the full range of intensities."""
    rows = []
    names = list(dict.fromkeys(channel.name for cases in splits for case in cases for channel in case.stats or []))
    for name in names[:MAX_CHANNELS]:
        cells = []
        for cases in splits:
            channels = [channel for case in cases for channel in case.stats or [] if channel.name == name]
            if not channels:
                cells.append(NO_VALUE)
                continue
            low = min(channel.minimum for channel in channels)
            high = max(channel.maximum for channel in channels)
            means = format_range([channel.mean for channel in channels])
            cells.append(f"{means}, from {format_number(low)} to {format_number(high)}")
        rows.append([f"mean intensity of {'a case' if name == 'image' else f'channel {name}'}, and full range", *cells])
    return rows


def truth_rows(exploration: Exploration) -> list[Row]:
    """Return the table of masks and objects: one row [property, training cases] per property."""
    truths = [case.truth for case in exploration.used_cases("train") if case.truth is not None]
    if not truths:
        return []
    counts = [len(truth.object_sizes) for truth in truths]
    sizes = np.concatenate([truth.object_sizes for truth in truths])
    shares = [truth.foreground / max(1, truth.total - truth.ignored) for truth in truths]
    rows = [
        ["empty masks", f"{sum(truth.foreground == 0 for truth in truths)} of {len(truths)}"],
        ["foreground, share of a case", format_range(shares, percent=True)],
        ["objects per case", format_range(counts)],
    ]
    if sizes.size:
        rows.append([f"{pixel_or_voxel(exploration.comp.dimensions)}s per object", format_range(sizes.tolist())])
    ignored = sum(truth.ignored for truth in truths)
    if ignored:
        rows.append(["ignored", f"{ignored / sum(truth.total for truth in truths):.2%} of all"])
    return rows


def class_rows(exploration: Exploration) -> list[Row]:
    """Return the table of classes: one row per class, and one row per label value that belongs to no class.

    `class_header` returns the names of the columns.
    """
    truths = [case.truth for case in exploration.used_cases("train") if case.truth is not None]
    total = sum(truth.total - truth.ignored for truth in truths)
    foreground = sum(int(truth.voxels.sum()) for truth in truths)
    rows = []
    for index, name in enumerate(exploration.comp.classes):
        voxels = sum(int(truth.voxels[index]) for truth in truths)
        objects = np.concatenate([*(truth.objects[index] for truth in truths), np.empty(0, np.int64)])
        value = NO_VALUE
        if exploration.comp.train.object_numbers:
            value = "object numbers"
        elif isinstance(exploration.comp.train.masks, str):
            value = "+".join(map(str, exploration.comp.class_values[index]))
        present = sum(bool(truth.voxels[index]) for truth in truths)
        rows.append(
            [
                name,
                value,
                f"{present} of {len(truths)}" if present else f"absent (0 of {len(truths)})",
                f"{voxels / total:.3%}" if total else NO_VALUE,
                f"{voxels / foreground:.1%}" if foreground else NO_VALUE,
                f"{len(objects):,}",
                f"{median(objects.tolist()):,.0f}" if len(objects) else NO_VALUE,
            ]
        )
    for label, (cases, voxels) in exploration.undeclared_labels().items():
        rows.append(
            [
                "not declared",
                str(label),
                f"{cases} (not read)",
                NO_VALUE,
                NO_VALUE,
                format_count(voxels, pixel_or_voxel(exploration.comp.dimensions)),
                NO_VALUE,
            ]
        )
    return rows


def class_header(exploration: Exploration) -> list[str]:
    """Return the column names of `class_rows`."""
    return [
        "class",
        "label value",
        "cases with it",
        f"of all {pixel_or_voxel(exploration.comp.dimensions)}s",
        "of the foreground",
        "objects",
        "median size",
    ]


def contrast_rows(exploration: Exploration) -> list[Row]:
    """Return one row per channel, highest contrast first: name, median |Cohen's d|, cases with brighter foreground."""
    return [
        [item.name, f"{item.effect_size:.2f}", f"{item.brighter_share:.0%} of {item.n_cases}"]
        for item in exploration.contrasts[:MAX_CHANNELS]
    ]


CONTRAST_HEADER = ["channel", "contrast |d|", "cases with brighter foreground"]


def format_range(values: Sequence[float], percent: bool = False) -> str:
    """Format minimum, median and maximum of the values, or a single number if all values are equal."""
    if not len(values):
        return NO_VALUE
    stats = [min(values), median(values), max(values)]
    write = (lambda value: f"{value:.2%}") if percent else format_number
    return write(stats[0]) if stats[0] == stats[2] else " / ".join(map(write, stats))


def format_number(value: float) -> str:
    """Format a number: 1388 as `1,388`, and 0.68754 with four significant digits as `0.6875`."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def format_counts(values: Iterable[object]) -> str:
    """Format distinct values, e.g. `uint8`, or `uint8 in 60, uint16 in 4` if they differ."""
    counts = Counter(map(str, values)).most_common()
    if len(counts) < 2:
        return counts[0][0] if counts else NO_VALUE
    more = f" and {len(counts) - MAX_VALUES} more" if len(counts) > MAX_VALUES else ""
    return ", ".join(f"{value} in {count}" for value, count in counts[:MAX_VALUES]) + more


def _group_cell(cases: Sequence[CaseStats]) -> str:
    counts = Counter(case.group for case in cases if case.group is not None)
    if not counts:
        return NO_VALUE
    without = sum(case.group is None for case in cases)
    sizes = list(counts.values())
    group_size = format_count(sizes[0], "case") if len(set(sizes)) == 1 else f"{format_range(sizes)} cases"
    more = f"; {format_count(without, 'case')} without a group" if without else ""
    return f"{len(counts)}, each of {group_size}{more}"


# CSV tables

CHANNEL_COLUMNS = {  # attribute of `ChannelStats` by the suffix of the column's name
    "least": "minimum",
    "low": "low",
    "median": "median",
    "high": "high",
    "most": "maximum",
    "mean": "mean",
    "deviation": "std",
    "contrast": "contrast",
}


def case_rows(exploration: Exploration) -> pandas.DataFrame:
    """Return a table with one row per case; unknown values are empty. The columns describe:

    - The case: id, split, images, faults (number of faults), size and spacing along each axis, orientation, dtype,
      channels, group, aspect (ratio of the longest to the shortest side).
    - Each channel, e.g. `red_low`: least (minimum), low (0.5 % quantile), median, high (99.5 % quantile), most
      (maximum), mean, deviation, contrast (Cohen's d).
    - The truth: empty (whether the mask is empty), foreground and ignored (numbers of voxels), objects (their number),
      object_median (median number of voxels of an object), strange_labels (label values without a class).
    - Each class, e.g. `liver_voxels`: voxels and objects (their numbers).
    """
    import pandas

    faults: dict[tuple[str, str], int] = {}
    for finding in exploration.faults:
        for case_id in finding.case.split(", "):
            faults[finding.split, case_id] = faults.get((finding.split, case_id), 0) + 1
    rows = [_case_row(exploration, case, faults.get((case.split, case.id), 0)) for case in exploration.cases]
    return pandas.DataFrame(rows).convert_dtypes()  # with this dtype, columns with empty cells keep their integers


def finding_rows(exploration: Exploration) -> pandas.DataFrame:
    """Return a table with one row per finding: weight (fault or remark), kind, split, case, message, hint."""
    import pandas

    columns = ["weight", "kind", "split", "case", "message", "hint"]
    rows = [(item.severity, item.kind, item.split, item.case, item.message, item.hint) for item in exploration.findings]
    return pandas.DataFrame(rows, columns=columns)


def _case_row(exploration: Exploration, case: CaseStats, faults: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": case.id, "split": case.split, "images": ";".join(case.images), "faults": faults}
    for axis in range(exploration.comp.dimensions):
        row[f"size_{axis}"] = None if case.shape is None else case.shape[axis]
    for axis in range(exploration.comp.dimensions):
        row[f"spacing_{axis}"] = None if case.spacing is None else case.spacing[axis]
    row |= {
        "orientation": case.orientation,
        "dtype": case.dtype,
        "channels": case.channels,
        "group": case.group,
        "aspect": case.aspect,
    }
    for channel in (case.stats or [])[:MAX_CHANNELS]:
        for column, attribute in CHANNEL_COLUMNS.items():
            row[f"{channel.name}_{column}"] = getattr(channel, attribute)
    if case.truth is not None:
        sizes = case.truth.object_sizes
        row |= {
            "empty": case.truth.foreground == 0,
            "foreground": case.truth.foreground,
            "ignored": case.truth.ignored,
            "objects": len(sizes),
            "object_median": float(np.median(sizes)) if len(sizes) else None,
        }
        for index, name in enumerate(exploration.comp.classes):
            row[f"{name}_voxels"] = int(case.truth.voxels[index])
            row[f"{name}_objects"] = len(case.truth.objects[index])
    if case.split == "train":
        row["strange_labels"] = ";".join(map(str, case.undeclared_labels))
    return row
