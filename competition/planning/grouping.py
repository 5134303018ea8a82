"""Find groups (cases that must stay in one fold) and strata (kinds of cases that each fold should contain).

Both may come from a column of the host's tables. Groups may also come from case ids that begin alike, or from the
folders above the cases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.explore.group_rules import are_dates, guess_group_rule, kind_of
from competition.planning.layout import Layout
from competition.planning.layouts.nested.linked import LinkedFolder, places_of_cases
from competition.planning.words import has_word, tokens, words
from competition.tables import read_csv
from competition.text import format_count, join_names

if TYPE_CHECKING:
    import pandas

GROUP_WORDS = words(
    "patient patients subject subjects person donor donors animal mouse case group individual participant pid lesion "
    "lesions video videos sequenceid"
)
# In the name of a column, what follows a word for a group: `patient_id` names the patient, `patient_age` does not.
ID_WORDS = words("id ids no nr number name code key uid uuid index identifier hash")
ATTRIBUTE_WORDS = words(
    "age sex gender type kind grade stage size weight height width length volume area diameter count race ethnicity "
    "status diagnosis class category severity score date time year location position side bmi species strain"
)
COUNT_WORDS = words("n num number count total has is")  # `num_lesions` counts lesions
PERSON_NAMES = GROUP_WORDS | words("pat pt pid subj sub")  # in names of folders
VISIT_WORDS = words("visit visits session sessions ses scan scans timepoint tp baseline followup day week month exam")
SITE_WORDS = words("site sites center centre hospital clinic klinik institute")  # each numbers its own patients
STRATUM_WORDS = words("stratum strata diagnosis grade organ tissue stain cohort sex gender modality")
MISSING = ("", "na", "n/a", "nan", "none", "null", "unknown", "-")  # texts of a table that name no group or stratum
MAX_TABLE_BYTES = 2**27
MIN_DESCRIBED = 0.5  # share of the training cases that a table must have, so that it is worth a remark
MIN_FOLDER_GROUPS = 8  # fewer folders of many cases are probably kinds of cases, not patients
MAX_FOLDER_SHARE = 0.2  # share of the cases; a folder with more cases is probably a kind of cases, not a patient
MIN_SMALL_FOLDERS, MAX_SMALL_FOLDER = (
    4,
    5,
)  # so many folders may be patients if their median number of cases is so small


def find_groups(layout: Layout) -> Layout:
    """Add the keys `group` and `stratum` to a layout, if its case ids or a table of the host define them."""
    group, group_reason, group_conflicts = _from_tables(layout, _group_columns, _groups_several)
    stratum, stratum_reason, stratum_conflicts = _from_tables(layout, _stratum_columns, _is_stratum)
    layout = layout.with_remarks(*group_conflicts, *stratum_conflicts)
    if group_conflicts and not group:
        layout = layout.with_keys({}, {"group": "no column of patients in the host's tables could be used"})
    is_linked = isinstance(layout.folder, LinkedFolder)  # its ids begin with folders, see `folders_of_cases`
    if not group and not is_linked and (found := guess_group_rule(layout.ids)) is not None:
        rule, counts = found
        example = next(name for name, count in counts.items() if count > 1)
        shown = (
            f"the ids form {format_count(len(counts), 'group')}, such as {example} with "
            f"{format_count(counts[example], 'case')}"
        )
        beginnings = {case_id: match[1] for case_id in layout.ids if (match := re.search(rule, case_id))}
        folders = folders_of_cases(layout)
        splits_folder = len(_pairs(folders, beginnings)) > len(set(folders.values()))
        splits_beginning = len(_pairs(folders, beginnings)) > len(set(beginnings.values()))
        kind = kind_of(counts)
        if _may_be_patients(folders) and (kind or splits_folder):
            if not kind and splits_beginning:
                layout = layout.with_remarks(
                    f"{shown}. These groups are not used, because the folders above the cases are the groups"
                )
        elif kind:
            layout = layout.with_keys({}, {"group": f"the repeated parts of the ids name {kind}"}).with_remarks(
                f"{shown}. These groups are not used, because they are {kind} and not patients. If each "
                f"group is a patient, set group: '{rule}'"
            )
        else:
            group, group_reason = rule, f"{shown}; the cases of a group stay in one fold"
            if splits_folder and not kind_of(Counter(folders.values())):
                layout = layout.with_remarks(f"{shown}. In addition, there are {_advice(folders)}")
    if group:
        layout = layout.with_keys({"group": group}, {"group": group_reason})
    if stratum:
        layout = layout.with_keys({"stratum": stratum}, {"stratum": stratum_reason})
    return layout


def _pairs(folders: Mapping[str, str], beginnings: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the different pairs (folder, beginning of the id) of the cases, as a set.

    The set is empty if the cases have no folders.
    """
    return {(folder, beginnings.get(case_id, "")) for case_id, folder in folders.items()}


