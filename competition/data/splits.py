"""Split cases into folds by a scheme, groups and strata; check folds for leaks; read and write fold files.

All cases of a split group stay in one fold. A split group is a group of cases, merged with the groups that share an
image with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition.config.competition import Competition
from competition.config.experiment import FoldsConfig
from competition.data.duplicates import duplicates_with_other_masks, find_duplicates, split_groups
from competition.data.masks import IGNORED, load_mask
from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.tables import read_csv, write_table
from competition.text import and_more, is_or_are, join_names, nearest_hint

if TYPE_CHECKING:
    import pandas

FILE_RULE = re.compile(r"(?P<file>[^:]+\.(?:csv|tsv)):(?P<column>.+)", re.IGNORECASE)
TRAIN_ONLY, HELD_OUT = -1, -2  # fold numbers of cases that are not validated


def split(
    table: pandas.DataFrame, comp: Competition, folds: FoldsConfig, seed: int, alike: Iterable[Sequence[str]] = ()
) -> pandas.DataFrame:
    """Split the training cases into folds.

    The cases are sorted by id first, so that the result does not depend on the order of the table. If
    `competition.group` is set, every scheme keeps each group in one fold.

    Args:
        table: the case table of the training cases.
        comp: the competition.
        folds: the experiment's `folds`.
        seed: seed of the shuffle.
        alike: lists of ids with the same image in different files; the ids of a list stay in one fold.

    Returns:
        Columns id, fold and group (the split group), sorted by id. With the scheme `holdout`, validation cases have
        fold 0, training cases -1, and held-out cases (the third share in `folds.shares`) -2. ``attrs["duplicates"]``
        lists the ids that share an image, ``attrs["conflicting"]`` the duplicates whose masks differ.

    Raises:
        MaskfoldError (exit status 2): there are too few cases or groups; the scheme requires groups, but there are
            none; the fold file is invalid; or two folds share a group or an image.
    """
    import pandas

    cases = table.assign(id=table["id"].astype(str)).sort_values("id", ignore_index=True)
    if folds.scheme in ("group", "stratified_group") and comp.group is None:
        raise MaskfoldError(
            f"folds.scheme {folds.scheme} requires groups, but competition.group is not set.",
            "Set competition.group to a regular expression on the id, or to `file.csv:column`.",
            status=2,
        )
    groups = split_groups(cases, alike)
    if folds.scheme not in ("file", "holdout") and len(cases) > 1 and len(set(groups)) == 1:
        raise _one_group(cases, comp, folds)
    if folds.scheme == "file":
        left_out = [*table.attrs.get("excluded", []), *(case_id for case_id, _ in table.attrs.get("skipped", []))]
        is_selection = comp.train.cases is not None
        numbers = folds_from_file(Path(str(folds.file)), cases["id"].tolist(), left_out, is_selection)
    elif folds.scheme == "holdout":
        numbers = _holdout(groups, folds.shares or [0.8, 0.2], seed)
    elif folds.scheme in ("kfold", "group"):
        numbers = _kfold(groups, folds.k, seed)
    else:
        numbers = _stratified(groups, compute_strata(cases, comp).tolist(), folds.k, seed)
    result = pandas.DataFrame({"id": cases["id"], "fold": numbers, "group": groups})
    check_leaks(cases, result)
    result.attrs.update({"duplicates": find_duplicates(cases), "conflicting": duplicates_with_other_masks(cases)})
    return result


def _one_group(cases: pandas.DataFrame, comp: Competition, folds: FoldsConfig) -> MaskfoldError:
    """Return the error for cases that are all in one split group, with advice about the key that makes this group."""
    if comp.group is not None and cases["group"].nunique() == 1:
        hint = "Correct competition.group so that it makes at least 2 groups, or add cases of another group."
    elif folds.duplicates == "near":
        hint = "Set folds.duplicates=exact, so that only images with equal pixels stay together, or add other cases."
    else:
        hint = "Add cases with other images, because cases that share an image are in one group."
    return MaskfoldError(
        f"folds.k: found {folds.k}, but all {len(cases)} cases are in 1 group, which must stay in one fold.",
        hint,
        status=2,
    )


def _kfold(groups: list[str], k: int, seed: int) -> list[int]:
    """Return the fold of each case, as scikit-learn's KFold would assign the groups.

    If a group has several cases, the result equals a shuffled GroupKFold.
    """
    # This does not call scikit-learn, because its import takes longer than all other work of `cv` on a finished run.
    names = _check_enough(groups, k)
    order = np.arange(len(names))
    np.random.RandomState(_random_state(seed)).shuffle(order)
    parts = enumerate(np.array_split(order, k))  # the first folds may have one group more
    fold_of = {names[index]: number for number, part in parts for index in part}
    return [fold_of[name] for name in groups]


def _stratified(groups: list[str], case_strata: list[str], k: int, seed: int) -> list[int]:
    """Return each case's fold by StratifiedKFold, or by StratifiedGroupKFold if a group has several cases."""
    names = _check_enough(groups, k)
    strata = merge_rare_strata(case_strata, k)
    if len(names) == len(groups):
        return _stratified_without_groups(strata, k, seed)
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=_random_state(seed))
    folds = splitter.split(groups, strata, groups)
    numbers = [0] * len(groups)
    for number, (_, validated) in enumerate(folds):
        if len(validated) == 0:
            raise MaskfoldError(
                f"Fold {number} of {k} has 0 cases, expected at least 1; the groups differ too much in size.",
                "Set a smaller folds.k, or set folds.scheme to group.",
                status=2,
            )
        for index in validated:
            numbers[index] = number
    return numbers


