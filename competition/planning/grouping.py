"""Find groups and strata of the cases.

A group or stratum is a repeated beginning of the ids, a column of one of the host's tables, or a folder above the
cases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.explore.findings import COLLECTION, guess_group_rule
from competition.io import read_csv
from competition.planning.layout import Layout
from competition.planning.words import tokens, words
from competition.text import format_count

if TYPE_CHECKING:
    import pandas

GROUP_WORDS = words(
    "patient patients subject subjects person donor donors animal mouse case group individual participant pid lesion "
    "lesions video videos sequenceid"
)
STRATUM_WORDS = words("stratum strata diagnosis grade organ tissue stain cohort sex gender modality")
SUBJECT = r"^((?:sub|subj|subject|patient|pat)[_-]?[A-Za-z0-9]+)[_-].+$"
MISSING = ("", "na", "n/a", "nan", "none", "null", "unknown", "-")  # texts of a table that name no group or stratum
MAX_TABLE_BYTES = 2**27
MIN_FOLDER_GROUPS = 8  # fewer folders above the cases are probably kinds of cases, not patients
MAX_FOLDER_SHARE = 0.2  # share of the cases; a folder with more cases is probably a kind of cases, not a patient


def find_groups(layout: Layout) -> Layout:
    """Add the keys `group` and `stratum` to a layout if the ids of its cases or a table of the host define them."""
    group, group_reason = _from_tables(layout, GROUP_WORDS, _groups_several)
    stratum, stratum_reason = _from_tables(layout, STRATUM_WORDS, _is_stratum)
    if not group and (found := guess_group_rule(layout.ids) or _by_subject(layout.ids)) is not None:
        rule, counts = found
        example = next(name for name, count in counts.items() if count > 1)
        shown = (
            f"{format_count(len(counts), 'group')} by the beginning of the ids, such as {example} with "
            f"{format_count(counts[example], 'case')}"
        )
        if _are_kinds(counts):
            layout = layout.with_keys({}, {"group": "the beginnings of the ids name kinds of cases"}).with_remarks(
                f"{shown}: not used, because these name kinds of cases rather than patients; if each is a patient, set "
                f"group: '{rule}'"
            )
        else:
            group, group_reason = rule, f"{shown}; they stay in one fold"
    if group:
        layout = layout.with_keys({"group": group}, {"group": group_reason})
    if stratum:
        layout = layout.with_keys({"stratum": stratum}, {"stratum": stratum_reason})
    return layout


def _by_subject(ids: Sequence[str]) -> tuple[str, Counter[str]] | None:
    """Return a regular expression of the subject in ids such as `sub-01_ses-1`, and the number of cases per subject.

    The result is None unless all ids begin with a word for a subject, and at least one of several subjects repeats.
    Such words are certain enough to group cases even if few subjects repeat.
    """
    matches = [re.match(SUBJECT, case_id) for case_id in ids]
    counts = Counter(match[1] for match in matches if match)
    return (SUBJECT, counts) if all(matches) and len(counts) > 1 and max(counts.values()) > 1 else None


def _are_kinds(counts: Counter[str]) -> bool:
    """Return whether most beginnings of ids are years or have no digit, and so name kinds of cases (`Abyssinian`)."""
    kinds = sum(COLLECTION.fullmatch(name) is not None or not any(map(str.isdigit, name)) for name in counts)
    return kinds > 0.5 * len(counts)


def _from_tables(layout: Layout, some: frozenset[str], accept: Callable[[Counter[str]], bool]) -> tuple[str, str]:
    for path in layout.folder.tables:
        file = layout.folder.root / path
        if path == layout.keys.get("train.rle") or file.stat().st_size > MAX_TABLE_BYTES or ":" in path:
            continue
        try:
            table = read_csv(file, {})
        except MaskfoldError:
            continue
        ids = _id_column(table, layout.ids)
        if ids is None:
            continue
        for column in table.columns:
            name = str(column)
            if name == ids or some.isdisjoint(_words_of_column(name)):
                continue
            values = dict(zip(table[ids], table[column], strict=True))
            plain = {strip_extension(case_id): value for case_id, value in values.items()}
            found = [values.get(case_id, plain.get(case_id, "")) for case_id in layout.ids]
            counts = Counter(found)
            if not any(value.strip().casefold() in MISSING for value in counts) and accept(counts):
                return (
                    f"{path}:{name}",
                    f"the column {name} of {path}: {format_count(len(counts), 'value')} of "
                    f"{format_count(len(found), 'case')}",
                )
    return "", ""


def _words_of_column(name: str) -> set[str]:
    """Return the words of a column's name, the name without a final `id`, and the name as one word (`sequenceid`)."""
    return {*tokens(name), name.casefold().removesuffix("id").strip("_ "), "".join(tokens(name))}