def _from_tables(
    layout: Layout, choose: Callable[[Sequence[str]], list[str]], accept: Callable[[Counter[str]], bool]
) -> tuple[str, str, list[str]]:
    """Find a column of the host's tables for `group` or `stratum`.

    Args:
        layout: the layout.
        choose: function that receives the names of a table's columns, and returns those that may be used, the best one
            first.
        accept: function that receives the number of cases with each value of a column, and returns whether the column
            is suitable.

    Returns:
        The rule for `group` or `stratum`, the reason for it, and remarks. The rule and the reason are empty if no
        column is suitable. There is a remark for each column that is not used because two rows of one id have different
        values. For `group`, there is also a remark if a column is not used because the table lacks the id of a case, or
        the column lacks its value.
    """
    conflicts = []
    for path in layout.folder.tables:
        file = layout.folder.root / path
        if path == layout.keys.get("train.rle") or file.stat().st_size > MAX_TABLE_BYTES or ":" in path:
            continue
        try:
            table = read_csv(file, {})
        except MaskfoldError:
            continue
        ids = _id_column(table, layout.ids)
        names = [name for name in choose(list(map(str, table.columns))) if name != ids]
        if ids is None:
            if names and choose is _group_columns and (problem := _problem_of_ids(table, layout.ids)):
                conflicts.append(
                    f"{path} has a column {names[0]}, but {problem}, so the column {names[0]} is not used; correct the "
                    "table and run init again"
                )
            continue
        for name in names:
            values = dict(zip(table[ids], table[name], strict=True))
            twice = next(
                (key for key, value in zip(table[ids], table[name], strict=True) if values[key] != value), None
            )
            if twice is not None:
                conflicts.append(
                    f"{path} has several rows with different values of {name} for the id {twice}, so the column {name} "
                    "is not used; correct the table and run init again"
                )
                continue
            plain = {strip_extension(case_id): value for case_id, value in values.items()}
            found = [values.get(case_id, plain.get(case_id, "")) for case_id in layout.ids]
            counts = Counter(found)
            lacking = next((i for i, value in zip(layout.ids, found, strict=True) if _is_missing(value)), None)
            if lacking is not None:
                if choose is _group_columns and len(counts) > 2:
                    conflicts.append(
                        f"{path} has no {name} for the case {lacking}, so the column {name} is not used; complete the "
                        "table and run init again"
                    )
            elif accept(counts):
                return (
                    f"{path}:{name}",
                    (
                        f"the column {name} of {path} has {format_count(len(counts), 'value')} for "
                        f"{format_count(len(found), 'case')}"
                    ),
                    conflicts,
                )
    return "", "", conflicts


def _is_missing(value: str) -> bool:
    return value.strip().casefold() in MISSING


