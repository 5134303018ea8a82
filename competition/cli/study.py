"""`maskfold study`: trials until enough are finished, the table, the figures, and the best ones on all folds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from competition.cli.words import stoppable
from competition.config import MaskfoldError

if TYPE_CHECKING:
    from competition.study.search import Search


WIDE = 200  # characters of a table that goes into a file


@stoppable("stopped: the same command goes on with the trial that ran")
def study(
    file: Path,
    overrides: list[str],
    trials: int | None,
    storage: str | None,
    promote: int | None,
    trust: tuple[str, ...],
) -> None:
    """Run the command; see `competition.cli.main.study`."""
    for name, number in (("trials", trials), ("promote", promote)):
        if number is not None and number < 1:
            raise MaskfoldError(f"--{name} is {number}.", "Name 1 or more, or leave it out.", status=2)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    from competition.study.search import open_search, run_search
    from competition.study.source import Source

    source = Source(file, tuple(overrides), trust)
    from competition.data.demo import ensure_demo

    ensure_demo(source.load().competition)
    search = open_search(source, storage)
    count = search.study.trials if trials is None else trials
    say(f"study {search.name}: {len(search.finished)} of {count} trials finished")
    from competition.study.parent import parent_run

    with parent_run(search):
        if promote is None:
            run_search(search, count, say)
        rows = promote_best(search, promote, console, say) if promote is not None else []
        conclude(search, console, say, [] if rows else _next(file, overrides, storage, trust))


def conclude(search: Search, console: Console, say: Any, command: list[str]) -> None:
    """The table of trials, the figures and the page; `command` trains the best on all folds."""
    from competition.report import write_study_page
    from competition.study.figures import draw
    from competition.study.record import read_trials, write_trials

    trials = write_trials(search)
    console.print(trials_table(search, trials))
    drawn = draw(search)
    say(f"Page: {write_study_page(search.folder, search.folder / 'report.html')}")
    if drawn:
        say(f"Figures: {', '.join(path.name for path in drawn)} in {search.folder}")
    numbers = read_trials(search.folder)["best"]
    for trial in [trial for trial in search.finished if trial.number in numbers]:
        say(
            f"Best: trial {trial.number}, {', '.join(f'{value:.4f}' for value in trial.values)}: "
            f"{' '.join(trial.user_attrs.get('words', []))}"
        )
    if not numbers and any(trial["state"] == "complete" for trial in trials):
        say("No complete trial keeps the constraints.")
    if numbers and command and search.source.load().folds.run is not None:
        say(f"Next: {shlex.join(command)}   (the best three on all folds)")


def _next(file: Path, overrides: list[str], storage: str | None, trust: tuple[str, ...]) -> list[str]:
    """The command that trains the best of the same study: other words would be another study."""
    from competition.study.storage import safe

    return [
        "maskfold",
        "study",
        str(file),
        *overrides,
        "--promote",
        "3",
        *(["--storage", safe(storage)] if storage else []),
        *(word for package in trust for word in ("--trust", package)),
    ]


def promote_best(search: Search, count: int, console: Console, say: Any) -> list[Any]:
    """Trains the best on all folds and prints what they gain on folds that the study did not use."""
    from competition.study.promote import promote

    found = promote(search, count, say)
    unseen = found[0].unseen is not None
    own = f"trial {found[0].number}"
    table = Table(title=f"{search.name}: the best on all folds")
    for name in (
        "trial",
        "all folds",
        *(["unseen folds", f"gain there over {own}"] if unseen else [f"gain over {own} on the study's own folds"]),
        "95 %",
        "words",
    ):
        table.add_column(name)
    for one in found:
        gain = one.gain
        table.add_row(
            str(one.number),
            f"{one.score:.4f}",
            *([] if one.unseen is None else [f"{one.unseen:.4f}"]),
            "" if gain is None else f"{gain.value:+.4f}",
            "" if gain is None else f"{gain.low:+.4f} to {gain.high:+.4f}",
            " ".join(one.words),
        )
    console.print(table)
    if not unseen:
        say(
            "warning: the study chose by these very folds, so gains on them flatter what it chose. Search with some of the "
            "folds, e.g. folds.run=[0,1]; the others then judge fairly."
        )
    for one in found:
        say(f"trial {one.number}: {one.run}")
    return found


def trials_table(search: Search, trials: list[dict[str, Any]]) -> Table:
    """A row for each trial; those that failed, or are beyond a bound, are listed with the reason in the page."""
    keys = list(search.study.space)
    table = Table(title=f"{search.name}: {len(trials)} trials")
    for name in ("trial", "state", *search.study.objectives, "minutes", *(key.rpartition(".")[2] for key in keys)):
        table.add_column(name)
    for trial in trials:
        values = [f"{value:.4f}" for value in trial["values"] or []] or [""] * len(search.study.objectives)
        if trial["state"] != "complete":
            values = [""] * len(search.study.objectives)
        params = [_shown(trial["params"].get(key)) for key in keys]
        minutes = "" if trial["minutes"] is None else f"{trial['minutes']:.1f}"
        state = "beyond a bound" if trial["state"] == "complete" and trial["reason"] else trial["state"]
        table.add_row(str(trial["number"]), state, *values, minutes, *params)
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
