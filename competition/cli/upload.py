"""`maskfold upload`: check, say what it costs, ask, hand in, keep it in the ledger."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from competition.cli.ask import ask
from competition.cli.words import stoppable
from competition.config import MaskfoldError

CURE, LEFT = "Add --yes to spend a try.", "nothing was handed in"


@stoppable("stopped: `maskfold ledger` tells whether a try was spent")
def upload_file(
    file: Path | None,
    overrides: list[str],
    message: str | None,
    given: str | None,
    yes: bool,
    notebook: str | None,
    version: int | None,
    output: str,
) -> None:
    """Run the command; see `competition.cli.main.upload`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    code = _code_submission(file, notebook, version, output)

    from competition.data.fetch.kaggle_client import connect
    from competition.submission.board import day
    from competition.submission.hand_in import hand_in
    from competition.submission.kaggle_board import ask_limits
    from competition.submission.ledger import Ledger
    from competition.submission.upload import check, make_record, pack

    parcel = pack(file, given, overrides)
    if file is not None and parcel.comp is not None:
        verdict = check(file, parcel.comp)
        say(f"{file}: {verdict.rows} rows, {verdict.empty} of them empty; valid")
    ledger = Ledger(parcel.competition)
    earlier = ledger.read()
    record, scores = make_record(parcel, message, code, earlier)
    for same in earlier:
        if record.sha256 and same.sha256 == record.sha256:
            known = f", public {same.public:.4f}" if same.public is not None else ""
            say(f"warning: this very file was handed in on {day(same)} UTC{known}; again it scores the same")
    if record.score is not None:
        low, high = record.expected.get("low"), record.expected.get("high")
        ends = (
            f"; 95 % of public boards of {record.public_cases} cases score {low:.4f} to {high:.4f}"
            if low is not None
            else ""
        )
        say(f"CV {record.metric['name']} {record.score:.4f}{ends}")
    elif file is not None:
        say(
            "note: no CV score is known of this file: its JSON of `maskfold submit` is not beside it, or of another file"
        )
    api = connect()
    limits = ask_limits(api, parcel.slug)
    if limits is None:
        say(f"Kaggle does not say how many tries of {parcel.slug} are used today")
    else:
        total = " (the competition's own limit, not the day's)" if limits.by_total else ""
        say(f"{parcel.slug}: {limits.used} of {limits.used + limits.left} tries of today are used{total}")
        if limits.left <= 0:
            raise MaskfoldError(
                f"No try of {parcel.slug} is left today.",
                "Wait until 00:00 UTC, when the day's tries begin anew."
                if not limits.by_total
                else "The competition's own limit is reached.",
            )
    what = file.name if code is None and file is not None else f"{notebook} version {version}"
    ask(f"Spend one on {what}, “{record.message}”?", yes, CURE, LEFT)
    record = hand_in(api, parcel, ledger, record, scores)
    say(f"Handed in{f' as {record.ref}' if record.ref is not None else ''}: “{record.message}”")

    from competition.tracking.submission import log_upload

    files = () if file is None else (file, *([file.with_suffix(".json")] if parcel.note else []))
    if (run := log_upload(asdict(record), files)) is not None:
        ledger.write(replace(record, mlflow=run))
    say("Next: maskfold ledger   (scores, and what the board taught)")


def _code_submission(
    file: Path | None, notebook: str | None, version: int | None, output: str
) -> dict[str, object] | None:
    """What a notebook's submission is of; None for a CSV.

    Raises:
        MaskfoldError: the words do not fit together (status 2).
    """
    if notebook is None:
        if version is not None:
            raise MaskfoldError(
                "--version is of a notebook, and none is named.", "Add --notebook OWNER/NAME.", status=2
            )
        if file is None:
            raise MaskfoldError(
                "Nothing to hand in is named.", "Name a CSV, or --notebook OWNER/NAME --version N.", status=2
            )
        return None
    if not re.fullmatch(r"[\w-]+/[\w-]+", notebook):
        raise MaskfoldError(f"--notebook {notebook} is no notebook.", "Write OWNER/NAME, as in its address.", status=2)
    if version is None:
        raise MaskfoldError(
            f"Which version of {notebook} is to be handed in is not said.", "Add --version N.", status=2
        )
    return {"kernel": notebook, "version": version, "file": output}
