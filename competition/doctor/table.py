"""The doctor's table: drawn on a terminal, one line a row elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from competition.doctor.examination import examine
from competition.doctor.finding import Finding

STYLES = {"ok": "green", "warning": "yellow", "unusable": "bold red"}


def report(root: Path | None = None) -> int:
    """Examine the machine and print the table.

    Args:
        root: the folder that holds `mlruns/`; the working folder by default.

    Returns:
        The exit status: 1 if anything is unusable, else 0.
    """
    if sys.stderr.isatty():
        print("examining; importing every package takes a while …", file=sys.stderr)
    found = examine(root)
    show(found)
    print(verdict(found))
    return int(any(one.state == "unusable" for one in found))


def show(found: list[Finding]) -> None:
    """Print the rows."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.table import Table
        except ImportError:
            pass  # it is in the table, as missing
        else:
            table = Table(title="maskfold doctor")
            for name in ("what", "state", "found, and what to do"):
                table.add_column(name, no_wrap=name == "state")
            for one in found:
                table.add_row(escape(one.what), f"[{STYLES[one.state]}]{one.state}[/]", escape(one.text))
            Console(highlight=False).print(table)
            return
    width = max(len(one.what) for one in found)
    for one in found:
        print(f"{one.state:8}  {one.what:{width}}  {one.text}")


def verdict(found: list[Finding]) -> str:
    """The last line."""
    bad = {state: [one.what for one in found if one.state == state] for state in ("unusable", "warning")}
    parts = [f"{state}: {', '.join(names)}" for state, names in bad.items() if names]
    return "; ".join(parts) or "all is well"