def _stratified_without_groups(strata: Sequence[str], k: int, seed: int) -> list[int]:
    """Return the fold of each case, as scikit-learn's StratifiedKFold would assign the cases.

    The cases of each stratum are divided evenly and randomly among the folds.
    """
    # This does not call scikit-learn; `_kfold` gives the reason.
    random = np.random.RandomState(_random_state(seed))
    names = list(dict.fromkeys(strata))
    number_of = np.array([names.index(name) for name in strata])
    in_order = np.sort(number_of)
    counts = np.array([np.bincount(in_order[fold::k], minlength=len(names)) for fold in range(k)])  # (k, strata)
    folds = np.empty(len(strata), np.int64)
    for number in range(len(names)):
        dealt = np.arange(k).repeat(counts[:, number])
        random.shuffle(dealt)
        folds[number_of == number] = dealt
    return [int(fold) for fold in folds]


def merge_rare_strata(case_strata: Sequence[str], k: int) -> list[str]:
    """Merge all strata with fewer than k cases into one stratum.

    If the merged stratum still has fewer than k cases, the smallest other stratum is added to it.

    Args:
        case_strata: stratum of each case; at least k cases in all.
        k: number of folds.

    Returns:
        Strata of at least k cases each.
    """
    counts = Counter(case_strata)
    rare = {name for name, count in counts.items() if count < k}
    if rare and sum(counts[name] for name in rare) < k:
        rare.add(min((name for name in counts if name not in rare), key=lambda name: (counts[name], name)))
    return ["rare" if name in rare else f"={name}" for name in case_strata]


def _holdout(groups: list[str], shares: list[float], seed: int) -> list[int]:
    """Split the groups by shares into validation cases (fold 0), training cases (-1) and held-out cases (-2).

    Every part with a share above 0 has at least one group. Return the fold of each case.
    """
    if shares[0] == 0 or shares[1] == 0:
        raise MaskfoldError(
            f"folds.shares: found {shares}, expected shares above 0 for training and validation.",
            "Set both shares above 0, for example [0.8, 0.2].",
            status=2,
        )
    names = sorted(set(groups))
    sizes = [max(1, round(share * len(names))) if share else 0 for share in shares[1:]]  # validation, held out
    if sum(sizes) >= len(names):
        raise MaskfoldError(
            f"folds.shares {shares} cannot be filled: each share needs at least one case or group, but there "
            f"{is_or_are(len(groups))} {_describe(groups)}.",
            "Add cases, or set only two shares.",
            status=2,
        )
    order = np.random.RandomState(_random_state(seed)).permutation(len(names))
    fold_of = dict.fromkeys(names, TRAIN_ONLY)
    for position, index in enumerate(order[: sum(sizes)]):
        fold_of[names[index]] = 0 if position < sizes[0] else HELD_OUT
    return [fold_of[name] for name in groups]


