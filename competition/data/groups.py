"""The group (patient, scanner, …) and the stratum of each case, by a rule of the competition's YAML."""

from __future__ import annotations

import re
from pathlib import Path

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.csv_table import read_csv
from competition.data.readers import stem

FILE_RULE = re.compile(r"(?P<file>[^:]+\.csv):(?P<column>.+)", re.IGNORECASE)


def values(comp: Competition, ids: list[str], key: str) -> list[str] | None:
    """Applies `competition.group` or `competition.stratum`.

    Args:
        comp: what the host gave.
        ids: of the cases.
        key: group or stratum.

    Returns:
        One text per id; None where the YAML has no such rule.

    Raises:
        MaskfoldError: the rule is wrong (status 2), or gives nothing for a case.
    """
    rule = getattr(comp, key)
    if rule is None:
        return None
    table = FILE_RULE.fullmatch(rule)
    if table:
        return _from_table(Path(comp.root) / table["file"], table["column"], comp, ids, key)
    return _from_ids(rule, ids, key)


def known(comp: Competition, ids: list[str]) -> dict[str, str]:
    """The group of each id that `competition.group` knows; ids that it does not know are left out.

    Args:
        comp: what the host gave.
        ids: of any images, such as ones without labels.
    """
    try:
        return dict(zip(ids, values(comp, ids, "group") or [], strict=False))
    except MaskfoldError:
        return {} if len(ids) == 1 else {case_id: group for one in ids for case_id, group in known(comp, [one]).items()}


def _from_ids(rule: str, ids: list[str], key: str) -> list[str]:
    """The first group of a regular expression, or all that it matches, of each id."""
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise MaskfoldError(f"competition.{key} `{rule}` is not a regular expression ({error}).",
                            "Correct it, or write `file.csv:column`.", status=2) from error
    found = []
    for case_id in ids:
        match = expression.search(case_id)
        text = match and match.group(1 if expression.groups else 0)
        if not text:
            raise MaskfoldError(f"competition.{key} `{rule}` finds nothing in the id {case_id}.",
                                f"Correct the expression so that it gives every case its {key}.", status=2)
        found.append(text)
    return found


def _from_table(path: Path, column: str, comp: Competition, ids: list[str], key: str) -> list[str]:
    """A column of a table with one row per case; ids may carry the file's extension."""
    table = read_csv(path, {f"competition.{key}": column})
    ids_in = "id" if "id" in table.columns else comp.train.columns.id
    read_csv(path, {"a column `id` in that table, or train.columns.id": ids_in})
    rows: dict[str, tuple[int, str]] = {}
    for line, name, value in zip(table.index, table[ids_in], table[column], strict=True):
        for alias in {name, stem(name)}:
            other = rows.setdefault(alias, (line, value))
            if other[1] != value:
                raise MaskfoldError(f"{path} gives the id {name} the {key} {other[1]} in line {other[0]} and {value} "
                                    f"in line {line}.", "Keep one of the rows.")
    for case_id in ids:
        if not rows.get(case_id, (0, ""))[1]:
            raise MaskfoldError(f"{path} gives the id {case_id} no {key} (column `{column}`).",
                                "Add a row for every training case.")
    return [rows[case_id][1] for case_id in ids]
