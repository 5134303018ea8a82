"""Cases whose images are the same, byte for byte: they must not be torn apart by a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def duplicates(table: pandas.DataFrame) -> list[list[str]]:
    """Ids that share one image, each list sorted."""
    if "image_hash" not in table.columns:
        return []
    sets = table.groupby("image_hash", sort=False)["id"].apply(lambda ids: sorted(map(str, ids)))
    return sorted(ids for ids in sets if len(ids) > 1)


def conflicting(table: pandas.DataFrame) -> list[list[str]]:
    """Those of the duplicates whose masks differ."""
    content = dict(zip(table["id"], table["hash"], strict=True))
    return [ids for ids in duplicates(table) if len({content[case_id] for case_id in ids}) > 1]


def units(table: pandas.DataFrame) -> list[str]:
    """What a split may not tear apart: cases of one group, and groups that share an image.

    Args:
        table: the case table.

    Returns:
        For each case the name of its unit, which is the first (in sorted order) of the groups in it.
    """
    group = {str(case_id): str(name) for case_id, name in zip(table["id"], table["group"], strict=True)}
    parent = {name: name for name in group.values()}

    def top(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for ids in duplicates(table):
        tops = sorted({top(group[case_id]) for case_id in ids})
        for other in tops[1:]:
            parent[other] = tops[0]
    return [top(group[str(case_id)]) for case_id in table["id"]]
