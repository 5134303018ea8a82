"""Where trials are kept: SQLite below `mlruns/`, or PostgreSQL, which several machines share."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.config.secrets import scrub

DATABASE = Path("mlruns") / "optuna.db"
HEARTBEAT = 15  # s between two signs of life of a running trial
GRACE = 60  # s without one, after which a trial is given up and tried again
RETRIES = 3  # of one trial
OWNER = "process"  # the attribute of a trial that says who runs it


def open_storage(url: str | None) -> Any:
    """Optuna's storage, with signs of life, so that a killed process leaves no trial running for ever.

    Args:
        url: as SQLAlchemy writes it, e.g. `postgresql://user@host/database`; None: SQLite at `mlruns/optuna.db`.

    Raises:
        MaskfoldError: the URL is none, or of a database that a study cannot use (status 2); the database cannot be
            reached, or its driver is not installed.
    """
    if url is not None:
        url = _checked(url)
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what failed is said by the trial itself
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if url is None:
        DATABASE.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{DATABASE.resolve().as_posix()}"
    how = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        for left in range(5, -1, -1):
            try:
                return RDBStorage(
                    url,
                    engine_kwargs=how,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                )
            except Exception as error:
                if not left or not _made_twice(error):
                    raise
                time.sleep(1.0)
        raise AssertionError
    except ImportError as error:
        raise MaskfoldError(
            f"The storage {safe(url)} needs a driver that is not installed: {error}.",
            'Install it: pip install "maskfold[postgres]".',
        ) from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MaskfoldError(
            f"The storage {safe(url)} cannot be opened: {scrub(first)[:200]}.",
            "Make its folder, or correct the path in --storage."
            if url.startswith("sqlite")
            else "Start the database, or correct --storage.",
        ) from error


def _checked(url: str) -> str:
    """The URL as SQLAlchemy wants it, with the driver that comes with `maskfold[postgres]`.

    Raises:
        MaskfoldError: status 2; processes that share a study wait for each other in PostgreSQL and SQLite only.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    cure = "Write --storage postgresql://user@host/database, or leave it out for SQLite at mlruns/optuna.db."
    try:
        parsed = make_url(url)
        _ = parsed.port  # a port that is no number is seen here
    except (ArgumentError, ValueError) as error:
        raise MaskfoldError(f"--storage {safe(url)} is no database's URL.", cure, status=2) from error
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return "postgresql+psycopg://" + url.partition("://")[2]
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return url
    why = (
        "keeps nothing on disk"
        if parsed.drivername == "sqlite"
        else f"is of {parsed.drivername}, which studies cannot use"
    )
    raise MaskfoldError(f"--storage {safe(url)} {why}.", cure, status=2)


@contextmanager
def alone(storage: Any, name: str) -> Iterator[Any]:
    """Only one process at a time counts a study's trials and takes the next; the others wait.

    Yields:
        A function that lets the next one in before the block ends.
    """
    released = False
    if storage.engine.dialect.name == "postgresql":
        from sqlalchemy import text

        number = int.from_bytes(name.encode()[-7:], "big") % 2**31
        connection = storage.engine.connect()
        connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": number})

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": number})
                connection.close()
    else:
        import fcntl

        path = Path(storage.engine.url.database or ".").with_suffix(".lock")
        file = open(path, "w")  # noqa: SIM115 - closed by `release`
        fcntl.flock(file, fcntl.LOCK_EX)

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                file.close()

    try:
        yield release
    finally:
        release()


def owner() -> dict[str, Any]:
    """This process, as a trial's attribute."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(who: Any) -> bool:
    """Whether the process that ran a trial was one of this machine and is no more."""
    if not isinstance(who, dict) or who.get("host") != socket.gethostname():
        return False  # of other machines the signs of life tell
    return _started(int(who["pid"])) != who["started"]


def _started(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _made_twice(error: Exception) -> bool:
    """Whether another process was making the same tables."""
    return any(
        words in str(error) for words in ("already exists", "duplicate key", "UNIQUE constraint", "database is locked")
    )


def safe(url: str) -> str:
    """Without the password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:…@{tail}" if at and head.count(":") > 1 else url
