"""`maskfold score`: a file's score with its interval, per class, and per case on request."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from competition.cli.table import interval, number
from competition.config import MaskfoldError, load_competition

if TYPE_CHECKING:
    from competition.submission.score import ScoreCard


def score_file(file: Path, competition: Path, solution: Path | None, table: Path | None, overrides: list[str]) -> None:
    """Run the command; see `competition.cli.main.score`."""
    # The cures of other errors speak of competition.root, as an experiment calls it.
    comp = load_competition(competition, [word.removeprefix("competition.") for word in overrides])
    if table is not None and (table.is_dir() or table.resolve() in {one.resolve() for one in (file, solution) if one}):
        raise MaskfoldError(f"--table {table} would be written over what is there.", "Name another file.", status=2)

    from competition.submission.score import score_submission

    card = score_submission(file, comp, solution)
    console = Console(highlight=False)
    console.print(_shown(card, file.name))
    console.print(f"{card.metric}: {card.score:.10f}\ncases: {card.cases}", soft_wrap=True)
    if table is not None:
        from competition.training.checkpoint import write_table

        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(card.table, table)
        console.print(f"{table}: scores of each case and class", soft_wrap=True, markup=False)


def _shown(card: ScoreCard, name: str) -> Table:
    """Rows are the classes, then all together with the 95 % interval."""
    table = Table(title=escape(name))
    table.add_column("class")
    for column in (card.metric, "Dice"):
        table.add_column(column, justify="right", no_wrap=True)
    for cls, score in card.classes.items():
        table.add_row(cls, number(_known(score)), number(_known(card.dice[cls])))
    table.add_section()
    table.add_row("all", number(_known(card.score)), "")
    table.add_row("95 %", interval(_known(card.low), _known(card.high)), "")
    return table


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
