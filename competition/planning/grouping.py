"""Find groups and strata of the cases: a repeated beginning of the ids, or a column of one of the host's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.explore.findings import guess_group_rule
from competition.io import read_csv
from competition.planning.layout import Layout
from competition.planning.words import tokens, words
from competition.text import format_count

if TYPE_CHECKING:
    import pandas

GROUP_WORDS = words(
    "patient patients subject subjects person donor donors animal mouse case group individual participant pid"
)
STRATUM_WORDS = words("stratum strata diagnosis grade organ tissue stain cohort sex gender modality")
MAX_TABLE_BYTES = 2**27


def find_groups(layout: Layout) -> Layout:
    """Return the layout with the keys `group` and `stratum`, if ids or a table of the host define groups or strata."""
    group, group_reason = _from_tables(layout, GROUP_WORDS, _groups_several)
    stratum, stratum_reason = _from_tables(layout, STRATUM_WORDS, _is_stratum)
    if not group and (found := guess_group_rule(layout.ids)) is not None:
        group, counts = found
        example = next(name for name, count in counts.items() if count > 1)
        group_reason = (
            f"{format_count(len(counts), 'group')} by the beginning of the ids, such as {example} with "
            f"{format_count(counts[example], 'case')}; they stay in one fold"
        )
    if group:
        layout = layout.with_keys({"group": group}, {"group": group_reason})
    if stratum:
        layout = layout.with_keys({"stratum": stratum}, {"stratum": stratum_reason})
    return layout


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
            if name == ids or some.isdisjoint({*tokens(name), name.casefold().removesuffix("id").strip("_ ")}):
                continue
            values = dict(zip(table[ids], table[column], strict=True))
            plain = {strip_extension(case_id): value for case_id, value in values.items()}
            found = [values.get(case_id, plain.get(case_id, "")) for case_id in layout.ids]
            counts = Counter(found)
            if all(found) and accept(counts):
                return (
                    f"{path}:{name}",
                    f"the column {name} of {path}: {format_count(len(counts), 'value')} of "
                    f"{format_count(len(found), 'case')}",
                )
    return "", ""


def _groups_several(counts: Counter[str]) -> bool:
    return 2 <= len(counts) < sum(counts.values())


def _is_stratum(counts: Counter[str]) -> bool:
    return 2 <= len(counts) <= 10 and min(counts.values()) >= 2


def _id_column(table: pandas.DataFrame, ids: tuple[str, ...]) -> str | None:
    """Return the column with all training ids that the loader would choose: `id`, or the only complete column."""
    wanted = set(ids)
    complete = []
    for column in table.columns:
        values = set(table[column])
        if wanted <= values | {strip_extension(value) for value in values} and table[column].is_unique:
            complete.append(str(column))
    if "id" in table.columns:
        return "id" if "id" in complete else None
    return complete[0] if len(complete) == 1 else None
