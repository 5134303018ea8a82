"""Find images that belong to a table of run lengths.

Tables of known competitions are recognised by their header and ids, other tables by their content.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from competition.data.patterns import match_cases, slice_aliases
from competition.data.readers import strip_extension
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout, first_path
from competition.planning.layouts.content import Role, dimensions_of
from competition.planning.layouts.matching.held_out import find_test
from competition.planning.layouts.series import MOST, Series
from competition.planning.layouts.tables import (
    MIN_SHARE,
    RunTable,
    collect_runs,
    find_base,
    find_overlap,
    find_profile,
    is_relative,
    read_run_table,
    vote_order,
)
from competition.text import format_count, name_problem


def find_run_tables(
    host: HostFolder, series: Sequence[Series], roles: dict[str, Role], test_series: Sequence[Series]
) -> list[Layout]:
    """Find the layouts in which a table of run lengths belongs to the images of a series.

    Args:
        host: the scanned folder.
        series: result of `find_series`.
        roles: role of each series, by pattern.
        test_series: series that may hold the test images.
    """
    images = [
        item for item in series if roles[item.pattern] == "image" and item.kind != "objects" and item.split != "test"
    ]
    names = {item.pattern: _names(host, item) for item in images}
    found = []
    for path in host.tables:
        table = read_run_table(host.root, path, set().union(*names.values())) if names else None
        if table is None:
            continue
        for item in _named_by(table, images, names):
            found += _layouts(host, item, table, test_series)
    return _prefer_stacks(found)


def _named_by(table: RunTable, images: Sequence[Series], names: dict[str, set[str]]) -> list[Series]:
    """Return the series of images that contain the cases of a table.

    If several series of one folder contain cases of the table, only the series with the largest share of such cases is
    returned.
    """
    wanted = {name for name, _, _ in table.rows}
    best: dict[str, tuple[float, Series]] = {}
    for item in images:
        known = names[item.pattern]
        matched = sum(name in known or strip_extension(name) in known for name in wanted)
        if matched >= MIN_SHARE * len(wanted):
            place = f"{item.origin} {item.kind} {item.extension}" if item.origin else item.pattern
            share = matched / len(item.ids)
            if place not in best or share > best[place][0]:
                best[place] = (share, item)
    return [item for _, item in best.values()]


def _names(host: HostFolder, series: Series) -> set[str]:
    """Return the names by which a table may refer to the cases or slices of a series."""
    if series.kind != "stack":
        return {strip_extension(case_id) for case_id in series.files} | set(series.files)
    cases = match_cases(host.root, series.pattern, "train.images")
    return {name for case_id, case in cases.items() for item in case.slices for name in slice_aliases(case_id, item)}


def _prefer_stacks(layouts: list[Layout]) -> list[Layout]:
    """Drop layouts that read slices as 2D cases, if another layout reads them as stacks with the same table."""
    stacked = {layout.keys["train.rle"] for layout in layouts if layout.dimensions == 3}
    return [layout for layout in layouts if layout.dimensions == 3 or layout.keys["train.rle"] not in stacked]


def _layouts(host: HostFolder, series: Series, table: RunTable, test_series: Sequence[Series]) -> list[Layout]:
    dimensions = 3 if series.kind == "stack" else dimensions_of(first_path(host, series))
    sample_header = next((header for path in _samples(host) if (header := _header(host, path))), None)
    profile = find_profile(table, sample_header)
    with_rows = {name for name, _, _ in table.rows}
    layout = Layout(
        "a table of run lengths",
        host,
        len(series.ids),
        series.pattern,
        dimensions,
        keys={"train.rle": table.path},
        reasons={
            "train.images": format_count(len(series.ids), "case"),
            "train.rle": (
                f"{format_count(len(table.rows), 'row')} of {format_count(len(with_rows), 'id')}; the column "
                f"`{table.mask}` has run lengths, and the column `{table.id}` has the names of the images"
            ),
            "dimensions": "a case is a stack of slices"
            if series.kind == "stack"
            else f"the files are {'2D images' if dimensions == 2 else 'volumes'}",
        },
        ids=tuple(sorted(series.ids)),
    )
    named = {strip_extension(name) for name in with_rows} | with_rows
    without = [case_id for case_id in series.ids if case_id not in named and strip_extension(case_id) not in named]
    if without and series.kind == "single":
        layout = replace(layout, unlabelled=tuple(sorted(without))).with_remarks(blank_remark(without, table.path))
    layout = find_test(host, layout, test_series)
    if profile is not None:
        keys: dict[str, Any] = {
            "submission.profile": profile.name,
            "classes": list(profile.classes) or ["foreground"],
            "instances": profile.rows == "object",
        }
        reasons = {
            "submission.profile": "the table has the header and the form of ids of this competition",
            "classes": "the host's class names"
            if profile.classes
            else "the host does not name the class, so rename it",
            "instances": "a row for each object" if profile.rows == "object" else "a row for each image",
        }
        if profile.host_metric is not None:
            keys |= {f"metric.{key}": value for key, value in profile.host_metric.items()}
            reasons["metric.name"] = f"the metric of {profile.name}"
        layout = replace(layout, name=f"{layout.name}, profile {profile.name}", rank=0).with_keys(keys, reasons)
        return [_with_overlap(layout, table)]
    return [_with_overlap(item, table) for item in _by_content(layout, table, series)]


def blank_remark(ids: Sequence[str], table: str) -> str:
    """Return the remark on training images without a row in the table of run lengths."""
    return f"{format_count(len(ids), 'image')} without a row in {table}: read as images with an empty mask"


def _by_content(layout: Layout, table: RunTable, series: Series) -> list[Layout]:
    """Return the layouts for a table of an unknown competition: one for each pixel order that the data allow."""
    runs = collect_runs(layout.folder.root, series.pattern, layout.dimensions, table)
    relative = is_relative(runs)
    vote = vote_order(runs, relative)
    rows_of_case = len(table.filled) > len({(name, cls) for name, cls, _ in table.filled})
    classes = [str(cls) for cls in table.classes] or ["foreground"]
    keys: dict[str, Any] = {"classes": classes, "instances": rows_of_case}
    reasons = {
        "classes": f"values of the column `{table.cls}`"
        if table.cls
        else "the suffixes of the ids"
        if table.classes
        else "no file contains the name of the class, so rename it",
        "instances": "some images have several rows, so each row is an object"
        if rows_of_case
        else "each image has at most one row per class",
    }
    keys["columns"] = {"id": table.id, "class": table.cls, "mask": table.mask}
    remarks = (
        () if table.classes or rows_of_case else ("no file contains the name of the class, so rename it in `classes`",)
    )
    is_clear = vote.order is not None and vote.confidence >= MOST and (vote.cases >= 3 or vote.strong)
    orders: list[Literal["row", "column"]] = [vote.order] if is_clear and vote.order else ["column", "row"]
    found = []
    for order in orders:
        base, why = find_base(runs, order, relative)
        rle: dict[str, Any] = {"order": order, "base": base, "empty": table.empty} | (
            {"relative": True} if relative else {}
        )
        shown = (
            (
                f"{vote.votes} of {vote.cases} sampled cases indicate this order, because the runs of "
                "neighbouring lines fit together"
            )
            if is_clear
            else "chosen by you, because the data do not show the order"
        )
        reason = f"order: {shown}; base: {why or 'the data do not show it, most hosts count from 1'}"
        item = layout.with_keys(keys | {"rle": rle}, reasons | {"rle": reason}).with_remarks(*remarks)
        if not why:
            item = item.with_remarks(
                f"the data do not show whether the run lengths in {table.path} count pixels from 0 or from 1, so check "
                f"`base: {base}` in competition.yaml"
            )
        found.append(item if is_clear else replace(item, name=f"{item.name} in {order} order"))
    return found


def _with_overlap(layout: Layout, table: RunTable) -> Layout:
    classes = layout.keys["classes"]
    if any(name_problem(name) for name in classes):
        return layout
    if len(classes) == 1:
        return layout.with_keys({"labels": "exclusive"}, {"labels": "one class and the background"})
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, cls, text in table.filled:
        rows.setdefault(name, []).append((cls, text))
    case = find_overlap(rows)
    return layout.with_keys(
        {"labels": "overlapping" if case else "exclusive"},
        {"labels": f"classes share pixels, for example in {case}" if case else "no pixel is in two classes"},
    )


def _samples(host: HostFolder) -> list[str]:
    return [path for path in host.tables if "sample" in path.casefold() or "submission" in path.casefold()]


def _header(host: HostFolder, path: str) -> list[str]:
    with (host.root / path).open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        return next(csv.reader(stream), [])