def _check_enough(groups: list[str], k: int) -> list[str]:
    """Return the sorted names of the split groups, after checking that there are at least k."""
    names = sorted(set(groups))
    if len(names) < k:
        raise MaskfoldError(
            f"folds.k: found {k}, expected at most {len(names)} for {_describe(groups)}.",
            f"Set folds.k={len(names)}, or add cases." if len(names) > 1 else "Add cases.",
            status=2,
        )
    return names


def _describe(groups: list[str]) -> str:
    count = len(set(groups))
    cases = f"{len(groups)} case{'s' if len(groups) != 1 else ''}"
    return (
        cases
        if count == len(groups)
        else f"{cases} in {count} group{'s' if count != 1 else ''}; each group stays in one fold"
    )


def _random_state(seed: int) -> int:
    """Reduce a seed to the range that scikit-learn accepts."""
    return seed % 2**32


# Groups and strata by the rules of the YAML


def group_values(comp: Competition, ids: list[str], key: str) -> list[str] | None:
    """Return the group or stratum of each case, by the rule in `competition.group` or `competition.stratum`.

    Args:
        comp: the competition.
        ids: ids of the cases.
        key: group or stratum.

    Returns:
        One value per id; None if the key is not set.

    Raises:
        MaskfoldError: the key's rule is invalid (exit status 2), or gives no value for a case.
    """
    rule = getattr(comp, key)
    if rule is None:
        return None
    file_rule = FILE_RULE.fullmatch(rule)
    if file_rule:
        return _from_table(Path(comp.root) / file_rule["file"], file_rule["column"], comp, ids, key)
    return _from_ids(rule, ids, key)


def known_groups(comp: Competition, ids: list[str]) -> dict[str, str]:
    """Return the group of each case by id. Cases for which `competition.group` gives no group are left out.

    Args:
        comp: the competition.
        ids: ids of any images, including unlabelled images.
    """
    try:
        return dict(zip(ids, group_values(comp, ids, "group") or [], strict=False))
    except MaskfoldError:
        if len(ids) == 1:
            return {}
        return {case_id: group for single in ids for case_id, group in known_groups(comp, [single]).items()}


def _from_ids(rule: str, ids: list[str], key: str) -> list[str]:
    """Return the group or stratum of each id: the part of the id that the regular expression `rule` matches.

    If the expression has parentheses (capture groups), the part is what the first pair of parentheses matches.
    """
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise MaskfoldError(
            f"competition.{key}: found `{rule}`, expected a valid regular expression ({error}).",
            "Correct the regular expression, or write `file.csv:column`.",
            status=2,
        ) from error
    result = []
    for case_id in ids:
        match = expression.search(case_id)
        text = match and match.group(1 if expression.groups else 0)
        if not text:
            raise MaskfoldError(
                f"competition.{key} `{rule}` does not match the id {case_id}.",
                f"Correct the regular expression in competition.{key}, so that it matches the id of every case.",
                status=2,
            )
        result.append(text)
    return result


def _id_column(path: Path, table: pandas.DataFrame, comp: Competition, ids: list[str]) -> str:
    """Return the name of the column with the case ids.

    The column `id` is used if the table has it, otherwise the column that `train.columns.id` names. If the table has
    neither, the only column that contains every id is used.

    Raises:
        MaskfoldError: no column, or more than one column, contains every id (exit status 2).
    """
    for name in ("id", comp.train.columns.id):
        if name in table.columns:
            return name
    wanted, complete = set(ids), []
    for name in table.columns:
        values = set(table[name])
        if wanted <= values | {strip_extension(value) for value in values}:
            complete.append(str(name))
    if len(complete) == 1:
        return complete[0]
    found = f"found the columns {', '.join(table.columns)}"
    if complete:
        found = f"the columns {join_names(complete)} contain all ids"
    raise MaskfoldError(
        f"{path} needs one column that contains all case ids (the first is {ids[0]}): {found}.",
        "Give the column with the ids the name `id`, or set train.columns.id to its name.",
        status=2,
    )


