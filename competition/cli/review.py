"""The command `maskfold review`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from competition.cli.console import (
    exit_on_signal,
    format_columns,
    plain_printer,
    split_runs_and_overrides,
    terminal_bar,
)
from competition.context import Context
from competition.errors import MaskfoldError
from competition.text import format_count

SHOWN = 10  # findings that the command prints


@exit_on_signal("stopped: nothing was written")
def review_command(words: list[str], output: Path | None, pictures: int, trust: tuple[str, ...]) -> None:
    """Run `maskfold review`; `competition.cli.main.review` describes the arguments."""
    console = Console(highlight=False)
    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    if len(names) != 1:
        raise MaskfoldError(f"maskfold review: found {len(names)} runs, expected 1.", "Name one run.", status=2)

    from competition.report.review import check_review_output, describe, write_review
    from competition.review.search import review_run
    from competition.runs.find import find_run

    run = find_run(names[0], overrides, trust, say)
    page = output or Path("reports") / f"review-{run.name}-{run.folder.name}.html"
    check_review_output(page, run)
    context = Context(trust, say, terminal_bar(console))
    review = review_run(run, context)
    table, kept = write_review(review, page, pictures, context)
    kinds = Counter(finding.kind for finding in review.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    affected = len({finding.id for finding in review.findings})
    found = f"{len(review.findings)} places in {affected} of {format_count(review.cases, 'case')}"
    say(found + (f": {counts}" if counts else ""))
    rows = [(finding.id, describe(finding), f"{finding.score:.3f}") for finding in review.findings[:SHOWN]]
    for line in format_columns(("case", "finding", "score"), rows) if rows else ():
        say(line)
    if kept:
        say(f"The answers for {format_count(kept, 'case')} in {table} were kept.")
    say(f"Page: {page}; table for your answers: {table}")
    if rows:
        say(
            f"Next: write x into the column exclude of {table}, then: "
            f"maskfold cv EXPERIMENT competition.train.exclude={table}"
        )
