"""Handing files in at Kaggle and asking for their scores, by Kaggle's own client (the extra [kaggle])."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config.errors import MaskfoldError
from competition.config.secrets import scrub
from competition.data.fetch.kaggle_client import aside, refused

PAGE = 200  # submissions in one answer: more than a competition of three months at two a day
LONGEST = 300  # characters of the host's own words that are repeated
SPENT = re.compile(r"(?i)daily|per day|today|submission limit|limit of|maximum number|too many submissions")
OVER = re.compile(r"(?i)deadline|\bended\b|\bclosed\b|expired|not accepting|no longer")


@dataclass(frozen=True)
class Limits:
    """Tries of the user's team.

    Attributes:
        used: today (UTC).
        left: for the rest of today.
        by_total: whether a limit of the whole competition, and not of the day, leaves so few.
    """

    used: int
    left: int
    by_total: bool = False


@dataclass(frozen=True)
class Remote:
    """A submission as Kaggle knows it; scores are None while they are not known."""

    ref: int
    date: str  # ISO, UTC
    file: str
    description: str
    status: str  # pending, complete or error
    public: float | None
    private: float | None
    error: str


class NotSent(MaskfoldError):
    """A try that was surely not spent: Kaggle refused it, or never got it."""


def ask_limits(api: Any, slug: str) -> Limits | None:
    """Today's tries; None where Kaggle, or its client, does not say.

    Raises:
        MaskfoldError: there is no such competition, its rules are not accepted, the credentials are wrong, or there is
            no network.
    """
    if not hasattr(api, "competition_get_submission_limits"):
        return None  # clients before 2.2
    try:
        with aside():
            found = api.competition_get_submission_limits(slug)
    except OSError as error:
        if (_code(error) or 0) >= 500 or _code(error) == 400:
            return None
        raise _told(slug, error) from error
    used, left, total = int(found.num_today or 0), int(found.num_allowed_now or 0), int(found.num_total or 0)
    return Limits(used, left, bool(found.limited_by_total)) if used or left or total else None


def send_file(api: Any, slug: str, path: Path, message: str) -> int | None:
    """Uploads a CSV and spends a try.

    Returns:
        Kaggle's number of the submission; None where it gives none.

    Raises:
        NotSent: Kaggle refused it, or the upload broke off.
        MaskfoldError: the connection broke when the try may have been spent already.
    """
    try:
        with aside():
            answer = api.competition_submit(str(path), message, slug, quiet=True)
    except OSError as error:
        raise _told(slug, error) from error
    if str(answer.message) == getattr(
        api, "COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE", "Could not submit to competition"
    ):
        raise NotSent(
            f"The upload of {path.name} to Kaggle broke off; no try was spent.",
            "Check the network and type the same command again.",
        )
    return int(getattr(answer, "ref", 0) or 0) or None


def send_notebook(api: Any, slug: str, notebook: str, version: int, file: str, message: str) -> int | None:
    """Hands in what a version of a notebook wrote; see `send_file`."""
    try:
        with aside():
            answer = api.competition_submit_code(file, message, slug, notebook, version, quiet=True)
    except OSError as error:
        raise _told(slug, error, notebook) from error
    return int(getattr(answer, "ref", 0) or 0) or None


def ask_submissions(api: Any, slug: str) -> list[Remote]:
    """The team's latest submissions.

    Raises:
        MaskfoldError: as in `ask_limits`.
    """
    try:
        with aside():
            found = api.competition_submissions(slug, page_size=PAGE)
    except OSError as error:
        raise _told(slug, error) from error
    return [_remote(one) for one in found or [] if one is not None]


def _remote(one: Any) -> Remote:
    status = getattr(one.status, "name", str(one.status or "")).lower()
    return Remote(
        int(one.ref),
        one.date.isoformat() if one.date else "",
        str(one.file_name or ""),
        str(one.description or ""),
        status,
        _number(one.public_score),
        _number(one.private_score),
        scrub(str(one.error_description or ""))[:LONGEST],
    )


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def _code(error: OSError) -> int | None:
    """The status of Kaggle's answer: that in its body counts more than that of the transfer."""
    body = _body(error)
    code = body.get("code") if isinstance(body.get("code"), int) else None
    return code or getattr(getattr(error, "response", None), "status_code", None)


def _body(error: OSError) -> dict[str, Any]:
    try:
        body = error.response.json()  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _said(error: OSError) -> str:
    """Kaggle's own words, without addresses; the client's are left out, since they may hold tokens."""
    text = re.sub(r"\S+://\S+", "…", scrub(str(_body(error).get("message") or "")))
    return " ".join(text.split())[:LONGEST].rstrip(".")


def _told(slug: str, error: OSError, notebook: str | None = None) -> MaskfoldError:
    """An error of the client in our words, and what to do."""
    code, said = _code(error), _said(error)
    rules = f"https://www.kaggle.com/competitions/{slug}/rules"
    quoted = f": “{said}”" if said else ""
    if code is None:
        return MaskfoldError(
            f"Kaggle cannot be reached: {type(error).__name__}.",
            "Check the network (https_proxy names a proxy) and type the same command again; `maskfold "
            "ledger` tells whether a try was spent.",
        )
    if code == 401:
        plain = refused(slug, rules, error)
        return NotSent("Kaggle does not accept the credentials (401).", plain.cure)
    if code == 429 or (code in (400, 403) and SPENT.search(said)):
        return NotSent(
            f"Kaggle takes no more tries for {slug} today ({code}){quoted}.",
            "Wait until 00:00 UTC, when the day's tries begin anew.",
        )
    if OVER.search(said):
        return NotSent(
            f"{slug} takes no more submissions ({code}){quoted}.",
            f"Look at {rules.removesuffix('/rules')} whether late submissions are open.",
        )
    if code == 403:
        return NotSent(
            f"Kaggle does not let you submit to {slug} (403){quoted}.",
            f"Accept the rules at {rules} first, logged in as the same user.",
        )
    if code == 404:
        what = f"no competition {slug}" + (f", or no such version of {notebook}" if notebook else "")
        return NotSent(
            f"Kaggle knows {what} (404).",
            "Write names as in the addresses; the competition's is `submission.kaggle` "
            "in competition.yaml, or --competition.",
            status=2,
        )
    if code < 500:
        return NotSent(f"Kaggle refuses ({code}){quoted}.", f"Correct what it says; the competition's page is {rules}.")
    return MaskfoldError(
        f"Kaggle has trouble of its own (it answers {code}){quoted}.",
        "Try again later; `maskfold ledger` tells whether a try was spent.",
    )
