"""`maskfold report`: one page of a run, or of a study."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from competition.cli.words import stoppable, words_and_overrides
from competition.config import MaskfoldError


@stoppable("stopped: no page was written")
def make_report(words: list[str], output: Path | None, trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.report`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)
    if len(names) != 1:
        raise MaskfoldError(f"A report is of one run or study, and {len(names)} are named.", "Name one.", status=2)

    from competition.report import write_report, write_study_page
    from competition.training.find import find_run, find_study

    if (study := find_study(names[0])) is not None:
        if overrides:
            raise MaskfoldError(
                f"{study} is a study, whose page takes no key=value, and {overrides[0]} is one.",
                "Leave it out.",
                status=2,
            )
        page = write_study_page(study, output or study / "report.html")
    else:
        run = find_run(names[0], overrides, trust, say)
        page = write_report(run, output or run.folder / "report.html", say)
    size = page.stat().st_size / 2**20
    say(f"{page}: {size:.1f} MiB, whole in itself; the pictures alone are in {page.with_suffix('')}")
