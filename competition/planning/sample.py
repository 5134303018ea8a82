"""Read the sample submission, and infer the meaning of its columns, the test images and the classes from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from competition.config.profiles import get_profile
from competition.data.patterns import match_cases, slice_aliases
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.planning.layout import Layout
from competition.planning.layouts.matching.held_out import NO_TEST_FOLDER, files_matching
from competition.planning.layouts.run_lengths import blank_remark
from competition.tables import read_csv
from competition.text import format_count, has_or_have, join_names, name_problem, name_some

MASK_NAMES = ("rle", "mask", "encodedpixels", "predicted", "segmentation", "annotation", "prediction", "rle_mask")
MAX_ORDERED = 3  # up to this number of classes, each order of the classes is a candidate
MIN_SHARE = 0.6  # share of the rows whose ids must have a test image


@dataclass(frozen=True)
class Sample:
    """Describe a sample submission.

    Attributes:
        path: path below the folder.
        id, mask, cls: names of the columns; cls is None without a column of classes.
        classes: values of the class column, or the suffixes of the ids, in the order of their first rows.
        rows: number of rows.
        unknown: line and id of each row whose id belongs to no test image.
    """

    path: str
    id: str
    mask: str
    cls: str | None
    classes: tuple[str, ...]
    rows: int
    unknown: tuple[tuple[int, str], ...]

    @property
    def known(self) -> int:
        """Number of rows whose id belongs to a test image."""
        return self.rows - len(self.unknown)


def add_submission(layout: Layout) -> list[Layout]:
    """Add the section `submission` to a layout; if the layout has no class names, take them from the sample submission.

    If the sample submission names a few classes, but no file shows which label value each class has, return a layout
    for each order of the classes.
    """
    sample = find_sample(layout)
    if sample is None:
        return [_format_only(layout)]
    if layout.test is None or sample.known == 0:
        remarks = tuple(remark for remark in layout.remarks if not remark.startswith(NO_TEST_FOLDER))
        named = _find_test(replace(layout, test=None, test_listed=None, remarks=remarks), sample)
        layout = named if named.test is not None else layout
        sample = find_sample(layout) or sample
    keys: dict[str, Any] = {"submission.sample": sample.path}
    known = f", {sample.known} of them with a test image" if layout.test is not None else ""
    reasons = {"submission.sample": f"{format_count(sample.rows, 'row')}{known}"}
    if layout.test is not None and sample.unknown:
        missing = f"{len(sample.unknown)} of {format_count(sample.rows, 'row')}"
        places = name_some([f"line {line}, id {text}" for line, text in sample.unknown])
        layout = layout.with_remarks(
            f"{missing} of {sample.path} {has_or_have(len(sample.unknown))} no test image in the folder: {places}"
        )
    layout = layout.with_remarks(*_duplicate_remarks(layout, sample))
    if "submission.profile" in layout.keys:
        return [layout.with_keys(keys, reasons)]
    keys["submission.columns"] = {"id": sample.id, "class": sample.cls, "mask": sample.mask}
    reasons["submission.columns"] = f"the columns of {sample.path}, recognised by their content"
    layout = layout.with_keys(keys, reasons)
    if "rle" in layout.keys:
        layout = layout.with_keys({"submission.rle": layout.keys["rle"]}, {"submission.rle": layout.reasons["rle"]})
    else:
        layout = layout.with_keys(
            {"submission.rle": {"order": "column", "base": 1, "empty": ""}},
            {"submission.rle": "no file shows how the host counts pixels; most hosts count column by column, from 1"},
        ).with_remarks(
            "no file shows in which order the run lengths of a submission count the pixels, so check submission.rle"
        )
    return _name_classes(layout, sample)


def _duplicate_remarks(layout: Layout, sample: Sample) -> list[str]:
    """Return a list with a remark on repeated rows of the sample submission; an empty list if no row is repeated.

    A row is repeated if another row has the same id and, if there is a column of classes, the same class. Without the
    remark, the user would learn only after the training that `maskfold submit` refuses a file with repeated rows.
    """
    profile = layout.keys.get("submission.profile")
    cls = sample.cls if profile is None else get_profile(profile).class_column
    table = read_csv(layout.folder.root / sample.path, {})
    columns = [column for column in (sample.id, cls) if column in table.columns]
    lines: dict[tuple[str, ...], list[int]] = {}
    for line, *cells in table[columns].itertuples(name=None):
        lines.setdefault(tuple(cells), []).append(line)
    repeated = [
        f"{' with the class '.join(key)} (lines {join_names(list(map(str, own)))})"
        for key, own in lines.items()
        if len(own) > 1
    ]
    if not repeated:
        return []
    what = "each id" if len(columns) == 1 else "each pair of id and class"
    return [
        f"{sample.path} has several rows for {name_some(repeated)}. `maskfold submit` refuses this file, because "
        f"{what} must have only one row. Remove the repeated rows, or download the file again"
    ]


def _find_test(layout: Layout, sample: Sample) -> Layout:
    """Set the test images to the images that the sample submission names, if these images are in one folder.

    If the pattern of the test images also matches training images or masks, `test.cases` lists the test images. Images
    without a row in a table of run lengths are read as training cases with an empty mask; if the test images are among
    them, they are removed from the training cases.
    """
    images = layout.images
    if not isinstance(images, str) or "{z}" in images or images.count("{id}") != 1:
        return layout
    table = read_csv(layout.folder.root / sample.path, {})
    wanted = {strip_extension(text) for text in table[sample.id]} - set(layout.ids).difference(layout.unlabelled)
    found: dict[str, int] = {}
    for path in layout.folder.images:
        folder, _, name = path.rpartition("/")
        stem = strip_extension(name)
        if stem in wanted:
            pattern = f"{folder}/{{id}}{name[len(stem) :]}".lstrip("/")
            found[pattern] = found.get(pattern, 0) + 1
    good = [pattern for pattern, count in found.items() if wanted and count >= MIN_SHARE * len(wanted)]
    if len(good) != 1:
        return layout
    reason = f"{format_count(found[good[0]], 'image')} that {sample.path} names"
    layout = replace(layout, test=good[0], reasons=layout.reasons | {"test.images": reason})
    files = files_matching(layout.folder, good[0])
    masks = {path for by_id in layout.mask_files.values() for paths in by_id.values() for path in paths}
    if not {*files_matching(layout.folder, images).values(), *masks}.isdisjoint(files.values()):
        layout = replace(layout, test_listed=tuple(sorted(wanted & files.keys())))
    blank = layout.unlabelled if "train.rle" in layout.keys else ()
    if good[0] == images and blank:
        path, rest = layout.keys["train.rle"], [case_id for case_id in blank if case_id not in wanted]
        remarks = tuple(remark for remark in layout.remarks if remark != blank_remark(blank, path))
        kept = [case_id for case_id in layout.ids if case_id not in wanted]
        layout = replace(layout, remarks=remarks).with_cases(kept, f"the images that {sample.path} does not name")
        layout = layout.with_remarks(blank_remark(rest, path)) if rest else layout
    return layout


def _format_only(layout: Layout) -> Layout:
    """Set `train.rle_format` in a layout that has run lengths but no sample submission."""
    if "rle" not in layout.keys:
        return layout
    return layout.with_keys({"train.rle_format": layout.keys["rle"]}, {"train.rle_format": layout.reasons["rle"]})


def find_sample(layout: Layout) -> Sample | None:
    """Return the sample submission; None if the folder has none.

    If there are several, return the one with the largest share of rows that have a test image.
    """
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
    id_column = max(columns, key=lambda column: (_known(list(map(str, table[column])), names), -columns.index(column)))
    rest = [column for column in columns if column != id_column]
    mask = next((column for column in rest if column.casefold().strip() in MASK_NAMES), rest[-1])
    classes = [str(name) for name in layout.keys.get("classes", [])]
    values = [str(value) for value in layout.keys.get("label_values", range(1, len(classes) + 1))]
    is_repeated = bool(table[id_column].duplicated().any())  # otherwise no other column distinguishes rows of an id
    cls, found = None, []
    for column in rest:
        distinct = list(dict.fromkeys(table[column]))
        if column != mask and len(classes) > 1 and column == layout.keys.get("columns", {}).get("class"):
            cls, found = column, distinct  # as in the training table, although the sample may list only some classes
            break
        if (
            column != mask
            and len(distinct) == len(classes)
            and (set(distinct) <= {*classes, *values} or (len(classes) > 1 and is_repeated))
        ):
            cls, found = column, distinct
    if mask.casefold().strip() not in MASK_NAMES and any(re.fullmatch(r"-?\d*\.\d+", text) for text in table[mask]):
        return None  # numbers such as probabilities are no masks
    ids = table[id_column].tolist()
    is_known = [_is_known(text, names) for text in ids]
    if cls is None and names and sum(is_known) < MIN_SHARE * len(ids):
        parts = [text.rpartition("_") for text in ids]
        with_class = [_is_known(image, names) for image, _, _ in parts]
        if sum(with_class) >= MIN_SHARE * len(ids):
            is_known, found = with_class, list(dict.fromkeys(end for _, _, end in parts))
    rows = zip(table.index.tolist(), ids, is_known, strict=True)
    unknown = tuple((line, text) for line, text, has_image in rows if not has_image)
    return Sample(path, id_column, mask, cls, tuple(found), len(ids), unknown)


def _known(ids: Iterable[str], names: set[str]) -> int:
    return sum(_is_known(text, names) for text in ids)


def _is_known(text: str, names: set[str]) -> bool:
    return text in names or strip_extension(text) in names


def _name_classes(layout: Layout, sample: Sample) -> list[Layout]:
    """Return the layout with the class names of the sample submission.

    If it is unknown which name belongs to which label value, return a layout for each order of the names.
    """
    classes = [str(name) for name in layout.keys.get("classes", [])]
    names = list(sample.classes)
    folded = {name.casefold(): name for name in names}
    if len(folded) == len(names) and set(folded) == {name.casefold() for name in classes}:
        spelling = [folded[name.casefold()] for name in classes]
        reason = layout.reasons.get("classes", "")
        return [
            layout
            if spelling == classes
            else layout.with_keys({"classes": spelling}, {"classes": f"{reason}; written as in {sample.path}"})
        ]
    is_unnamed = all(name.startswith("class_") for name in classes) or classes == ["foreground"]
    usable = not any(name_problem(name) or name.isdigit() for name in names) and len(folded) == len(names)
    if not is_unnamed or len(names) != len(classes) or not usable:
        return [layout]
    kept = tuple(remark for remark in layout.remarks if "rename" not in remark)  # the sample submission has the names
    layout = replace(layout, remarks=kept)
    if len(names) > MAX_ORDERED:
        return [
            layout.with_remarks(f"{sample.path} has the classes {', '.join(names)}, so write these names in `classes`")
        ]
    values = layout.keys.get("label_values", range(1, len(names) + 1))
    named = []
    for order in permutations(names):
        shown = ", ".join(f"{value} is {name}" for value, name in zip(values, order, strict=True))
        reason = f"names of {sample.path}" + (f"; {shown}: chosen by you" if len(names) > 1 else "")
        item = layout.with_keys({"classes": list(order)}, {"classes": reason})
        named.append(replace(item, name=f"{item.name}; {shown}") if len(names) > 1 else item)
    return named