def _from_table(path: Path, column: str, comp: Competition, ids: list[str], key: str) -> list[str]:
    """Return the value of a table's column for each case. Ids in the table may include the file's extension."""
    table = read_csv(path, {f"competition.{key}": column})
    if not ids:
        return []
    id_column = _id_column(path, table, comp, ids)
    rows: dict[str, tuple[int, str]] = {}
    for line, name, value in zip(table.index, table[id_column], table[column], strict=True):
        for alias in {name, strip_extension(name)}:
            first_line, first_value = rows.setdefault(alias, (line, value))
            if first_value != value:
                raise MaskfoldError(
                    f"{path} has two values of {key} for the id {name}: {first_value} in line {first_line}, and "
                    f"{value} in line {line}.",
                    "Remove one of the rows.",
                )
    for case_id in ids:
        if not rows.get(case_id, (0, ""))[1]:
            raise MaskfoldError(
                f"{path} has no value of {key} for the id {case_id} (column `{column}`).",
                f"Add a row for every training case, with a value in the column `{column}`.",
            )
    return [rows[case_id][1] for case_id in ids]


# Strata of the folds


def compute_strata(table: pandas.DataFrame, comp: Competition) -> pandas.Series:
    """Return the stratum of each case: by `competition.stratum` if it is set, otherwise computed from the masks.

    Args:
        table: the case table of the training cases.
        comp: the competition.

    Returns:
        One text per case, with the table's index. The computed stratum of a case without foreground is `empty`. Any
        other computed stratum is a text such as ``10:2``. The digits before the colon say for each class whether the
        case has it. The last digit says whether the foreground share is in the lower (0), middle (1) or upper (2) third
        of all cases with foreground.

    Raises:
        MaskfoldError: a mask cannot be read.
    """
    import pandas

    if comp.stratum is not None:
        return table["stratum"].astype(str)
    classes_of_case, shares = [], []
    for row in table.itertuples(index=False):
        mask = load_mask(comp, row)
        if comp.labels == "exclusive":
            present = [bool((mask == value).any()) for value in range(1, len(comp.classes) + 1)]
        else:
            present = [bool((channel == 1).any()) for channel in mask]
        foreground = ((mask > 0) & (mask != IGNORED)).any(axis=0)
        classes_of_case.append("".join("01"[is_present] for is_present in present))
        shares.append(float(foreground.mean()))
    sizes = np.array(shares)
    borders = np.quantile(sizes[sizes > 0], [1 / 3, 2 / 3]) if (sizes > 0).any() else np.zeros(2)
    thirds = np.searchsorted(borders, sizes)
    names = [
        f"{classes}:{third}" if size > 0 else "empty"
        for classes, third, size in zip(classes_of_case, thirds, sizes, strict=True)
    ]
    return pandas.Series(names, index=table.index)


# Leaks


def check_leaks(table: pandas.DataFrame, folds: pandas.DataFrame) -> None:
    """Check that no two folds share a group or an image.

    Args:
        table: the case table.
        folds: columns id and fold.

    Raises:
        MaskfoldError: a group, or one image under two ids, is in two folds (exit status 2).
    """
    fold_of = {str(case_id): int(number) for case_id, number in zip(folds["id"], folds["fold"], strict=True)}
    first_case: dict[str, str] = {}
    for case_id, group in zip(table["id"], table["group"], strict=True):
        first = first_case.setdefault(str(group), str(case_id))
        if fold_of[first] != fold_of[case_id]:
            raise _leak(f"The group {group} is", first, case_id, fold_of)
    for ids in find_duplicates(table):
        for case_id in ids[1:]:
            if fold_of[case_id] != fold_of[ids[0]]:
                raise _leak("One image with two ids is", ids[0], case_id, fold_of)


def _leak(what: str, case_a: str, case_b: str, fold_of: dict[str, int]) -> MaskfoldError:
    return MaskfoldError(
        f"{what} in two folds: case {case_a} is in fold {fold_of[case_a]}, and case {case_b} is in fold "
        f"{fold_of[case_b]}.",
        "Put both cases into the same fold.",
        status=2,
    )