def _groups_several(counts: Counter[str]) -> bool:
    return 2 <= len(counts) < sum(counts.values())


def _is_stratum(counts: Counter[str]) -> bool:
    return 2 <= len(counts) <= 10 and min(counts.values()) >= 2


def _id_column(table: pandas.DataFrame, ids: tuple[str, ...]) -> str | None:
    """Return the column of a table that contains all training ids: `id`, else the only column with all ids."""
    wanted = set(ids)
    complete = []
    for column in table.columns:
        values = set(table[column])
        if wanted <= values | {strip_extension(value) for value in values} and table[column].is_unique:
            complete.append(str(column))
    if "id" in table.columns:
        return "id" if "id" in complete else None
    return complete[0] if len(complete) == 1 else None


# Folders above the cases


def group_by_folder(layout: Layout, name: str) -> Layout:
    """Group cases by the folder that `*` in a pattern such as `*/{id}/T1.nii` matches, if such folders may be patients.

    In `Patient 07/2019-03-01/T1.nii.gz`, the id is the scan, so the ids do not show which scans belong to one patient.
    Many folders with few cases each count as patients; a table beside the data then names the patient of each case. A
    few folders with many cases each (`benign`, `malignant`) only get a remark.

    Args:
        layout: the chosen layout; a layout that already has a group is returned unchanged.
        name: the competition's name, with which the name of the table begins.
    """
    from competition.planning.layouts.coco import write_table

    folders = folders_of_cases(layout)
    counts = Counter(folders.values())
    if "group" in layout.keys or len(counts) < 2 or max(counts.values()) == 1:
        return layout
    most, most_cases = counts.most_common(1)[0]
    shown = f"{format_count(len(counts), 'folder')} above the cases, such as {most} with {most_cases}"
    if len(counts) < MIN_FOLDER_GROUPS or most_cases > MAX_FOLDER_SHARE * len(folders):
        return layout.with_remarks(
            f"{shown}: if each is a patient, write a table with the columns id and patient, and set group: "
            "TABLE.csv:patient, so that no patient is in two folds"
        )
    table = write_table(layout.folder, f"{name}-groups.csv", ("id", "group"), sorted(folders.items()))
    reason = f"{shown}; the cases of a folder stay in one fold"
    return layout.with_keys({"group": f"{table}:group"}, {"group": reason})


def folders_of_cases(layout: Layout) -> dict[str, str]:
    """Return, by training case, the folder that `*` in a pattern such as `*/{id}.png` matches; empty without a `*`."""
    for pattern in [layout.masks] if isinstance(layout.masks, str) else list((layout.masks or {}).values()):
        parts = pattern.split("/")
        places = [index for index, part in enumerate(parts[1:]) if "{id}" in part and parts[index] == "*"]
        if not places:
            return {}
        files = {case_id: paths[0] for by_id in layout.mask_files.values() for case_id, paths in by_id.items() if paths}
        return {case_id: files[case_id].split("/")[places[0]] for case_id in layout.ids if case_id in files}
    return {}
