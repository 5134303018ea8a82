"""Find classes and label values in the masks and in files with the names of classes."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from competition.errors import MaskfoldError
from competition.planning.classes import outlines
from competition.planning.classes.background import NAMES as BACKGROUND_NAMES
from competition.planning.classes.background import doubt_background, may_be_background, named_background
from competition.planning.classes.numbering import MAX_CLASSES, meaning_of_values, values_by_case
from competition.planning.classes.polygon_names import names_by_polygons
from competition.planning.classes.sparse import Sparse, find_sparse
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.layouts.content import LOSSY_THRESHOLD, LabelValues, read_mask
from competition.planning.words import (
    ANNOTATOR_WORDS,
    FORMAT_WORDS,
    MASK_WORDS,
    OPINION_WORDS,
    PART_WORDS,
    has_word,
    split_of,
    tokens,
    without_role_words,
)
from competition.text import name_problem

MAX_OVERLAPS = 300  # maximum number of cases in which the masks of the classes are compared
NEAR_255 = 250  # if objects have such numbers, 255 may be another one
NO_CLASS = {*BACKGROUND_NAMES, "unlabeled", "unlabelled", "void", "ignore", "none", "other", "unknown"}
ZERO_IS = ", and calls 0 "  # before the name of the value 0, which is read as the background
UNUSED = 254  # a label value that no mask has, beside an ignored 255
MAX_TABLE_BYTES = 2**20  # a larger table has no names of classes
MANY_VALUES = 12  # if more values have no name, the user is told that they may be object numbers
# A line that names a class, with its label value before the name and its colour after it, both optional.
CLASS_LINE = re.compile(
    r"(?:(?P<value>\d{1,3})(?:\s*[:=,;]\s*|\s+))?(?P<name>[^\s:,;\d][^:,;]*?)"
    r"(?:[\s:,;]+(?P<colour>[\[(]?\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3}[\])]?))?(?::[^:]*)*"
)
COLOUR_FIRST = re.compile(r"^(\d{1,3}[\s,]+\d{1,3}[\s,]+\d{1,3})[\s,]+([^\s\d].*)$")  # `255 0 0 liver`
NAME_FILES = (
    "classes",
    "labels",
    "names",
    "label_names",
    "class_names",
    "label_map",
    "labelmap",
    "class_dict",
    "label_class_dict",
    "label_colors",
    "_classes",
    "obj_names",
    "legend",
    "class_legend",
    "categories",
)


def read_labels_of(layout: Layout) -> list[Layout]:
    """Return a copy of a layout with classes, or several copies if its masks can be read in several ways.

    Label values come from the masks, the names of classes from files such as `classes.txt`.

    Raises:
        MaskfoldError (exit status 2): the masks have no foreground, or cannot be read as labels.
    """
    if "classes" in layout.keys or layout.masks is None:
        return [layout]
    sparse = find_sparse(layout)
    remarks = [sparse.remark] if sparse.remark else []
    if outlines.are_outlines(layout):
        remarks.append(outlines.REMARK)
    return [item.with_remarks(*remarks) for item in _read_classes(layout, sparse)]


def _read_classes(layout: Layout, sparse: Sparse) -> list[Layout]:
    """Return a copy of the layout with classes for each way to read its masks; see `read_labels_of`."""
    assert layout.masks is not None
    if isinstance(layout.masks, dict):
        return [_one_file_per_class(layout)]
    found = [values for items in values_by_case(layout).values() for values in items]
    if not any(values.foreground for values in found):
        raise MaskfoldError(
            f"All masks of the pattern `{layout.masks}` are empty or cannot be read.",
            "Open some of these files. If they are not the masks, give the folder that contains the masks.",
            status=2,
        )
    if layout.keys.get("instances") or "*" in layout.masks.rpartition("/")[2]:
        return [_objects(layout, found)]
    if any(values.lossy for values in found):
        return [_lossy(layout)]
    if sparse.unlabelled not in (None, 255):
        return _with_unlabelled(layout, found, sparse.unlabelled)
    return _label_files(layout, found)


def _with_unlabelled(layout: Layout, found: Sequence[LabelValues], unlabelled: int) -> list[Layout]:
    """Return the ways to read a label value that fills whole slices: ignore it, or read it like any other value.

    If the value is 0 and is ignored, the most frequent of the other values becomes the background.

    Args:
        layout: the layout.
        found: label values of each mask.
        unlabelled: the value that fills whole slices.

    Returns:
        A layout that ignores the value, unless no class remains, followed by the layouts that do not ignore it.
    """
    counts: Counter[int] = Counter()
    for item in found:
        counts.update({value: count for value, count in item.counts if value != unlabelled})
    background = 0 if unlabelled else counts.most_common(1)[0][0]
    classes = sorted(value for value in counts if value != background)
    reading = f"{unlabelled} is ignored, because nobody drew masks in the slices that it fills"
    ignored = []
    if classes and min(classes) >= 0:
        layout_of = replace_name(_with_classes(layout, found, classes), reading)
        if background:
            layout_of = replace_name(layout_of, f"{background} is the background").with_keys(
                {"background": background}, {"background": "the most frequent value in the other slices"}
            )
        ignored = [
            layout_of.with_keys({"ignore": unlabelled}, {"ignore": "chosen by you, because it fills whole slices"})
        ]
    plain = [replace_name(item, f"{unlabelled} is not ignored") for item in _label_files(layout, found)]
    return [*ignored, *plain]


def _lossy(layout: Layout) -> Layout:
    name = _single_name(layout)
    return layout.with_keys(
        {"classes": [name], "train.threshold": LOSSY_THRESHOLD, "labels": "exclusive"},
        {
            "classes": f"one class, {_named(name)}",
            "train.threshold": "values scatter around 0 and 255, as in a JPEG, so values from 128 on are the class",
            "labels": "one class and the background",
        },
    )


def _objects(layout: Layout, found: Sequence[LabelValues]) -> Layout:
    name = _single_name(layout)
    values = sorted({value for item in found for value in item.foreground})
    keys: dict[str, Any] = {"classes": [name], "labels": "exclusive"}
    reasons = {"classes": f"one class, {_named(name)}", "labels": "one class and the background"}
    if any(item.lossy for item in found):
        keys["train.threshold"] = LOSSY_THRESHOLD
        reasons["train.threshold"] = (
            "the values are scattered around 0 and 255, as in a JPEG, so values from 128 on are the object"
        )
    elif values != [1]:
        reasons["classes"] += (
            f"; in a file of one object, every value other than 0 is the object (found {_shown(values)})"
        )
    return layout.with_keys(keys, reasons)


def _one_file_per_class(layout: Layout) -> Layout:
    assert isinstance(layout.masks, dict)
    names = list(layout.masks)
    if any(item.lossy for items in values_by_case(layout).values() for item in items):
        layout = layout.with_keys(
            {"train.threshold": LOSSY_THRESHOLD},
            {"train.threshold": "values scatter around 0 and 255, as in a JPEG, so values from 128 on are the class"},
        )
    overlap = _find_overlap(layout)
    return layout.with_keys(
        {"classes": names, "labels": "overlapping" if overlap else "exclusive"},
        {
            "classes": "named like the folders or files of the masks",
            "labels": f"{overlap}" if overlap else "no pixel is in two classes",
        },
    )


def _find_overlap(layout: Layout) -> str:
    """Return a sentence that names a case in which two classes share pixels; an empty text if there is no such case.

    At most `MAX_OVERLAPS` cases are read, at even distances in the list of ids.
    """
    ids = layout.ids
    chosen = (
        [ids[number * len(ids) // MAX_OVERLAPS] for number in range(MAX_OVERLAPS)] if len(ids) > MAX_OVERLAPS else ids
    )
    for case_id in chosen:
        seen = None
        files = [cases[case_id] for cases in layout.mask_files.values() if case_id in cases]
        for paths in itertools.zip_longest(*files):
            seen = None
            for path in paths:
                mask = (
                    None
                    if path is None
                    else read_mask(
                        layout.folder.root / path, 2 if len(paths) and "{z}" in str(layout.masks) else layout.dimensions
                    )
                )
                if mask is None:
                    continue
                if seen is not None and seen.shape == mask.shape and bool((seen & mask).any()):
                    return f"classes share pixels, for example in case {case_id}"
                seen = mask if seen is None or seen.shape != mask.shape else seen | mask
    return ""


def _label_files(layout: Layout, found: Sequence[LabelValues]) -> list[Layout]:
    values = sorted({value for item in found for value in item.foreground})
    if min(values) < 0:
        raise MaskfoldError(
            f"The masks of the pattern `{layout.masks}` have the negative value {min(values)}, expected "
            "label values of at least 0.",
            "If these files are the masks, save them with label values of at least 0. If they are not the masks, give "
            "the folder that contains the masks.",
            status=2,
        )
    has_255 = 255 in values and len(values) > 1 and not _evenly_spaced(values)
    stands_apart = has_255 and not any(value > 255 or NEAR_255 <= value < 255 for value in values)
    is_named = bool(_names_of(layout, [value for value in values if not (stands_apart and value == 255)])[0])
    meaning = "classes" if is_named else meaning_of_values(layout, 255 if stands_apart else None)
    if len(values) > MAX_CLASSES and meaning != "objects":
        raise MaskfoldError(
            f"The masks of the pattern `{layout.masks}` have {len(values)} different values, expected at "
            f"most {MAX_CLASSES} classes. The values may number objects, but the masks do not show this for certain.",
            "If the values number objects, put the masks into a folder whose name contains `instances`, and run init "
            "again. Or write competition.yaml with `instances: true` and `train.object_numbers: true`. If each value "
            f"is a class, merge classes until at most {MAX_CLASSES} are left.",
            status=2,
        )
    numbered = [] if meaning == "classes" else _numbered_objects(layout, stands_apart)
    if meaning == "objects":
        return numbered
    layouts = _with_255(layout, found, values) if has_255 else _with_background(layout, found, values)
    if numbered and len(layouts) == 1:
        layouts = [replace_name(layouts[0], "each value is a class")]
    return layouts + [replace_name(item, "the values number the objects of each case") for item in numbered]


def _with_255(layout: Layout, found: Sequence[LabelValues], values: list[int]) -> list[Layout]:
    """Return one layout for each meaning that the label value 255 may have: ignored, a class, or the background.

    If a file with the names of classes calls 255 the background, only the layout with this background is returned.

    Args:
        layout: the layout.
        found: label values of each mask.
        values: all label values except 0, in ascending order; those other than 255 are small.
    """
    names, source = _find_names(layout.folder, [255])
    zero_is_named = named_background(_find_names(layout.folder, [0])[0]) is not None
    if named_background(names) is not None and not zero_is_named:
        return [_with_other_background(layout, found, values, 255, source)]
    has_zero = any(0 in dict(item.counts) for item in found)
    remark = "no mask has the value 0, so each value other than 255 is read as a class"
    if has_zero:
        remark = (
            "0 is read as the background. If 0 is a class, as in the trainId masks of Cityscapes, add its name to "
            "`classes` and 0 to `label_values`, and set background to a value that no mask has, such as "
            f"{UNUSED}"
        )
    without = [value for value in values if value != 255]
    layouts = [
        replace_name(_with_classes(layout, found, without), "255 is ignored")
        .with_keys(
            {"ignore": 255},
            {"ignore": "the other values are small, so 255 is read as ignored pixels, as in Pascal VOC"},
        )
        .with_remarks(remark),
        replace_name(_with_classes(layout, found, values), "255 is a class"),
    ]
    if may_be_background(found, 255) and not zero_is_named:
        other = _with_other_background(layout, found, values, 255, "chosen by you")
        layouts.append(replace_name(other, "255 is the background"))
    return layouts


def _with_background(layout: Layout, found: Sequence[LabelValues], values: list[int]) -> list[Layout]:
    """Return the layout with its classes, or two layouts if two label values may be the background.

    If a file names the label values, these names decide, and only one layout is returned.
    """
    names, source = _names_of(layout, values)
    source = source.partition(ZERO_IS)[0]
    place = named_background(names)
    has_zero = any(0 in dict(item.counts) for item in found)
    if place is not None and (len(values) > 1 or has_zero):
        return [_with_other_background(layout, found, values, values[place], f"as {source.removeprefix('as ')}")]
    doubt = doubt_background(found)
    plain = _with_classes(layout, found, values)
    if doubt is None or (names and not has_zero):
        return [plain]
    plain = plain.with_remarks(doubt.remark)
    if names or not doubt.asks:
        return [plain]
    return [
        replace_name(plain, "0 is the background" if has_zero else "each value is a class"),
        replace_name(
            _with_other_background(layout, found, values, doubt.value, "chosen by you; most pixels have it"),
            f"{doubt.value} is the background",
        ),
    ]


def _with_other_background(
    layout: Layout, found: Sequence[LabelValues], values: list[int], background: int, reason: str
) -> Layout:
    present = {value for item in found for value, _ in item.counts}
    others = [value for value in (0, *values) if value in present and value != background]
    return _with_classes(layout, found, others).with_keys({"background": background}, {"background": reason})


def replace_name(layout: Layout, addition: str) -> Layout:
    """Return the layout with an addition to its name, to distinguish several ways to read the same masks."""
    return replace(layout, name=f"{layout.name}; {addition}")


def _evenly_spaced(values: Sequence[int]) -> bool:
    """Return whether the values are evenly spaced up to 255, such as 128 and 255.

    Some programs write classes as evenly spaced grey values, because people can see the masks then.
    """
    step = 255 / len(values)
    return all(abs(value - step * (number + 1)) <= 2 for number, value in enumerate(values))


def _numbered_objects(layout: Layout, has_255: bool) -> list[Layout]:
    """Return the layout in which each label value is the number of an object.

    If `has_255` is true, return two such layouts: in the first, 255 is ignored; in the second, 255 is an object.
    """
    name = _single_name(layout)
    numbered = layout.with_keys(
        {"classes": [name], "labels": "exclusive", "instances": True, "train.object_numbers": True},
        {
            "classes": f"one class, {_named(name)}",
            "labels": "one class and the background",
            "instances": "each case has several objects",
            "train.object_numbers": "the values number the objects of each case, so each value above 0 is an object",
        },
    )
    if not has_255:
        return [numbered]
    ignored = numbered.with_keys({"ignore": 255}, {"ignore": "255 is far above the other values; chosen by you"})
    return [replace_name(ignored, "255 is ignored"), replace_name(numbered, "255 is an object")]


def _with_classes(layout: Layout, found: Sequence[LabelValues], values: list[int]) -> Layout:
    names, source = _names_of(layout, values)
    if not names:
        single = _single_name(layout) if len(values) == 1 else ""
        names = [single] if single else [f"class_{value}" for value in values]
        source = f"{_named(single)}" if single else "no file contains the names of the classes, so rename them"
    keys: dict[str, Any] = {"classes": names, "labels": "exclusive"}
    reasons = {
        "classes": source,
        "labels": "each pixel has one value" if len(values) > 1 else "one class and the background",
    }
    present = Counter(value for item in found for value, _ in item.counts)
    shown = ", ".join(f"{value} in {present[value]}" for value in values[:6]) + (", …" if len(values) > 6 else "")
    if values != list(range(1, len(values) + 1)):
        keys["label_values"] = values
    reasons["label_values"] = f"values of the masks, each with the number of files that have it: {shown}"
    if "label_values" not in keys:
        reasons["classes"] += f"; label values {_shown(values)}"
    layout = layout.with_keys(keys, reasons)
    if "rename" in source and len(values) > MANY_VALUES:
        layout = layout.with_remarks(
            f"the masks have {len(values)} label values, and each is read as a class. If the values number "
            "objects, set `instances: true` and `train.object_numbers: true`, keep one class in `classes`, and remove "
            "`label_values`"
        )
    if ZERO_IS in source:
        path, _, zero = source.removeprefix("as ").partition(ZERO_IS)
        layout = layout.with_remarks(
            f"0 is read as the background, but {path.removesuffix(' names them')} calls it {zero}. If {zero} is a "
            "class, add it to `classes` and 0 to `label_values`, and set background to a value that no mask has, such "
            f"as {UNUSED}"
        )
    if "rename" in source:
        layout = layout.with_remarks(
            "no file contains the names of the classes, so rename them in `classes`"
            + (
                ". If the host ignores one of the values, remove its class, and set ignore to this value"
                * (len(values) > 1)
            )
        )
    return layout


def _shown(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")


# Names


def _single_name(layout: Layout) -> str:
    """Return a name for the only class, from the suffix of the mask files' names or from their folder.

    Return `foreground` if neither is a suitable name.
    """
    if not isinstance(layout.masks, str):
        return "foreground"
    folder, _, name = layout.masks.rpartition("/")
    start, _, end = name.rpartition(".")[0].removesuffix(".nii").rpartition("{id}")
    if has_word(start, MASK_WORDS):  # otherwise it is the beginning of all ids
        end = f"{start}_{end}"
    parts = [part for part in reversed(folder.split("/")) if not FORMAT_WORDS.intersection(tokens(part))]
    for text in (end.replace("{id}", "").replace("{z}", "").replace("*", ""), *parts):
        own = without_role_words(text.replace("{id}", "").strip("_-. "))
        if (
            own
            and not any(word.isdigit() or word in OPINION_WORDS | ANNOTATOR_WORDS for word in tokens(own))
            and name_problem(own) is None
            and len(own) > 2
            and "*" not in own
            and not (has_word(own, PART_WORDS) and split_of(text))
        ):
            return own
    return "foreground"


def _named(name: str) -> str:
    return (
        "no file contains the name of the class, so rename it"
        if name == "foreground"
        else "named like the folder or files of the masks"
    )


def _names_of(layout: Layout, values: Sequence[int]) -> tuple[list[str], str]:
    """Return the class names of label values, and a phrase that states their source.

    Both are empty unless one source has a valid name for every value.
    """
    has_zero = any(0 in dict(item.counts) for items in values_by_case(layout).values() for item in items)
    names, source = _find_names(layout.folder, values, has_zero=has_zero)
    if not names and len(values) > 1:
        names, file = names_by_polygons(layout, values)
        source = f"as the polygons in files such as {file} name them"
    return ([], "") if any(map(name_problem, names)) else (names, source)


def _find_names(host: HostFolder, values: Sequence[int], *, has_zero: bool = False) -> tuple[list[str], str]:
    """Search the host's files for the class names of label values.

    Args:
        host: the scanned folder.
        values: the label values.
        has_zero: whether masks also have the value 0, so that the first of the names may belong to 0.

    Returns:
        The names, and a phrase with the path of the file. If the file names the value 0 like a class, the phrase ends
        with `ZERO_IS` and this name. Both are empty unless one file has a valid name for every value, and each name
        occurs only once.
    """
    for path in host.files:
        stem, _, extension = path.rpartition("/")[2].rpartition(".")
        if (
            path.count("/") <= 1
            and stem.casefold() in NAME_FILES
            and extension.lower() in ("txt", "json", "csv", "names")
        ):
            is_counted = has_zero and list(values) == list(range(1, len(values) + 1))
            by_value = _read_names(host.root / path, len(values) + 1 if is_counted else None)
            names = [by_value.get(value, "") for value in values]
            zero = by_value.get(0, "") if has_zero and 0 not in values else ""
            of_zero = f"{ZERO_IS}{zero}" if zero and zero.casefold() not in NO_CLASS else ""
            if all(names) and len(set(map(str.casefold, names))) == len(names) and not any(map(name_problem, names)):
                return names, f"as {path} names them{of_zero}"
        elif path.count("/") <= 1 and extension.lower() in ("txt", "tsv"):
            by_value = _names_of_tabs(host.root / path)
            names = [by_value.get(value, "") for value in values]
            if all(names) and len(set(map(str.casefold, names))) == len(names) and not any(map(name_problem, names)):
                return names, f"as {path} names them"
    colours, path = named_colours(host)
    greys = {colour[0]: name for colour, name in colours.items() if len(set(colour)) == 1}
    names = [greys.get(value, "") for value in values]
    if all(names) and len(set(names)) == len(names) and not any(map(name_problem, names)):
        return names, f"as {path} names them by their grey values"
    return [], ""


def _read_names(path: Path, count: int | None) -> dict[int, str]:
    """Return the class names by label value from a list, a JSON mapping or a CSV; return {} for any other file.

    Args:
        path: the file.
        count: number of label values including 0, if the values are 0, 1, 2, …; otherwise None. If the file is a list
            of `count` names, its first name belongs to the value 0.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _names_of_json(json.loads(text), count)
        if path.suffix.lower() == ".csv":
            return _names_of_table(list(csv.DictReader(text.splitlines())))
    except (ValueError, OSError, csv.Error, RecursionError):
        return {}
    return _names_of_lines(text, count)[0]