# Files of folds


def write_folds(folds: pandas.DataFrame, path: str | Path) -> None:
    """Write the columns id, fold and group atomically as a CSV, with the same bytes (LF line ends) on every machine.

    Args:
        folds: as `split` returns them.
        path: path of the file; its folder is created if needed.

    Raises:
        MaskfoldError: the disk is full, or fails in another way.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = folds if "group" in folds.columns else folds.assign(group=folds["id"])
    write_table(table[["id", "fold", "group"]], path)


def read_folds(path: str | Path) -> pandas.DataFrame:
    """Read a fold file that `write_folds` wrote.

    Returns:
        Columns id (str), fold (int) and group (str; the id if the file has no such column), in the file's order.

    Raises:
        MaskfoldError: the file is missing or broken, or a row is invalid.
    """
    import pandas

    rows = _read_rows(Path(path))
    return pandas.DataFrame(rows, columns=["line", "id", "fold", "group"]).drop(columns="line")


def folds_from_file(path: Path, ids: list[str], excluded: Sequence[str] = (), is_selection: bool = False) -> list[int]:
    """Read the fold of each case from a file that lists each case exactly once.

    Args:
        path: the file.
        ids: ids of the cases.
        excluded: ids of other cases, whose rows are ignored.
        is_selection: whether `ids` are only the cases that `train.cases` lists. If so, the rows of all other cases are
            ignored.

    Raises:
        MaskfoldError: a case is missing or unknown, or there is no case to train on or to validate (exit status 2).
    """
    ignored, known = set(excluded), set(ids)
    rows = [row for row in _read_rows(path) if row[1] not in ignored and (row[1] in known or not is_selection)]
    fold_of = {case_id: fold for _, case_id, fold, _ in rows}
    missing = [case_id for case_id in ids if case_id not in fold_of]
    if missing:
        raise MaskfoldError(
            f"{path} has no row for the case {missing[0]}{and_more(len(missing), 1, 'case')}.",
            "Add a row for every case.",
            status=2,
        )
    for line, case_id, _, _ in rows:
        if case_id not in known:
            raise MaskfoldError(
                f"{path}, line {line}: no case has the id {case_id}{nearest_hint(case_id, ids)}.",
                "Correct the id, or remove the row.",
                status=2,
            )
    numbers = set(fold_of.values())
    validated = sorted(number for number in numbers if number >= 0)
    if validated != list(range(len(validated))) or not validated:
        raise MaskfoldError(
            f"Invalid fold numbers in {path}: found {', '.join(map(str, sorted(numbers)))}, expected 0, 1, 2, … "
            "without a gap, and -1 for cases that are never validated.",
            "Renumber the folds, so that they start at 0 and no number is missing.",
            status=2,
        )
    if validated == [0] and -1 not in numbers:
        raise MaskfoldError(
            f"{path} has every case in fold 0, so no case is left to train on.",
            "Add a second fold, or give the cases that only train the fold -1.",
            status=2,
        )
    return [fold_of[case_id] for case_id in ids]


def _read_rows(path: Path) -> list[tuple[int, str, int, str]]:
    """Return (line in the file, id, fold, group) of each row."""
    table = read_csv(path, {"id": "id", "fold": "fold"})
    groups = table["group"] if "group" in table.columns else table["id"]
    first_line: dict[str, int] = {}
    rows = []
    for line, case_id, fold, group in zip(table.index, table["id"], table["fold"], groups, strict=True):
        if not case_id or case_id in first_line:
            what = f"repeats the id {case_id} of line {first_line[case_id]}" if case_id else "has no id"
            raise MaskfoldError(f"{path}, line {line} {what}.", "Keep one row for each case.", status=2)
        first_line[case_id] = line
        if not fold.removeprefix("-").isdecimal() or int(fold) < -2:
            raise MaskfoldError(
                f"{path}, line {line}: invalid fold of the id {case_id}: found `{fold}`, expected a whole number of "
                "at least -2.",
                "Write 0, 1, … for validated folds, -1 for cases that are only trained on, -2 for held-out cases.",
                status=2,
            )
        rows.append((int(line), case_id, int(fold), group))
    return rows
