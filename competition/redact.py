"""Hide passwords and tokens in everything that is printed, logged, saved or uploaded."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import sys
import threading
import traceback
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "…"
MIN_SECRET_LENGTH = 6  # secrets with fewer characters are not hidden, because they may be part of an ordinary word
URL_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@")  # scheme://user:password@
URL_TOKEN = re.compile(r"(https?://)[^\s/:@'\"]{16,}@")  # https://token@github.com/…
# Parts of addresses and of connection strings: ?token=…, ;AccountKey=…
ASSIGNMENT = re.compile(r"([?&;])([\w.-]+)=([^&;\s'\"]+)")
AUTHORIZATION = re.compile(r"\b(Basic|Bearer)(\s+)([\w+/~.=-]{8,})", re.IGNORECASE)  # headers of HTTP
NAME_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
SECRET_WORDS = frozenset(
    ("conn", "connection", "connstr", "credentials", "passphrase", "pat", "sas", "sig", "signature")
)
SECRET_ENDINGS = ("key", "token", "pass", "password", "passwd", "pwd", "secret", "credential")
ORDINARY_WORDS = frozenset(  # names that end like those of secrets, but are harmless
    ("bandpass", "bypass", "compass", "donkey", "encompass", "highpass", "hockey", "hotkey", "jockey", "lowpass")
    + ("monkey", "overpass", "surpass", "trespass", "turkey", "underpass", "whiskey")
)
FOLDER_VARIABLES = ("PWD", "OLDPWD")  # variables of shells with the working folder
# names of paths, because the path of a secret is not secret
PLACE_WORDS = frozenset(("dir", "directory", "file", "folder", "path"))


def redact(text: str) -> str:
    """Return a copy of a text in which `…` replaces passwords and tokens.

    The function finds passwords in URLs, values such as `1234` in `password=1234`, credentials after `Basic` or
    `Bearer`, and the secrets that environment variables contain. Secrets of environment variables are found even if
    they are percent-encoded, or part of a base64 text such as an HTTP header.

    Example:
        >>> redact("postgresql://me:hush@host/runs cannot be reached")
        'postgresql://me:…@host/runs cannot be reached'
    """
    for secret in (secrets := _known_secrets()):
        text = text.replace(secret, MASK)
    for core in _base64_cores(tuple(secrets)):
        if core in text:  # this check comes before the pattern, which is slow for long texts
            text = re.sub(rf"[\w+/-]*{re.escape(core)}[\w+/-]*=*", MASK, text)
    text = URL_TOKEN.sub(rf"\1{MASK}@", URL_PASSWORD.sub(rf"\1:{MASK}@", text))
    text = ASSIGNMENT.sub(lambda m: f"{m[1]}{m[2]}={MASK}" if is_secret_name(m[2]) else m[0], text)
    return AUTHORIZATION.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if _is_authorization(m[1], m[3]) else m[0], text)


def is_secret_name(name: str) -> bool:
    """Return whether the name of a variable or parameter, in any usual spelling, shows that its value is secret.

    Example:
        >>> [is_secret_name(name) for name in ("MYSQL_PWD", "kaggle_key", "AccountKey", "keypoints", "compass")]
        [True, True, True, False, False]
    """
    words = [word.lower() for word in NAME_WORDS.findall(name)]
    return (
        any(word in SECRET_WORDS or (word.endswith(SECRET_ENDINGS) and word not in ORDINARY_WORDS) for word in words)
        and words[-1] not in PLACE_WORDS
    )


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
        except Exception:  # noqa: BLE001 - a library passed wrong arguments to its log, which `logging` reports
            return record
        record.msg, record.args = redact(message), None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_record)


def _known_secrets() -> list[str]:
    """Return the secrets in environment variables, plain and percent-encoded, in descending order of length."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        passwords = _url_passwords(value) if "://" in value else set()
        secrets |= passwords
        is_secret = is_secret_name(name) and name not in FOLDER_VARIABLES
        # A value that is the path of an existing file is not secret.
        if is_secret and not passwords and not (value.startswith("/") and os.path.exists(value)):
            secrets.add(value)
        if is_secret or ";" in value:  # a connection string, e.g. AccountName=me;AccountKey=…
            secrets.update(match[3] for match in ASSIGNMENT.finditer(f";{value}") if is_secret_name(match[2]))
    secrets |= {encode(secret, safe="") for secret in secrets for encode in (quote, quote_plus)}
    return sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True)


@lru_cache(maxsize=4)
def _base64_cores(secrets: tuple[str, ...]) -> list[str]:
    """Return the parts of the secrets' base64 forms that do not depend on the text around the secret.

    Base64 encodes groups of three bytes. A secret can start at any of the three bytes of a group, so it has three
    forms. Each form exists in the usual and in the URL-safe alphabet.
    """
    cores: set[str] = set()
    for secret in (secret.encode() for secret in secrets):
        for before in range(3):
            text = base64.b64encode(bytes(before) + secret)
            core = text[-(-8 * before // 6) : 8 * (before + len(secret)) // 6].decode()
            cores |= {core, core.translate(str.maketrans("+/", "-_"))}
    return sorted(core for core in cores if len(core) >= MIN_SECRET_LENGTH)


def _is_authorization(scheme: str, value: str) -> bool:
    """Return whether the word after `Basic` or `Bearer` is a secret.

    After `Basic`, a secret is `user:password` in base64. After `Bearer`, it is a text of at least 16 characters with a
    digit.
    """
    if scheme.lower() == "bearer":
        return len(value) >= 16 and any(letter.isdigit() for letter in value)
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _url_passwords(url: str) -> set[str]:
    """Return the password of a URL in both forms: as in the URL, and percent-decoded."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return set()
    return {password, unquote(password)} - {""}


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
