"""The sample submission: its columns, by content, and what it says of the test images and classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from competition.data.patterns import match_cases, slice_aliases
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.io import read_csv
from competition.planning.layout import Layout
from competition.text import format_count, name_problem

MASK_NAMES = ("rle", "mask", "encodedpixels", "predicted", "segmentation", "annotation", "prediction", "rle_mask")
MIN_SHARE = 0.6  # of the rows whose ids must have a test image


@dataclass(frozen=True)
class Sample:
    """A sample submission.

    Attributes:
        path: below the folder.
        id, mask, cls: names of the columns; cls is None without a column of classes.
        classes: values of that column, or the ends of the ids, in the order of their first row.
        rows: number of rows.
        known: number of rows whose id has a test image.
    """

    path: str
    id: str
    mask: str
    cls: str | None
    classes: tuple[str, ...]
    rows: int
    known: int


def add_submission(layout: Layout) -> Layout:
    """Return the layout with the section `submission`, and with the class names that only the sample knows."""
    sample = find_sample(layout)
    if sample is None:
        return _format_only(layout)
    keys: dict[str, Any] = {"submission.sample": sample.path}
    known = f", {sample.known} of them with a test image" if layout.test is not None else ""
    reasons = {"submission.sample": f"{format_count(sample.rows, 'row')}{known}"}
    if layout.test is not None and sample.known < sample.rows:
        missing = f"{sample.rows - sample.known} of {format_count(sample.rows, 'row')}"
        layout = layout.with_remarks(f"{missing} of {sample.path} have no test image here")
    if "submission.profile" in layout.keys:
        return layout.with_keys(keys, reasons)
    layout = _rename_classes(layout, sample)
    keys["submission.columns"] = {"id": sample.id, "class": sample.cls, "mask": sample.mask}
    reasons["submission.columns"] = f"of {sample.path}, by their content"
    layout = layout.with_keys(keys, reasons)
    if "rle" in layout.keys:
        return layout.with_keys({"submission.rle": layout.keys["rle"]}, {"submission.rle": layout.reasons["rle"]})
    return layout.with_keys(
        {"submission.rle": {"order": "column", "base": 1, "empty": ""}},
        {"submission.rle": "no file shows it; most hosts count column by column, from 1"},
    ).with_remarks("no file shows the order of the run lengths of the submission: check submission.rle")


def _format_only(layout: Layout) -> Layout:
    """Return the layout with the format of the training table in `train`, since there is no sample submission."""
    if "rle" not in layout.keys:
        return layout
    return layout.with_keys({"train.rle_format": layout.keys["rle"]}, {"train.rle_format": layout.reasons["rle"]})


def find_sample(layout: Layout) -> Sample | None:
    """Return the sample submission whose ids have test images, or the only one; None without one."""
    names = _test_names(layout)
    found = []
    for path in layout.folder.tables:
        name = path.rpartition("/")[2].casefold()
        if "sample" in name or "submission" in name:
            sample = _read(layout, path, names)
            if sample is not None:
                found.append(sample)
    if not found:
        return None
    return max(found, key=lambda sample: sample.known / max(1, sample.rows))


def _test_names(layout: Layout) -> set[str]:
    patterns = layout.test
    if patterns is None:
        return set()
    pattern = patterns if isinstance(patterns, str) else next(iter(patterns.values()))
    try:
        cases = match_cases(Path(layout.folder.root), pattern, "test.images")
    except MaskfoldError:
        return set()
    names = {strip_extension(case_id) for case_id in cases}
    for case_id, case in cases.items():
        names |= {name for item in case.slices for name in slice_aliases(case_id, item)}
    return names


def _read(layout: Layout, path: str, names: set[str]) -> Sample | None:
    try:
        table = read_csv(layout.folder.root / path, {})
    except MaskfoldError:
        return None
    columns = list(map(str, table.columns))
    if len(columns) < 2:
        return None
    id_column = max(columns, key=lambda column: (_known(table[column], names), -columns.index(column)))
    rest = [column for column in columns if column != id_column]
    mask = next((column for column in rest if column.casefold().strip() in MASK_NAMES), rest[-1])
    classes = [str(name) for name in layout.keys.get("classes", [])]
    values = [str(value) for value in layout.keys.get("label_values", range(1, len(classes) + 1))]
    cls, found = None, []
    for column in rest:
        distinct = list(dict.fromkeys(table[column]))
        if (
            column != mask
            and len(distinct) == len(classes)
            and (len(classes) > 1 or set(distinct) <= {*classes, *values})
        ):
            cls, found = column, distinct
    ids = table[id_column].tolist()
    known = sum(text in names or strip_extension(text) in names for text in ids)
    if cls is None and names and known < MIN_SHARE * len(ids):
        parts = [text.rpartition("_") for text in ids]
        with_class = sum(image in names or strip_extension(image) in names for image, _, _ in parts)
        if with_class >= MIN_SHARE * len(ids):
            known, found = with_class, list(dict.fromkeys(end for _, _, end in parts))
    return Sample(path, id_column, mask, cls, tuple(found), len(ids), known)


def _known(ids: Iterable[str], names: set[str]) -> int:
    return sum(text in names or strip_extension(text) in names for text in ids)


def _rename_classes(layout: Layout, sample: Sample) -> Layout:
    """Return the layout with the sample's names of classes, if its own are only numbers."""
    classes = layout.keys.get("classes", [])
    is_unnamed = all(str(name).startswith("class_") for name in classes) or classes == ["foreground"]
    if not is_unnamed or len(sample.classes) != len(classes) or any(map(name_problem, sample.classes)):
        return layout
    if any(name.isdigit() for name in sample.classes) or len(set(sample.classes)) < len(classes):
        return layout
    names = list(sample.classes)
    kept = tuple(remark for remark in layout.remarks if "rename" not in remark)
    layout = replace(layout, remarks=kept).with_keys(
        {"classes": names}, {"classes": f"names of {sample.path}, in the order of its rows"}
    )
    if len(names) == 1:
        return layout
    return layout.with_remarks(
        f"no file says which label value is which class; {sample.path} lists them as {', '.join(names)}: "
        "check that the label values are in this order"
    )
