"""`maskfold doctor`: one table; status 1 if anything is unusable."""

from __future__ import annotations

import typer


def examine() -> None:
    """Run the command; see `competition.cli.main.doctor`."""
    from competition.doctor.table import report

    if status := report():
        raise typer.Exit(status)
