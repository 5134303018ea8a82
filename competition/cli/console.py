"""Define functions that several commands use, e.g. to ask for confirmation, to show progress or to print tables."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from competition.context import Bar
from competition.errors import MaskfoldError
from competition.redact import redact
from competition.text import format_count, format_number, is_or_are

if TYPE_CHECKING:
    from competition.runs.run import Run
    from competition.training.cross_validate import CvSummary


P = ParamSpec("P")


def split_runs_and_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into names of runs and `key=value` overrides.

    Raises:
        MaskfoldError: no run is named.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    if not names:
        raise MaskfoldError(
            "The command names no run, expected at least one.",
            "Give an experiment's YAML, a run's folder or a run's hash.",
            status=2,
        )
    return names, overrides


def exit_with_error(text: str, status: int) -> None:
    """Print a message to standard error and exit with a status."""
    print(redact(text), file=sys.stderr)
    sys.exit(status)


def exit_on_signal(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return a decorator that ends a command with the message `text` if a signal interrupts it.

    The exit status is 130 on Ctrl-C and 143 on SIGTERM.
    """

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            signal.signal(signal.SIGTERM, raise_interrupt)
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                reason = str(interrupt) or "Ctrl-C"
                exit_with_error(f"{text} ({reason})", 143 if "SIGTERM" in reason else 130)

        return wrapper

    return decorate


def raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt on SIGTERM, so that open files are closed."""
    raise KeyboardInterrupt("SIGTERM")


def confirm_or_exit(question: str, yes: bool, hint: str, declined: str) -> None:
    """Ask the user for confirmation, unless `yes` is True.

    If the user declines, print the message `declined` and exit with status 1.

    Raises:
        MaskfoldError: `yes` is False, and standard input is not a terminal (exit status 2). The error contains
            `hint`.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise MaskfoldError(
            "The command cannot ask for confirmation, because standard input is not a terminal.", hint, status=2
        )
    if not typer.confirm(question):
        exit_with_error(declined, 1)


