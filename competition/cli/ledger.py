"""`maskfold ledger`: every upload, its scores, what changed, and what of it is noise."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from competition.cli.words import stoppable
from competition.config import MaskfoldError

if TYPE_CHECKING:
    from collections.abc import Callable

    from competition.submission.ledger import Ledger, Record

HEADER = ("", "date, UTC", "file", "CV", "95 %", "95 % of boards", "public", "private", "changed")
SHORT = 2  # changes in a line of the table


@stoppable("stopped")
def show_ledger(
    words: list[str],
    refresh: bool | None,
    output: Path | None,
    given: str | None,
    file: Path | None,
    public: float | None,
    private: float | None,
    message: str | None,
) -> None:
    """Run the command; see `competition.cli.main.ledger`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    from competition.report.ledger import check_output
    from competition.submission.ledger import ledgers

    if output is not None:
        check_output(output)
    names = [word for word in words if "=" not in word]
    if file is not None:
        names = [_add(file, given, [word for word in words if "=" in word], public, private, message, say)]
    elif public is not None or private is not None:
        raise MaskfoldError("--public and --private are of a file.", "Name it with --add FILE.", status=2)
    found = [one for one in ledgers() if not names or one.competition in names]
    if not found:
        raise MaskfoldError(
            f"Nothing was handed in yet{f' for {names[0]}' if names else ''}: submissions/*/ledger is empty.",
            "Hand a file in with `maskfold upload`, or enter one with --add FILE --public 0.71.",
        )
    if output is not None and len(found) > 1:
        raise MaskfoldError(
            f"There are ledgers of {', '.join(one.competition for one in found)}, and one output.",
            "Name one of them.",
            status=2,
        )
    for ledger in found:
        _update(ledger, refresh, say)
        _show(ledger, output, console, say)


def _add(
    file: Path,
    given: str | None,
    overrides: list[str],
    public: float | None,
    private: float | None,
    message: str | None,
    say: Callable[[str], None],
) -> str:
    from competition.submission.hand_in import add_by_hand
    from competition.submission.ledger import Ledger
    from competition.submission.upload import pack
    from competition.tracking.submission import log_upload

    parcel = pack(file, given, overrides, at_kaggle=False)
    ledger = Ledger(parcel.competition)
    before = {record.id: record for record in ledger.read()}
    record = add_by_hand(parcel, ledger, public, private, message)
    for name in ("public", "private"):
        old, new = getattr(before.get(record.id), name, None), getattr(record, name)
        if old is not None and old != new:
            say(f"note: the {name} score of {file} was {old:.4f}, and is {new:.4f} now")
    if (run := log_upload(asdict(record), (file,))) is not None:
        ledger.write(replace(record, mlflow=run))
    return parcel.competition


def _update(ledger: Ledger, refresh: bool | None, say: Callable[[str], None]) -> None:
    """Asks for scores; without --refresh, what fails is told and what is known is shown."""
    from competition.data.fetch.kaggle_client import connect
    from competition.submission import hand_in
    from competition.tracking.submission import log_upload

    if refresh is False or not (refresh or any(record.open for record in ledger.read())):
        return
    try:
        changed, strange = hand_in.refresh(connect(), ledger)
    except MaskfoldError as error:
        if refresh:
            raise
        say(f"warning: the scores are as they were when last asked for. {error}")
        return
    if strange:
        say(
            f"{strange} submission{'s' * (strange > 1)} of your team {'were' if strange > 1 else 'was'} not uploaded from here; "
            "--add FILE --public SCORE enters them"
        )
    for record in [
        *changed,
        *(one for one in ledger.read() if not one.mlflow and one.id not in {new.id for new in changed}),
    ]:
        if (run := log_upload(asdict(record))) is not None:
            ledger.write(replace(record, mlflow=run))


def _show(ledger: Ledger, output: Path | None, console: Console, say: Callable[[str], None]) -> None:
    from competition.submission.board import FORMULA, chased, choice, correlation, surprises
    from competition.submission.changes import changes

    records = ledger.read()
    tables = {record.id: ledger.scores(record) for record in records}
    changed = [changes(before, record) for before, record in zip([None, *records], records, strict=False)]
    rows = [_cells(place, record, words) for place, (record, words) in enumerate(zip(records, changed, strict=True), 1)]
    if console.is_terminal:
        table = Table(title=ledger.competition)
        for place, name in enumerate(HEADER):
            table.add_column(name, justify="left" if place in (1, 2, 8) else "right", no_wrap=place not in (2, 8))
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        say(ledger.competition)
        widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
        for row in (HEADER, *rows):
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    best = choice(records, tables)
    notes = [
        str(correlation(records)),
        *chased(records, tables),
        *surprises(records),
        *([best] if best else []),
        FORMULA,
    ]
    for note in notes:
        say(note)
    if output is not None:
        from competition.report.ledger import write_ledger

        say(f"{write_ledger(output, ledger.competition, records, HEADER, rows, changed, notes)} was written")


def _cells(place: int, record: Record, words: list[str]) -> tuple[str, ...]:
    from competition.submission.board import day

    more = f" and {len(words) - SHORT} more" if len(words) > SHORT else ""
    name = (
        Path(record.file).name
        if record.notebook is None
        else f"{record.notebook['kernel']} v{record.notebook['version']}"
    )
    shown = (
        _number(record.public) if record.public is not None else "error" if record.status == "error" else record.status
    )
    failed = [f"error: {record.error}"] if record.error else []
    return (
        str(place),
        day(record),
        name,
        _number(record.score),
        _ends(record.cv),
        _ends(record.expected),
        shown,
        _number(record.private),
        "; ".join([*failed, *words[:SHORT]]) + more,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _ends(ends: dict[str, float | None]) -> str:
    low, high = ends.get("low"), ends.get("high")
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
