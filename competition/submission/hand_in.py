"""Spending a try, and asking what came of it; the record is there before the try is."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from competition.config import Competition, MaskfoldError
from competition.submission.kaggle_board import NotSent, ask_submissions, send_file, send_notebook
from competition.submission.ledger import Ledger, Record, now, refreshed
from competition.submission.upload import Parcel

if TYPE_CHECKING:
    import pandas as pd


def hand_in(api: Any, parcel: Parcel, ledger: Ledger, record: Record, scores: pd.DataFrame | None) -> Record:
    """Hands a file or a notebook's output in.

    The record is written first, so that a try that was spent while the connection broke, or while this process was
    killed, is found again by `refresh`. It goes where the try was surely not spent.

    Args:
        api: of `competition.data.fetch.kaggle_client.connect`.
        parcel: what.
        ledger: where it is kept.
        record: of `upload.make_record`.
        scores: the out-of-fold scores by case and class.

    Returns:
        The record with the host's number.

    Raises:
        MaskfoldError: see `kaggle_board.send_file`.
    """
    ledger.write(record, scores)
    try:
        if record.notebook is not None:
            ref = send_notebook(
                api,
                parcel.slug,
                record.notebook["kernel"],
                record.notebook["version"],
                record.notebook["file"],
                record.message,
            )
        else:
            assert parcel.path is not None
            ref = send_file(api, parcel.slug, parcel.path, record.message)
    except NotSent:
        ledger.remove(record)
        raise
    record = replace(record, ref=ref, status="pending" if ref is not None else "sending")
    ledger.write(record)
    return record


def refresh(api: Any, ledger: Ledger) -> tuple[list[Record], int]:
    """Asks for the scores of what is still open.

    Returns:
        The records that changed, and how many submissions the host knows that are not in the ledger.

    Raises:
        MaskfoldError: the host cannot be asked, or a record is damaged.
    """
    records = ledger.read()
    changed: list[Record] = []
    strange = 0
    for slug in dict.fromkeys(record.slug for record in records if record.open):
        found = ask_submissions(api, slug)
        mine = [record for record in records if record.slug == slug]
        new = refreshed(mine, found, now().isoformat())
        for record in new:
            ledger.write(record)
        changed += new
        known = {record.ref for record in [*mine, *new]}
        strange += sum(one.ref not in known for one in found)
    return changed, strange


def add_by_hand(
    parcel: Parcel, ledger: Ledger, public: float | None, private: float | None, message: str | None
) -> Record:
    """Keeps the scores of a file that was handed in elsewhere; the latest record of the same file is completed.

    Raises:
        MaskfoldError: no score is given, or what is given is none (status 2).
    """
    from competition.submission.upload import make_record, sha256_of

    if public is None and private is None:
        raise MaskfoldError("--add needs a score.", "Add --public 0.71, or --private.", status=2)
    for name, value in (("--public", public), ("--private", private)):
        if value is not None:
            _check_score(name, value, parcel.comp)
    assert parcel.path is not None
    earlier = ledger.read()
    digest = sha256_of(parcel.path)
    found = next((record for record in reversed(earlier) if record.sha256 == digest), None)
    scores = None
    if found is None:
        found, scores = make_record(parcel, message, None, earlier, host="by hand")
    record = replace(
        found,
        status="complete",
        public=found.public if public is None else public,
        private=found.private if private is None else private,
        checked=now().isoformat(),
        message=message or found.message,
    )
    ledger.write(record, scores)
    return record


def _check_score(name: str, value: float, comp: Competition | None) -> None:
    """Refuses what is no number, and what this competition's metric never is."""
    if not isfinite(value):
        raise MaskfoldError(f"{name} {value:g} is no score.", "Write the number that the board shows.", status=2)
    if comp is not None and not 0 <= value <= 1:
        raise MaskfoldError(
            f"{name} {value:g} is outside of 0 to 1, where the metric {comp.metric.name} lies.",
            "Write e.g. 0.71; a board that shows 71 % as 0.71, too.",
            status=2,
        )