def plain_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line as it is: markup is not interpreted, and long lines are not wrapped."""
    return functools.partial(console.print, soft_wrap=True, markup=False)


def format_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of plain columns, for output that is not a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def progress_bar(console: Console, what: str = "cases predicted") -> Callable[[Iterator[Any], int], Iterator[Any]]:
    """Return a function that wraps an iterator of known length, and shows the progress of the iteration.

    The function takes the iterator and its length, and yields the same items. On a terminal, it draws a bar with the
    label `what`. Elsewhere, it prints about ten lines.
    """

    def watch(rows: Iterator[Any], count: int) -> Iterator[Any]:
        if console.is_terminal:
            from rich.progress import track

            yield from track(rows, what, total=count, console=console)
            return
        for done, row in enumerate(rows, start=1):
            yield row
            if done % max(1, count // 10) == 0 or done == count:
                console.print(f"{done} of {count} {what}")

    return watch


def terminal_bar(console: Console) -> Callable[[str], Bar | None]:
    """Return a function that makes progress bars, for the attribute `Context.bar`.

    The function takes a label. On a terminal, it returns a progress bar with this label. Elsewhere, it returns None.
    """
    return lambda what: progress_bar(console, what) if console.is_terminal else None


# Table at the end of `maskfold cv`

MAX_CLASS_COLUMNS = 3  # with more classes, the table has one row per class


def cv_table(summary: CvSummary, run: Run) -> Table:
    """Return the result of a cross-validation as a table with one row per fold.

    The next two rows show the scores of all out-of-fold cases, and the 95 % intervals of these scores. If the run has
    several seeds or a held-out test share, further rows show the scores of each seed and of the test share. If there
    are more than `MAX_CLASS_COLUMNS` classes, the folds are columns instead of rows.
    """
    if len(run.exp.competition.classes) > MAX_CLASS_COLUMNS:
        return _transposed_table(summary, run)
    classes = run.exp.competition.classes
    table = Table(
        title=f"{run.name}: {summary.metric} and Dice per class, out of fold", caption=skipped_cases_line(run)
    )
    table.add_column("fold")
    for name in (summary.metric, *(f"Dice {name}" for name in classes), "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint")
    for result in summary.folds:
        dice = [_fold_number(result, result["dice"].get(name)) for name in classes]
        folder = run.member_folder(result["fold"], result["seed"]).name
        table.add_row(
            _fold_label(result, run.exp.seeds),
            _fold_number(result, result["score"]),
            *dice,
            f"{result['minutes']:.1f}",
            folder,
        )
    table.add_section()
    minutes = sum(result["minutes"] for result in summary.folds)
    table.add_row("all", *_overall(summary, classes), f"{minutes:.1f}", format_count(summary.cases, "case"))
    table.add_row(
        "95 %",
        format_interval(summary.low, summary.high),
        *(format_interval(summary.dice_low.get(name), summary.dice_high.get(name)) for name in classes),
        "",
        "",
    )
    if summary.seeds is not None:
        for seed, scores in summary.seeds["alone"].items():
            values = [format_number(scores["score"]), *(format_number(scores["dice"].get(name)) for name in classes)]
            table.add_row(
                f"seed {seed}", *values, "", f"this seed only, {format_count(summary.seeds['folds'], 'fold')}"
            )
    if summary.test_dice is not None:
        table.add_row(
            "test",
            format_number(summary.test_score),
            *(format_number(summary.test_dice.get(name)) for name in classes),
            "",
            "held-out test share",
        )
    return table


def _transposed_table(summary: CvSummary, run: Run) -> Table:
    """Return a table with a row for the metric, a row for the Dice of each class, and a row for the minutes.

    The columns are the folds, all out-of-fold cases together, the 95 % intervals of the scores of these cases and, if
    the run has one, the held-out test share.
    """
    table = Table(
        title=f"{run.name}: {summary.metric} and Dice per class, out of fold", caption=skipped_cases_line(run)
    )
    table.add_column("fold")
    folds = summary.folds
    test_dice = summary.test_dice
    labels = [_fold_label(result, run.exp.seeds) for result in folds]
    for name in (*labels, "all", "95 %", *(["test"] if test_dice is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(
        summary.metric,
        *(_fold_number(result, result["score"]) for result in folds),
        _overall(summary, [])[0],
        format_interval(summary.low, summary.high),
        *([format_number(summary.test_score)] if test_dice is not None else []),
    )
    table.add_section()
    for name in run.exp.competition.classes:
        table.add_row(
            f"Dice {name}",
            *(_fold_number(result, result["dice"].get(name)) for result in folds),
            _overall(summary, [name])[1],
            format_interval(summary.dice_low.get(name), summary.dice_high.get(name)),
            *([format_number(test_dice.get(name))] if test_dice is not None else []),
        )
    table.add_section()
    table.add_row(
        "minutes",
        *(f"{result['minutes']:.1f}" for result in folds),
        f"{sum(result['minutes'] for result in folds):.1f}",
        format_count(summary.cases, "case"),
    )
    return table


def _overall(summary: CvSummary, classes: list[str]) -> list[str]:
    """Return cells with the metric and the Dice of each class over all folds.

    The cells are empty texts if the run has no validation cases.
    """
    if not summary.cases:
        return [""] * (1 + len(classes))
    return [format_number(summary.score), *(format_number(summary.dice.get(name)) for name in classes)]


def _fold_label(result: dict[str, Any], seeds: Sequence[int]) -> str:
    """Return the label of a fold: its number, or `full` for a fit on all cases. With several seeds, append the seed.

    Args:
        result: result of the fold; its entry `seed` is a position in `seeds`.
        seeds: the experiment's seeds.
    """
    label = "full" if result["fold"] < 0 else str(result["fold"])
    return label + (f" seed {seeds[result['seed']]}" if len(seeds) > 1 else "")


def _fold_number(result: dict[str, Any], value: float | None) -> str:
    """Format a score of a fold; return an empty text for a fit on all cases, which has no validation cases."""
    return "" if result["fold"] < 0 else format_number(value)


def skipped_cases_line(run: Run) -> str | None:
    """Return a line with the number of skipped cases, which the scores do not include; None if no case was skipped."""
    count = len(run.skipped)
    if not count:
        return None
    total = format_count(count + len(run.cases), "case")
    return f"{count} of {total} {is_or_are(count)} skipped (competition.on_bad_case: skip)"


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval, e.g. `0.871–0.902`; return an empty text if an end is None."""
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