def _names_of_lines(text: str, count: int | None = None) -> tuple[dict[int, str], dict[tuple[int, ...], str]]:
    """Return class names by label value and by colour, from lines that each name a class.

    Lines may be `liver`, `1: liver`, `1 liver 255 0 0` or `liver:255,0,0::`; lines that begin with # are left out. If
    lines have no label values, the values are the line numbers, counted from the value that `_first_value` returns. A
    first line `__ignore__` of labelme is left out.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    lines = [COLOUR_FIRST.sub(r"\2 \1", line) for line in lines]
    matches = [CLASS_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        matches = [re.fullmatch(r"(?P<value>)(?P<name>.+?)(?P<colour>)", line) for line in lines]
    parts = [match.groupdict() for match in matches if match]
    colours = {tuple(map(int, re.findall(r"\d+", part["colour"]))): part["name"] for part in parts if part["colour"]}
    values = [part["value"] for part in parts]
    if all(values) and len(set(values)) == len(values):
        return {int(part["value"]): part["name"] for part in parts}, colours
    names = [part["name"] if not part["value"] else f"{part['value']} {part['name']}" for part in parts]
    names = names[1:] if names[:1] == ["__ignore__"] else names
    return dict(enumerate(names, start=_first_value(names, count))), colours


def _first_value(names: Sequence[str], count: int | None) -> int:
    """Return the label value of the first name of a list: 0 or 1.

    The value is 0 if the first name means the background, or if there are `count` names. But if the last name means
    ignored pixels, its value may be far above the others (255), so `count` is not compared with the number of names.
    """
    if not names:
        return 1
    is_counted = len(names) == count and names[-1].casefold() not in NO_CLASS
    return 0 if names[0].casefold() in BACKGROUND_NAMES or is_counted else 1


def named_colours(host: HostFolder) -> tuple[dict[tuple[int, ...], str], str]:
    """Return the names of colours (red, green, blue) that a file such as `classes.txt` lists, and the file's path."""
    for path in host.files:
        stem, _, extension = path.rpartition("/")[2].rpartition(".")
        if path.count("/") <= 1 and stem.casefold() in NAME_FILES and extension.lower() in ("txt", "csv", "names"):
            try:
                text = (host.root / path).read_text(encoding="utf-8-sig")
            except (ValueError, OSError):
                continue
            if colours := _names_of_lines(text if extension.lower() != "csv" else text.replace(",", " "))[1]:
                return colours, path
    return {}, ""


