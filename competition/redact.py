"""Hide passwords and tokens in everything that is printed, logged, saved or uploaded."""

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

MASK = "…"
MIN_SECRET_LENGTH = 6  # characters; shorter secrets are not hidden, since they may be part of an ordinary word
URL_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@")  # scheme://user:password@
URL_TOKEN = re.compile(r"(https?://)[^\s/:@'\"]{16,}@")  # https://token@github.com/…
QUERY_SECRET = re.compile(r"([?&;]\w*(?:pass|token|secret|key)\w*=)[^&;\s'\"]+", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"(?:^|_|[A-Z])(?:KEY|TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?)(?:_|$)")
URL_VARIABLE = re.compile(r"(?:URI|URL|DSN|STORAGE|PROXY)$", re.IGNORECASE)


def redact(text: str) -> str:
    """Return the text without the passwords of URLs and the secrets in environment variables.

    Example:
        >>> redact("postgresql://me:hush@host/runs cannot be reached")
        'postgresql://me:…@host/runs cannot be reached'
    """
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    text = URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    return QUERY_SECRET.sub(rf"\1{MASK}", URL_TOKEN.sub(rf"\1{MASK}@", text))


def install_redaction() -> None:
    """Hide secrets in all later log lines and in the tracebacks of uncaught errors."""
    sys.excepthook = _print_traceback
    threading.excepthook = lambda args: _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)
    default_factory = logging.getLogRecordFactory()
    if getattr(default_factory, "redacts", False):
        return

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = default_factory(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's malformed log call; logging itself reports it
            return record
        record.msg, record.args = redact(message), None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_record)


def _known_secrets() -> list[str]:
    """Return the secrets in environment variables, longest first."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and not value.startswith("/"):  # a path to a secret is not secret
            secrets.add(value)
        elif URL_VARIABLE.search(name) and "@" in value:
            secrets |= _url_passwords(value)
    return sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True)


def _url_passwords(url: str) -> set[str]:
    """Return the password of a URL, as written and percent-decoded."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return set()
    return {password, unquote(password)}


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
