"""The command `maskfold init`, which recognises a folder and writes its two YAML files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from competition.cli.console import exit_on_signal, plain_printer, progress_bar
from competition.errors import MaskfoldError

MAX_FAULTS = 20  # faults that are printed; `maskfold explore` lists all


@exit_on_signal("stopped: no YAML was written")
def init_command(
    folder: Path, name: str | None, layout: int | None, minutes: float | None, folds: int | None, force: bool
) -> None:
    """Run the command; see `competition.cli.main.init`. Exit with status 1 if the data have faults."""
    from competition.planning.init import Options, counts_of, initialise, remarks_of

    console = Console(highlight=False)
    say = plain_printer(console)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise MaskfoldError(f"--minutes: found {minutes}, expected a positive number.", "Correct --minutes.", status=2)
    if folds is not None and folds < 2:
        raise MaskfoldError(f"--folds: found {folds}, expected at least 2.", "Correct --folds.", status=2)
    ask = _ask if sys.stdin.isatty() and sys.stdout.isatty() else None
    done = initialise(folder, Options(name, layout, minutes, folds, force), ask, progress_bar(console, "cases read"))
    comp, faults = done.exploration.comp, done.exploration.faults
    say(f"{folder}: {done.layout.name}: {done.layout.summary}")
    say(f"{counts_of(done)}; classes: {', '.join(comp.classes)}")
    for remark in remarks_of(done):
        say(remark)
    for fault in faults[:MAX_FAULTS]:
        say(f"fault ({fault.kind}): {fault.message} {fault.hint}")
    if len(faults) > MAX_FAULTS:
        say(f"{len(faults) - MAX_FAULTS} more faults: maskfold explore {shlex.quote(str(done.competition))}")
    say(f"written: {done.competition}" + (f", {done.experiment}" if done.experiment else ""))
    if faults or done.experiment is None:
        say(f"Correct the data or the YAML, then: maskfold explore {shlex.quote(str(done.competition))}")
        sys.exit(1)
    say(f"Next: maskfold cv {shlex.quote(str(done.experiment))}")


def _ask(lines: Sequence[str]) -> int:
    """Show numbered candidates, and return the number that the user enters."""
    typer.echo(f"The folder can be read in {len(lines)} ways:")
    for line in lines:
        typer.echo(line)
    while True:
        number: int = typer.prompt("Which one (number)", type=int)
        if 1 <= number <= len(lines):
            return number
        typer.echo(f"Enter a number from 1 to {len(lines)}.")
