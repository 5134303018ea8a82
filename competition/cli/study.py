"""`maskfold study`: trials until enough are finished, the table, the figures, and the best ones on all folds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from competition.cli.words import stoppable

if TYPE_CHECKING:
    from competition.study.search import Search


WIDE = 200  # characters of a table that goes into a file


@stoppable("stopped: the same command goes on with the trial that ran")
def study(file: Path, overrides: list[str], trials: int | None, storage: str | None, promote: int | None,
          trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.study`."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    from competition.study.search import open_search, run_search
    from competition.study.space import Source

    source = Source(file, tuple(overrides), trust)
    from competition.data.demo import ensure_demo

    ensure_demo(source.load().competition)
    search = open_search(source, storage)
    count = trials or search.study.trials
    say(f"study {search.name}: {len(search.finished)} of {count} trials finished")
    from competition.study.parent import parent_run

    with parent_run(search):
        if promote is None:
            run_search(search, count, say)
        rows = promote_best(search, promote, console, say) if promote is not None else []
        conclude(search, console, say, rows)


def conclude(search: Search, console: Console, say: Any, promoted: list[Any]) -> None:
    """The table of trials, the figures and the page."""
    from competition.report.study import write_study_report
    from competition.study.figures import draw
    from competition.study.search import best, write_trials

    trials = write_trials(search)
    console.print(trials_table(search, trials))
    drawn = draw(search)
    rows = [{"number": trial["number"], "state": trial["state"], "score": _value(search, trial), "minutes": trial["minutes"],
             "params": trial["params"], "reason": trial["reason"] or ""} for trial in trials]
    page = write_study_report(search.folder, f"Study {search.name}", rows, drawn, search.folder / "report.html")
    say(f"Page: {page}")
    if drawn:
        say(f"Figures: {', '.join(path.name for path in drawn)} in {search.folder}")
    if any(trial["state"] == "complete" for trial in trials):
        for trial in best(search, 1):
            say(f"Best: trial {trial.number}, {', '.join(f'{value:.4f}' for value in trial.values)}: "
                f"{' '.join(trial.user_attrs.get('words', []))}")
        if not promoted and search.source.load().folds.run is not None:
            say(f"Next: maskfold study {search.source.file} --promote 3   (the best three on all folds)")


def promote_best(search: Search, count: int, console: Console, say: Any) -> list[Any]:
    """Trains the best on all folds and prints what they gain on folds that the study did not use."""
    from competition.study.promote import promote

    found = promote(search, count, say)
    table = Table(title=f"{search.name}: the best on all folds")
    for name in ("trial", "all folds", "unseen folds", "gain there over trial 0", "95 %", "words"):
        table.add_column(name)
    for one in found:
        gain = one.gain
        table.add_row(str(one.number), f"{one.score:.4f}", "" if one.unseen is None else f"{one.unseen:.4f}",
                      "" if gain is None else f"{gain.value:+.4f}",
                      "" if gain is None else f"{gain.low:+.4f} to {gain.high:+.4f}", " ".join(one.words))
    console.print(table)
    for one in found:
        say(f"trial {one.number}: {one.run}")
    return found


def trials_table(search: Search, trials: list[dict[str, Any]]) -> Table:
    """A row for each trial; a failed one says why."""
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
        table.add_row(str(trial["number"]), trial["state"], *values, minutes, *params)
    return table


def _value(search: Search, trial: dict[str, Any]) -> Any:
    """The score; a list of values where there are several objectives, or one that is to be small."""
    from competition.study.objectives import directions

    values = trial["values"] if trial["state"] == "complete" else None
    return values[0] if values and directions(search.study) == ["maximize"] else values


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
