"""`maskfold explore`: the tables on the terminal, and where the page is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from competition.cli.progress import watcher
from competition.cli.words import stoppable
from competition.config import load_competition

if TYPE_CHECKING:
    from competition.data.explore import Exploration, Finding

MOST_OF_A_KIND = 20  # findings on the terminal; the page and findings.csv have all


@stoppable("stopped: no page was written")
def explore_competition(file: Path, overrides: list[str], output: Path | None) -> None:
    """Run the command; see `competition.cli.main.explore`. Leaves with status 1 where the data have faults."""
    comp = load_competition(file, [word.removeprefix("competition.") for word in overrides])
    console = Console(highlight=False)

    from competition.data.explore import explore
    from competition.report.explore import write_exploration
    from competition.report.page import place_pictures

    page = output or Path("reports") / f"{comp.name}.html"
    place_pictures(page)  # a name that cannot be is refused now, not after all has been read
    found = explore(comp, watcher(console, "cases read"))
    write_exploration(found, page)
    _print_tables(console, found)
    _say(console, "")
    _print_findings(console, found.faults, "fault")
    _print_findings(console, found.remarks, "remark")
    if found.snippet:
        _say(
            console,
            f"\nSuggested for a first experiment (also {page.with_suffix('')}/suggested.yaml):\n\n{found.snippet}",
        )
    _say(
        console,
        f"{page}: the page, whole in itself; pictures, cases.csv and findings.csv are in {page.with_suffix('')}",
    )
    _say(console, f"faults: {len(found.faults)}, remarks: {len(found.remarks)}")
    if found.faults:
        sys.exit(1)


def _print_tables(console: Console, found: Exploration) -> None:
    from competition.data.explore import summary

    _print(console, found.comp.name, ["", "train", "test"], summary.overview(found))
    _print(console, "truth", ["", "train"], summary.truth_rows(found))
    _print(console, "classes", summary.class_header(found), summary.class_rows(found))
    _print(console, "foreground against background", summary.CONTRAST_HEADER, summary.contrast_rows(found))


def _print(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere plain columns."""
    if not rows:
        return
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        _say(console, f"\n{title}")
        for row in (header, *rows):
            _say(console, "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(title=escape(title))
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 or len(header) < 4 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _print_findings(console: Console, findings: Sequence[Finding], word: str) -> None:
    """A line each: what is wrong, and what to do; of very many of one kind the first."""
    shown: Counter[str] = Counter()
    for one in findings:
        shown[one.kind] += 1
        if shown[one.kind] <= MOST_OF_A_KIND:
            colour = "red" if word == "fault" else "yellow"
            console.print(f"[{colour}]{word} ({one.kind})[/]: {escape(one.wrong)} {escape(one.cure)}", soft_wrap=True)
    for kind, count in shown.items():
        if count > MOST_OF_A_KIND:
            _say(console, f"{word} ({kind}): and {count - MOST_OF_A_KIND} more, in findings.csv")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
