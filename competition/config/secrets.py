"""Passwords and tokens, hidden in whatever is printed, logged, kept or sent."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "…"
SHORTEST = 6  # characters of a secret that is hidden wherever it stands; a shorter one may be a part of any word
USERINFO = re.compile(r"([A-Za-z][\w+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@")  # scheme://user:password@
TOKEN = re.compile(r"(https?://)[^\s/:@'\"]{16,}@")  # https://token@github.com/…
QUERY = re.compile(r"([?&;]\w*(?:pass|token|secret|key)\w*=)[^&;\s'\"]+", re.IGNORECASE)
VARIABLE = re.compile(r"(?:^|_|[A-Z])(?:KEY|TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?)(?:_|$)")
ADDRESS = re.compile(r"(?:URI|URL|DSN|STORAGE|PROXY)$", re.IGNORECASE)


def scrub(text: str) -> str:
    """The text without passwords: those of addresses, and those that an environment variable holds.

    Example:
        >>> scrub("postgresql://me:hush@host/runs cannot be reached")
        'postgresql://me:…@host/runs cannot be reached'
    """
    for secret in _known():
        text = text.replace(secret, HIDDEN)
    text = USERINFO.sub(rf"\1:{HIDDEN}@", text)
    return QUERY.sub(rf"\1{HIDDEN}", TOKEN.sub(rf"\1{HIDDEN}@", text))


def guard() -> None:
    """From now on, log lines and the tracebacks of errors that nobody catches hold no passwords."""
    sys.excepthook = _hook
    threading.excepthook = lambda args: _hook(args.exc_type, args.exc_value, args.exc_traceback)
    make = logging.getLogRecordFactory()
    if getattr(make, "scrubs", False):
        return

    def record(*args: Any, **words: Any) -> logging.LogRecord:
        made = make(*args, **words)
        try:
            said = made.getMessage()
        except Exception:  # noqa: BLE001 - a library's wrong log line is its own affair, and told by logging itself
            return made
        made.msg, made.args = scrub(said), None
        if made.exc_info and made.exc_info[1] is not None:
            made.exc_text = scrub("".join(traceback.format_exception(*made.exc_info)).rstrip())
        return made

    record.scrubs = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _known() -> list[str]:
    """What must not be seen, the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if VARIABLE.search(name) and not value.startswith("/"):  # a path names where a secret lies
            found.add(value)
        elif ADDRESS.search(name) and "@" in value:
            found |= _passwords(value)
    return sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)


def _passwords(address: str) -> set[str]:
    """The password of an address, as it is written there and as it is meant."""
    try:
        password = urlsplit(address).password or ""
    except ValueError:
        return set()
    return {password, unquote(password)}


def _hook(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        print(scrub("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