def _group_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that may name groups; names such as `patient_id` first, and no attributes (`patient_age`)."""
    found = []
    for name in names:
        parts = tokens(name)
        own = _words_of_column(name)
        if own & GROUP_WORDS and not own & ATTRIBUTE_WORDS and parts[:1] and parts[0] not in COUNT_WORDS:
            found.append((parts[-1] not in GROUP_WORDS | ID_WORDS, name))
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _stratum_columns(names: Sequence[str]) -> list[str]:
    return [name for name in names if _words_of_column(name) & STRATUM_WORDS]


def _words_of_column(name: str) -> set[str]:
    """Return the words of a column's name, in which `_from_tables` searches for known words.

    These are each word of the name, all words joined (`sequenceid`), and the name without a final `id`.
    """
    return {*tokens(name), name.casefold().removesuffix("id").strip("_ "), "".join(tokens(name))}


def _groups_several(counts: Counter[str]) -> bool:
    return 2 <= len(counts) < sum(counts.values())


def _is_stratum(counts: Counter[str]) -> bool:
    return 2 <= len(counts) <= 10 and min(counts.values()) >= 2


def _id_column(table: pandas.DataFrame, ids: tuple[str, ...]) -> str | None:
    """Return the column of a table that contains the ids of all training cases.

    If several columns contain all ids, columns in which a value occurs twice are left out. If the table has a column
    `id`, only this column may be returned. Return None if no column or more than one column remains.
    """
    wanted = set(ids)
    complete = []
    for column in table.columns:
        values = set(table[column])
        if wanted <= values | {strip_extension(value) for value in values}:
            complete.append(str(column))
    complete = [column for column in complete if table[column].is_unique] or complete
    if "id" in table.columns:
        return "id" if "id" in complete else None
    return complete[0] if len(complete) == 1 else None


def _problem_of_ids(table: pandas.DataFrame, ids: tuple[str, ...]) -> str:
    """Return why `_id_column` returns None for a table whose rows describe the training cases.

    The rows describe the training cases if one column has most of the ids, possibly without leading zeros, as a
    spreadsheet writes them. If no column has most of the ids, return an empty text.
    """

    def plain(text: str) -> str:
        return strip_extension(text.rpartition("/")[2]).lstrip("0")

    columns = []
    for column in [column for column in table.columns if column == "id"] or table.columns:
        known = {plain(value) for value in table[column]}
        if sum(plain(case_id) in known for case_id in ids) >= MIN_DESCRIBED * len(ids):
            columns.append(str(column))
    if not columns:
        return ""
    values = {name for value in table[columns[0]] for name in (value, strip_extension(value))}
    lacking = next((case_id for case_id in ids if case_id not in values), None)
    if lacking is not None:
        return f"the column {columns[0]} does not contain the id {lacking}"
    return f"several columns may contain the ids ({join_names(columns)}), and none of them is called id"


# Folders above the cases


def group_by_folder(layout: Layout, name: str) -> Layout:
    """Group cases by the folders above them, if each folder may be a patient.

    In `Patient 07/2019-03-01/T1.nii.gz` with the pattern `*/{id}/T1.nii.gz`, the id is the scan, and only the folder
    that `*` matches shows which scans belong to one patient. If there are many folders with few cases each, each
    folder is treated as a patient, and a table with the folder of each case is written beside the data. A few folders
    with many cases each (`benign`, `malignant`), and folders of dates, only get a remark.

    Args:
        layout: the chosen layout; a layout that already has a group is returned unchanged.
        name: the competition's name, with which the name of the table begins.
    """
    from competition.planning.layouts.coco import write_table

    patients = _patients_in_links(layout)
    folders = patients or folders_of_cases(layout)
    counts = Counter(folders.values())
    if "group" in layout.keys or len(counts) < 2 or max(counts.values()) == 1:
        return layout
    if not patients and not _may_be_patients(folders):
        if isinstance(layout.folder, LinkedFolder):
            layout = layout.with_keys({}, {"group": "the folders in the ids may be sites or kinds of cases"})
        return layout.with_remarks(_advice_with_table(layout, folders, name))
    table = write_table(layout.folder, f"{name}-groups.csv", ("id", "group"), sorted(folders.items()))
    example, most = counts.most_common(1)[0]
    reason = f"{_shown(folders)}; the cases of a folder stay in one fold"
    if patients:
        shown = f"{format_count(len(counts), 'group')}, such as {example} with {format_count(most, 'case')}"
        reason = f"the ids form {shown}; they stay in one fold"
    return layout.with_keys({"group": f"{table}:group"}, {"group": reason})


def _may_be_patients(folders: Mapping[str, str]) -> bool:
    """Return whether the folders above the cases may be patients: there must be many folders of a few cases each.

    Args:
        folders: the folder of each case.
    """
    counts = Counter(folders.values())
    if len(counts) < 2 or max(counts.values()) == 1 or are_dates(list(counts)):
        return False
    if len(counts) >= MIN_FOLDER_GROUPS and max(counts.values()) <= MAX_FOLDER_SHARE * len(folders):
        return True
    usual = median(counts.values())
    are_small = usual <= MAX_SMALL_FOLDER and usual < len(counts)
    return len(counts) >= MIN_SMALL_FOLDERS and are_small and not kind_of(counts)


def _shown(folders: Mapping[str, str]) -> str:
    counts = Counter(folders.values())
    most, most_cases = counts.most_common(1)[0]
    return f"{format_count(len(counts), 'folder')} above the cases, such as {most} with {most_cases} cases"


def _advice(folders: Mapping[str, str]) -> str:
    return (
        f"{_shown(folders)}. If each folder is a patient, write a table with the columns id and "
        "patient, and set group: TABLE.csv:patient, so that no patient is in two folds"
    )


def _patients_in_links(layout: Layout) -> dict[str, str]:
    """Return the patient of each case, if the ids contain the name of a folder and then the name of a patient.

    Only the ids of a layout of links (`LinkedFolder`) contain the names of folders. In the id `siteA_P07_week3`,
    `siteA` is the folder and `P07` the patient. Equal names at two sites are two patients, see `_patient_folders`. If
    the ids name no patients, return an empty dictionary.
    """
    own = places_of_cases(layout)
    found = guess_group_rule([names[-1] for names in own.values()])
    if found is None or kind_of(found[1]):
        return {}
    matches = {case_id: re.search(found[0], names[-1]) for case_id, names in own.items()}
    return _patient_folders({case_id: (*own[case_id][:-1], match[1]) for case_id, match in matches.items() if match})


def _advice_with_table(layout: Layout, folders: Mapping[str, str], name: str) -> str:
    """Return advice on how the folders of the cases may be used as groups.

    For a layout of links (`LinkedFolder`), first write a table with the folder of each case; the advice names this
    table. The ids of such a layout begin with the names of the folders, but no regular expression can find for certain
    where these names end.
    """
    from competition.planning.layouts.coco import write_table

    if not isinstance(layout.folder, LinkedFolder):
        return _advice(folders)
    table = write_table(layout.folder, f"{name}-folders.csv", ("id", "folder"), sorted(folders.items()))
    return (
        f"{_shown(folders)}. If each folder is a patient, set group: {table}:folder, so that no patient is in two "
        f"folds. If the folders are sites or kinds of cases, set stratum: {table}:folder, so that each fold has cases "
        "of all folders"
    )


def folders_of_cases(layout: Layout) -> dict[str, str]:
    """Return, for each training case, the folder that `*` in a pattern such as `*/{id}.png` matches.

    If several `*` match folders, as in `*/*/{id}.png`, this is the folder that may be the patient, see
    `_patient_folders`. In a layout of links (`LinkedFolder`), the folders are those whose names the ids contain. In any
    other layout, return an empty dictionary if the pattern has no `*`.
    """
    if own := places_of_cases(layout):
        paths = {case_id: names[:-1] for case_id, names in own.items()}
        return _patient_folders(paths) if all(paths.values()) else {}
    for pattern in [layout.masks] if isinstance(layout.masks, str) else list((layout.masks or {}).values()):
        parts = pattern.split("/")
        places = [index for index, part in enumerate(parts[1:]) if "{id}" in part and parts[index] == "*"]
        if not places:
            return {}
        stars = [index for index in range(places[0] + 1) if "*" in parts[index]]
        files = {case_id: paths[0] for by_id in layout.mask_files.values() for case_id, paths in by_id.items() if paths}
        split = {case_id: files[case_id].split("/") for case_id in layout.ids if case_id in files}
        return _patient_folders({case_id: tuple(names[place] for place in stars) for case_id, names in split.items()})
    return {}


def _patient_folders(paths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return, for each case, the folder that may be its patient.

    This is the inner folder, unless it is a visit of the patient (`Patient 07/visit 1`). Inner folders of equal names
    are different patients if the outer folders are sites (`Site A/Pat. 003` and `Site B/Pat. 003`). Otherwise they may
    be one patient (`2019/Pat. 003` and `2020/Pat. 003`), who must not be in two folds.

    Args:
        paths: the folders of each case, from outer to inner, at least one.
    """
    inner = {case_id: names[-1] for case_id, names in paths.items()}
    outer = {case_id: names[:-1] for case_id, names in paths.items()}
    if not any(outer.values()):
        return inner
    repeat = len(set(paths.values())) > len(set(inner.values()))
    are_persons = all(has_word(names[-1], PERSON_NAMES) for names in outer.values())
    are_visits = are_dates(list(inner.values())) or all(has_word(name, VISIT_WORDS) for name in inner.values())
    are_sites = all(has_word(names[-1], SITE_WORDS) for names in outer.values())
    may_be_outer = repeat and not are_sites and _may_be_patients({key: "/".join(names) for key, names in outer.items()})
    if are_persons or are_visits or may_be_outer:
        return _patient_folders(outer)
    return {case_id: "/".join(names) for case_id, names in paths.items()} if repeat and are_sites else inner
