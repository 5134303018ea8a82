"""Run `maskfold clean`, which frees disk space."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from competition.cli.console import confirm_or_exit, exit_on_signal, format_columns, plain_printer
from competition.text import format_count

if TYPE_CHECKING:
    from competition.cleaning.candidates import Candidate

HEADER = ("what", "path", "frees", "last change", "reason")
SHOWN_CASES = 20  # maximum number of runs that are printed with the reason why they stay


@exit_on_signal("stopped: some files may already be deleted; to delete the others, run the same command again")
def clean_command(dry_run: bool, older_than: str, keep_best: int | None, yes: bool) -> None:
    """Run `maskfold clean`; see `competition.cli.commands_runs.clean`."""
    from competition.cleaning.candidates import find_candidates, parse_age
    from competition.cleaning.deletion import delete, freed_bytes
    from competition.io import as_disk_error

    console = Console(highlight=False)
    say = plain_printer(console)
    age = parse_age(older_than)
    plan = find_candidates(Path(), age, keep_best)
    for note in plan.notes:
        say(f"note: {note}")
    for path, reason in plan.kept[:SHOWN_CASES]:
        say(f"kept: {path}, because {reason}")
    if len(plan.kept) > SHOWN_CASES:
        say(f"kept: {format_count(len(plan.kept) - SHOWN_CASES, 'more run')}")
    if not plan.candidates:
        say(f"Nothing to delete: each file is needed, or has changed within the time of --older-than ({older_than}).")
        return
    rows = [candidate_cells(candidate, freed_bytes(candidate.paths)) for candidate in plan.candidates]
    _print_table(console, rows)
    size = format_bytes(freed_bytes(path for candidate in plan.candidates for path in candidate.paths))
    found = f"all files in the table ({format_count(len(rows), 'row')}, {size})"
    if dry_run:
        say(f"without --dry-run, the command deletes {found}; nothing was deleted")
        return
    confirm_or_exit(
        f"Delete {found}?",
        yes,
        "Add --yes to delete these files without a question, or --dry-run to only list them.",
        "Nothing was deleted.",
    )
    # While the user answers, a new submission may name a run of the list, or a process may begin to work in it.
    still = {candidate.paths for candidate in find_candidates(Path(), age, keep_best).candidates}
    freed = 0
    for candidate in plan.candidates:
        bytes_of_candidate = freed_bytes(candidate.paths)
        try:
            is_deleted = candidate.paths in still and delete(candidate)
        except OSError as error:
            raise as_disk_error(error, candidate.paths[0]) or error from error
        if is_deleted:
            freed += bytes_of_candidate
        else:
            say(f"kept: {candidate.name}, because it changed or was used while the command waited for your answer")
    say(f"Freed {format_bytes(freed)}")


def candidate_cells(candidate: Candidate, size: int) -> tuple[str, ...]:
    """Return the table cells of a run, cache or file that `maskfold clean` may delete; `size` is in bytes."""
    days = max(0.0, time.time() - candidate.changed) / 86_400
    age = f"{days:.0f} days ago" if days >= 2 else f"{24 * days:.0f} h ago"
    return (candidate.kind, candidate.name, format_bytes(size), age, candidate.reason)


def format_bytes(size: int) -> str:
    """Format a size, e.g. `1.4 GiB`, `12 KiB`."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "bytes" and value < 10 else f"{value:,.0f} {unit}"


def _print_table(console: Console, rows: Sequence[Sequence[str]]) -> None:
    if console.is_terminal:
        table = Table()
        for name in HEADER:
            table.add_column(name, justify="right" if name == "frees" else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    for line in format_columns(HEADER, rows):
        plain_printer(console)(line)
