"""Select the cases to use (`train.cases`, `test.cases`) or to leave out (`train.exclude`), and read case weights.

`SkippedCases` collects the bad cases that `on_bad_case: skip` leaves out.

`train.exclude` and `train.weights` may name the CSV of `maskfold review`, in which the user has filled the columns
`exclude` and `weight`. Instead of naming a CSV, `train.cases`, `test.cases` and `train.exclude` may list ids directly,
and `train.weights` may map ids to weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.tables import read_csv
from competition.text import format_count, nearest_hint

if TYPE_CHECKING:
    import pandas

EXCLUDE, WEIGHT = "exclude", "weight"  # columns of the CSV
MARKS, NO_MARKS = ("x", "y", "yes", "true", "1"), ("", "n", "no", "false", "0")
MAX_WEIGHT = 100.0
log = logging.getLogger(__name__)


def select_training_cases(comp: Competition, ids: list[str]) -> tuple[list[str], list[str]]:
    """Select the training cases by `train.cases` and `train.exclude`.

    Args:
        comp: the competition.
        ids: sorted ids of all cases that have images.

    Returns:
        Two sorted lists: the ids of the selected cases, and the ids that `train.exclude` leaves out.

    Raises:
        MaskfoldError (exit status 2): a table cannot be read or lists a case that has no image, or no case is left.
    """
    excluded = excluded_ids(comp, ids)
    listed = set(_listed_cases(comp, ids))
    selected = [case_id for case_id in ids if case_id in listed and case_id not in excluded]
    left_out = [case_id for case_id in ids if case_id in listed and case_id in excluded]
    if left_out and not selected:
        raise MaskfoldError(
            f"train.exclude leaves out {format_count(len(left_out), 'case')}, so no case is left.",
            "Exclude fewer cases.",
            status=2,
        )
    return selected, left_out


def _listed_cases(comp: Competition, ids: list[str]) -> list[str]:
    """Return the cases that `train.cases` lists; all cases if the key is not set."""
    return ids if comp.train.cases is None else _known_ids(comp, comp.train.cases, "train.cases", ids)


def select_test_cases(comp: Competition, ids: list[str]) -> list[str]:
    """Select the test cases by `test.cases`.

    Args:
        comp: the competition, with a section `test`.
        ids: sorted ids of all cases that match `test.images`.

    Raises:
        MaskfoldError: as for `select_training_cases`.
    """
    if comp.test is None or comp.test.cases is None:
        return ids
    listed = set(_known_ids(comp, comp.test.cases, "test.cases", ids))
    return [case_id for case_id in ids if case_id in listed]


def listed_test_cases(comp: Competition) -> list[str] | None:
    """Return the ids in the list `test.cases`, or in the CSV that it names; None if the key is not set."""
    if comp.test is None or comp.test.cases is None:
        return None
    return _listed_ids(comp, comp.test.cases, "test.cases")[0]


def _known_ids(comp: Competition, cases: str | list[str], key: str, ids: list[str]) -> list[str]:
    """Return the ids in the list or CSV of a key; raise `MaskfoldError` if one of these ids is not in `ids`."""
    listed, source = _listed_ids(comp, cases, key)
    for name in listed:
        if name not in ids:
            raise MaskfoldError(
                f"{source}: no case has the id {name}{nearest_hint(name, ids)}.",
                "Correct the id, or remove it from the list.",
                status=2,
            )
    return listed


def _listed_ids(comp: Competition, cases: str | list[str], key: str) -> tuple[list[str], str]:
    """Return the ids that a key lists, and the key or file that lists them."""
    if not isinstance(cases, str):
        return list(cases), key
    path = _find(comp, cases)
    table, column = _read(comp, path)
    return table[column].tolist(), f"{key} ({path})"


def excluded_ids(comp: Competition, ids: Iterable[str]) -> set[str]:
    """Return the ids of the training cases that `train.exclude` leaves out.

    Args:
        comp: the competition.
        ids: ids of all cases that have images.

    Raises:
        MaskfoldError (exit status 2): the table cannot be read, a cell of the column `exclude` is neither yes nor no,
            or an id is unknown.
    """
    listed = comp.train.exclude
    if listed is None:
        return set()
    if not isinstance(listed, str):
        found, source = set(listed), "train.exclude"
    else:
        path = _find(comp, listed)
        (table, column), source = _read(comp, path), f"train.exclude ({path})"
        marked = table if EXCLUDE not in table.columns else table[_marks(table, path)]
        found = set(marked[column])
    _check_known(found, ids, source)
    return found


def case_weights(comp: Competition, ids: Iterable[str]) -> dict[str, str]:
    """Return the weight of each case whose weight in `train.weights` is not 1, as text without trailing zeros.

    Args:
        comp: the competition.
        ids: ids of all cases that have images.

    Raises:
        MaskfoldError (exit status 2): the table cannot be read, a weight is not a number in (0, 100], a case has two
            weights, or an id is unknown.
    """
    listed = comp.train.weights
    if listed is None:
        return {}
    if not isinstance(listed, str):
        source, texts = "train.weights", {case: [format(weight, "g")] for case, weight in listed.items()}
    else:
        path = _find(comp, listed)
        source = f"train.weights ({path})"
        texts = {}
        table, column = _read(comp, path, WEIGHT)
        for case, text in zip(table[column], table[WEIGHT], strict=True):
            if text.strip():
                texts.setdefault(case, []).append(text.strip())
    if comp.train.cases is None:  # with a selection, the table may have weights of other cases
        _check_known(texts, ids, source)
    weights = {case: {_parse_weight(text, case, source) for text in found} for case, found in texts.items()}
    for case, found in weights.items():
        if len(found) > 1:
            raise MaskfoldError(
                f"{source} has several weights for the case {case}: {', '.join(f'{one:g}' for one in sorted(found))}.",
                "Write the same weight in all rows of the case, or in only one of them.",
                status=2,
            )
    return {case: format(next(iter(found)), "g") for case, found in weights.items() if found != {1.0}}


def read_answers(path: Path) -> dict[str, tuple[str, str]]:
    """Read the CSV of `maskfold review`; return, by case id, the columns exclude and weight as the user filled them.

    Cases for which the user has filled neither column are omitted.

    Raises:
        MaskfoldError: the file is not the CSV of a review.
    """
    table = read_csv(path, {"id": "id"})
    if missing := [name for name in (EXCLUDE, WEIGHT) if name not in table.columns]:
        raise MaskfoldError(
            f"{path} exists already and has no column `{missing[0]}`, so it is not the CSV of a review and is not "
            "overwritten.",
            "Choose another path for the HTML page with -o (the CSV gets the same name), or move the file.",
            status=2,
        )
    answers: dict[str, tuple[str, str]] = {}
    for case, exclude, weight in zip(table["id"], table[EXCLUDE], table[WEIGHT], strict=True):
        former = answers.get(case, ("", ""))
        new = exclude.strip() or former[0], weight.strip() or former[1]
        if any(new):
            answers[case] = new
    return answers


def _find(comp: Competition, name: str) -> Path:
    path = Path(name)
    return Path(comp.root) / path if not path.exists() and (Path(comp.root) / path).exists() else path


def _read(comp: Competition, path: Path, *columns: str) -> tuple[pandas.DataFrame, str]:
    """Read a CSV of ids, and return its table and the name of the column with the ids.

    The key `train.columns.id` names this column. But the key describes the table of run lengths, so another CSV may
    lack the column. Then the ids are in the column `id`, as in the CSV of a review.
    """
    table = read_csv(path, {name: name for name in columns})
    column = comp.train.columns.id
    if column not in table.columns and "id" not in table.columns:
        read_csv(path, {"train.columns.id": column})  # an error that names the columns of the file
    return table, column if column in table.columns else "id"


def _marks(table: pandas.DataFrame, path: Path) -> list[bool]:
    """Return, for each row, whether the user marked its case to be excluded."""
    marks = []
    for line, text in table[EXCLUDE].items():
        word = text.strip().lower()
        if word not in MARKS + NO_MARKS:
            raise MaskfoldError(
                f"{path}, line {line}, column `{EXCLUDE}`: found {text[:40]!r}, expected `x` or `yes` to exclude the "
                "case. To keep the case, write `no`, or leave the cell empty.",
                "Correct the cell.",
                status=2,
            )
        marks.append(word in MARKS)
    return marks


def _parse_weight(text: str, case: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_WEIGHT:
        raise MaskfoldError(
            f"{source}: the weight of the case {case} is {text[:40]!r}, expected a number above 0 and at most "
            f"{MAX_WEIGHT:g}.",
            "Correct the weight. To leave the case out, use train.exclude.",
            status=2,
        )
    return value


def _check_known(found: Iterable[str] | Mapping[str, object], ids: Iterable[str], source: str) -> None:
    known = set(ids)
    for case in sorted(set(found) - known):
        raise MaskfoldError(
            f"{source}: no case has the id {case}{nearest_hint(case, sorted(known))}.",
            "Correct the id, or remove the row.",
            status=2,
        )


# Bad cases


class SkippedCases:
    """Collect bad cases, or raise an error at the first bad case, as `competition.on_bad_case` sets.

    Attributes:
        allowed: whether `on_bad_case` is `skip`, so that bad cases are collected.
        reasons: reason for skipping each case, by id.
        excluded: ids of the cases that `train.exclude` leaves out.
    """

    def __init__(self, comp: Competition) -> None:
        self.allowed = comp.on_bad_case == "skip"
        self.reasons: dict[str, str] = {}
        self.excluded: list[str] = []

    def add(self, case_id: str, error: MaskfoldError) -> None:
        """Record a bad case if bad cases may be skipped.

        Raises:
            MaskfoldError: bad cases must not be skipped, so `error` is raised.
        """
        if not self.allowed:
            raise error
        self.reasons.setdefault(case_id, error.message)


def warn_skipped(table: pandas.DataFrame) -> pandas.DataFrame:
    """Log a warning for each skipped case, and return the table.

    Commands that do not list skipped cases call this function.
    """
    for case_id, reason in table.attrs.get("skipped", []):
        log.warning("Case %s is skipped: %s", case_id, reason)
    return table