def _names_of_json(content: Any, count: int | None) -> dict[int, str]:
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return dict(enumerate(content, start=_first_value(content, count)))
    if not isinstance(content, dict):
        return {}
    names = {}
    for key, value in content.items():
        if str(key).isdigit() and isinstance(value, str):
            names[int(key)] = value
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            names[int(value)] = str(key)
    return names


def _names_of_tabs(path: Path) -> dict[int, str]:
    """Return class names by label value from a tab-separated table; return {} if its header has no column of values."""
    if path.stat().st_size > MAX_TABLE_BYTES:
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (ValueError, OSError, csv.Error):
        return {}
    header = {str(column).strip().casefold() for column in (rows[0] if rows else {})}
    return _names_of_table(rows) if header & {"idx", "index", "value", "pixel value"} else {}


VALUE_COLUMNS = ("value", "id", "label", "index", "idx", "label_id", "pixel value")


def _names_of_table(rows: list[dict[str, Any]]) -> dict[int, str]:
    names = {}
    for row in rows:
        columns = {str(key).strip().casefold(): str(value or "").strip() for key, value in row.items() if key}
        name = next((columns[key] for key in ("name", "class", "class_name", "label_name") if columns.get(key)), "")
        value = next((columns[key] for key in VALUE_COLUMNS if columns.get(key)), "")
        if name and value.isdigit():
            names[int(value)] = name
    return names
