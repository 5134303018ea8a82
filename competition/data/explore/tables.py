"""What was measured as CSV files: a row per case, and a row per finding."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.data.explore import Exploration
from competition.data.explore.measured import Measured

if TYPE_CHECKING:
    import pandas

MOST_CHANNELS = 12  # with columns of their own


def case_rows(found: Exploration) -> pandas.DataFrame:
    """One row per case; what is not known is empty.

    Columns: id, split, images, faults (their number), size and spacing along each axis, orientation, dtype, channels, group,
    aspect; of each channel least, low (0.5 %), median, high (99.5 %), most, mean, deviation, contrast (Cohen's d); empty,
    foreground, ignored (voxels), objects, object_median (voxels); of each class voxels and objects.
    """
    import pandas

    faults: dict[tuple[str, str], int] = {}
    for one in found.faults:
        for case_id in one.case.split(", "):
            faults[one.split, case_id] = faults.get((one.split, case_id), 0) + 1
    table = pandas.DataFrame([_row(found, case, faults.get((case.split, case.id), 0)) for case in found.cases])
    return table.convert_dtypes()  # whole numbers stay whole beside empty cells


def finding_rows(found: Exploration) -> pandas.DataFrame:
    """One row per finding: weight, kind, split, case, wrong, cure."""
    import pandas

    columns = ["weight", "kind", "split", "case", "wrong", "cure"]
    return pandas.DataFrame([asdict(one) for one in found.findings], columns=columns)


def _row(found: Exploration, case: Measured, faults: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": case.id, "split": case.split, "images": ";".join(case.images), "faults": faults}
    for axis in range(found.comp.dimensions):
        row[f"size_{axis}"] = None if case.shape is None else case.shape[axis]
    for axis in range(found.comp.dimensions):
        row[f"spacing_{axis}"] = None if case.spacing is None else case.spacing[axis]
    row |= {"orientation": case.orientation, "dtype": case.dtype, "channels": case.channels, "group": case.group,
            "aspect": case.aspect}
    for one in (case.values or [])[:MOST_CHANNELS]:
        for key in ("least", "low", "median", "high", "most", "mean", "deviation", "contrast"):
            row[f"{one.name}_{key}"] = getattr(one, key)
    if case.truth is not None:
        sizes = case.truth.sizes
        row |= {"empty": case.truth.foreground == 0, "foreground": case.truth.foreground, "ignored": case.truth.ignored,
                "objects": len(sizes), "object_median": float(np.median(sizes)) if len(sizes) else None}
        for index, name in enumerate(found.comp.classes):
            row[f"{name}_voxels"] = int(case.truth.voxels[index])
            row[f"{name}_objects"] = len(case.truth.objects[index])
    if case.split == "train":
        row["strange_labels"] = ";".join(map(str, case.strange))
    return row
