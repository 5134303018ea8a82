"""Find all layouts that fit a folder; if none fits, raise an error that describes the folder's content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from competition.errors import MaskfoldError
from competition.planning.classes.labels import read_labels_of
from competition.planning.folder import HostFolder
from competition.planning.grouping import find_groups
from competition.planning.layout import Layout, Patterns, role_of
from competition.planning.layouts.coco import find_coco
from competition.planning.layouts.content import Role
from competition.planning.layouts.described import find_described
from competition.planning.layouts.ends import find_ends
from competition.planning.layouts.nested.depths import mark_depths, mark_nested, scans_error
from competition.planning.layouts.nested.linked import link_equal_names, prefer_linked
from competition.planning.layouts.nested.sessions import find_sessions
from competition.planning.layouts.nested.sites import find_sites
from competition.planning.layouts.pairs import find_pairs
from competition.planning.layouts.pooled import pool_series
from competition.planning.layouts.run_lengths import find_run_tables
from competition.planning.layouts.series import Series, find_series, has_slice_name
from competition.planning.refusals import BY_HAND, no_layout_error, packed_archive
from competition.planning.sample import add_submission
from competition.text import format_count

SPREADSHEETS = (".xlsx", ".xls", ".ods")
MAX_SERIES = 500  # a folder with more series of files has no known layout, and comparing them would take minutes


def find_layouts(host: HostFolder) -> list[Layout]:
    """Return every layout that fits a folder, with its classes, groups and submission format.

    Raises:
        MaskfoldError (exit status 2): no layout fits, or no layout that fits has masks that can be read. If no layout
            fits, the message describes the folder.
    """
    found = find_described(host)
    series: list[Series] = []
    roles: dict[str, Role] = {}
    if not found:
        series, roles = _find_series(host)
        tests = [item for item in series if roles[item.pattern] == "image" and item.kind != "objects"]
        pairs = mark_depths(mark_nested(find_pairs(host, series, roles)))
        found = [*pairs, *_find_linked(host, pairs), *find_run_tables(host, series, roles, tests), *find_coco(host)]
    if not found:
        raise no_layout_error(host, series, roles)
    readings, errors = [], []
    for layout in found:
        try:
            readings += read_labels_of(layout)
        except MaskfoldError as error:
            errors.append(error)
    if not readings:
        raise errors[0]
    best = min(layout.rank for layout in readings)
    why = "not used, because a table of run lengths has the form of a known competition"
    unused = [f"{layout.name} ({layout.summary}): {why}" for layout in readings if layout.rank > best]
    readings = [replace(layout, notes=(*layout.notes, *unused)) for layout in readings if layout.rank == best]
    remarks = _remarks_on(host)
    return [item.with_remarks(*remarks) for layout in readings for item in add_submission(find_groups(layout))]


def _find_series(host: HostFolder) -> tuple[list[Series], dict[str, Role]]:
    """Return all series of a folder, and a dictionary from the pattern of each series to its role (image, mask, …)."""
    series = find_series(host)
    series += find_sessions(host, series) + find_ends(series) + find_sites(host)
    if len(series) > MAX_SERIES:
        raise scans_error(host) or MaskfoldError(
            f"{host.root} has more than {MAX_SERIES} kinds of file names, such as {series[0].pattern}, so "
            "the data set was not recognised.",
            f"Give the folder that contains only the training data. {BY_HAND}",
            status=2,
        )
    roles = {item.pattern: role_of(host, item) for item in series}
    pooled = pool_series(host, series, roles)
    roles |= {item.pattern: roles[item.members[0]] for item in pooled}
    return series + pooled, roles


def _find_linked(host: HostFolder, pairs: Sequence[Layout]) -> list[Layout]:
    """Return the layouts in which files of equal names in several folders are different cases.

    Return an empty list if `pairs` is empty, if the advice of one of its layouts already has a command that makes
    links, or if the names of the files say that they are slices.

    Args:
        host: the scanned folder.
        pairs: the layouts in which masks belong to images by their names; see `find_pairs`.
    """
    are_slices = any("{z}" in _first(layout.images) and has_slice_name(_first(layout.images)) for layout in pairs)
    linked = None if not pairs or are_slices or any(layout.advice for layout in pairs) else link_equal_names(host)
    if linked is None:
        return []
    series, roles = _find_series(linked)
    return prefer_linked(pairs, find_pairs(linked, series, roles))


def _first(patterns: Patterns) -> str:
    return patterns if isinstance(patterns, str) else next(iter(patterns.values()))


def _remarks_on(host: HostFolder) -> list[str]:
    """Return remarks on links whose target is missing, on archives that are still packed, and on spreadsheets."""
    remarks = []
    if host.broken:
        remarks.append(
            f"{format_count(len(host.broken), 'link')}, such as {host.broken[0]}: not read, because the target of each "
            "link is missing. If git-annex or DataLad manages the data, get the content of the files and run init again"
        )
    if (archive := packed_archive(host)) is not None:
        remarks.append(
            f"{archive} is packed: if it contains files that are not in this folder, unpack it and run init again"
        )
    if (sheet := next((path for path in host.files if path.lower().endswith(SPREADSHEETS)), None)) is not None:
        remarks.append(
            f"{sheet} is not read: if it has a column of patients, save it as a CSV file in this folder and run init "
            "again, so that no patient is in two folds"
        )
    return remarks
