"""`maskfold compare`: two runs, case by case."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from competition.cli.progress import watcher
from competition.cli.words import stoppable, words_and_overrides
from competition.config import MaskfoldError


@stoppable("stopped: nothing was written")
def compare_runs(words: list[str], output: Path | None, cases: int, trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.compare`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)
    if len(names) != 2:
        raise MaskfoldError(
            f"A comparison is of two runs, and {len(names)} {'is' if len(names) == 1 else 'are'} named.",
            "Name two: experiments' YAML files, runs' folders, or hashes.",
            status=2,
        )

    from competition.report.compare import HEADER, difference_cells, write_comparison
    from competition.submission.compare import compare
    from competition.training.find import find_run

    one, other = (find_run(name, overrides, trust, say) for name in names)
    folder = output or Path("reports") / f"compare-{one.folder.name}-{other.folder.name}"
    if folder.exists() and not folder.is_dir():
        raise MaskfoldError(f"{folder} is a file.", "Name a folder with -o.", status=2)
    found = compare(one, other, watcher(console, "cases compared"))
    for note in found.notes:
        say(note)
    say(f"{len(found.rows)} cases, out of fold; 95 %: paired bootstrap; p: Wilcoxon's signed-rank test")
    rows = [difference_cells(line, found) for line in found.differences]
    if console.is_terminal:
        table = Table()
        for place, name in enumerate(HEADER):
            table.add_column(name, justify="left" if place < 2 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
        for row in (HEADER, *rows):
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    page = write_comparison(found, folder, cases, say)
    changed = found.most_changed(cases)
    if changed:
        say("Changed most: " + ", ".join(f"{case} {change:+.4f}" for case, change in changed))
    say(f"{page}{': the pictures too' if changed else ''}; each case and class is in {folder / 'cases.csv'}")
