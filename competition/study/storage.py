"""Open the database with the trials of studies: SQLite in `mlruns/`, or PostgreSQL for several machines."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.redact import redact
from competition.sqlite import check_sqlite, damaged_error, is_damage, is_lock, locked_error

if TYPE_CHECKING:
    import optuna

DATABASE = Path("mlruns") / "optuna.db"
HEARTBEAT_INTERVAL = 15  # s between two heartbeats (signs of life) of a running trial
HEARTBEAT_GRACE = 60  # s without a heartbeat after which a trial is taken for dead and repeated
MAX_RETRIES = 3  # maximum number of retries of a trial whose process was killed
SQLITE_TIMEOUT = 60  # s that a statement waits if the database is locked
QUIET_SECONDS = 5.0  # s that a process waits for a study's lock before a message
# User attributes of a trial: the process that runs it; how often a process that ran it was killed; why it failed or was
# pruned.
PROCESS_ATTRIBUTE, KILLS_ATTRIBUTE, REASON_ATTRIBUTE = "process", "kills", "reason"

logger = logging.getLogger(__name__)


def open_storage(url: str | None) -> Any:
    """Open the database in which Optuna stores trials, and return it as Optuna's storage object.

    While a trial runs, its process writes heartbeats (signs of life) to the database. If the heartbeats stop, another
    process of the study marks the trial as failed and repeats it.

    Args:
        url: URL of the database in the form of SQLAlchemy, e.g. `postgresql://user@host/database`. None for SQLite at
            `mlruns/optuna.db`.

    Raises:
        MaskfoldError: the URL is invalid, or studies do not support this kind of database (status 2); the database
            cannot be opened or is damaged; or the driver of the database is not installed.
    """
    if url is not None:
        url = _checked_url(url)
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials report their failures themselves
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if url is None:
        DATABASE.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{DATABASE.resolve().as_posix()}"
    if (database := _sqlite_file(url)) is not None:
        check_sqlite(database, "the next study starts at trial 0")
    options = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        for attempts_left in range(5, -1, -1):
            try:
                return RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT_INTERVAL,
                    grace_period=HEARTBEAT_GRACE,
                    heartbeat_stale_trial_callback=_repeat_killed_trial,
                )
            except Exception as error:
                if not attempts_left or not _created_concurrently(error):
                    raise
                time.sleep(1.0)
        raise AssertionError
    except ImportError as error:
        raise MaskfoldError(
            f"The storage {hide_password(url)} requires a database driver that is not installed: {error}.",
            'Install the driver: pip install "maskfold[postgres]".',
        ) from error
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MaskfoldError(
            f"The storage {hide_password(url)} cannot be opened: {redact(first_line)[:200]}.",
            "Create the folder of the database, or correct the path in --storage."
            if url.startswith("sqlite")
            else "Start the database server, or correct --storage.",
        ) from error


def repeat_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial, is_killed: bool = True) -> bool:
    """Put a copy of a trial whose process ended into Optuna's queue.

    If processes that ran this trial were killed more than `MAX_RETRIES` times, the copy is not queued, but has the
    state FAIL. Without the copy, the trial would be missing among the trials, and the study could lose trial 0.

    Args:
        study: Optuna's study.
        trial: the trial, which has the state FAIL.
        is_killed: whether the process was killed; False if the user interrupted it.

    Returns:
        Whether the trial is repeated.
    """
    import optuna

    kills = int(trial.user_attrs.get(KILLS_ATTRIBUTE, 0)) + is_killed
    attributes = {**trial.user_attrs, KILLS_ATTRIBUTE: kills}
    is_repeated = kills <= MAX_RETRIES
    if not is_repeated:
        attributes[REASON_ATTRIBUTE] = f"Its process was killed {kills} times."
    state = optuna.trial.TrialState.WAITING if is_repeated else optuna.trial.TrialState.FAIL
    study.add_trial(
        optuna.create_trial(
            state=state,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=trial.system_attrs,
        )
    )
    return is_repeated


def _repeat_killed_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    repeat_trial(study, trial)


def _sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for other databases."""
    return Path(url.partition(":///")[2].partition("?")[0]) if url.startswith("sqlite:///") else None


@contextmanager
def storage_errors(storage: Any) -> Iterator[None]:
    """Convert errors of an open storage in the `with` block to a MaskfoldError with the cause and a hint."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        url = storage.engine.url.render_as_string(hide_password=True)
        file = _sqlite_file(url)
        if file is not None and is_lock(cause):
            raise locked_error(file, SQLITE_TIMEOUT) from error
        if file is not None and is_damage(cause):
            raise damaged_error(file, cause, "the next study starts at trial 0") from error
        first_line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise MaskfoldError(
            f"The storage {url} failed: {redact(first_line)[:200]}.",
            f"Check that the disk has free space and that you may write to {file.parent}. Then repeat the command, "
            "which resumes the study."
            if file is not None
            else "Check that the database server runs and that this machine can reach it. Then repeat the command, "
            "which resumes the study.",
        ) from error


def _checked_url(url: str) -> str:
    """Check the URL of a database, and return the URL with which Optuna opens it.

    For PostgreSQL, the URL gets the driver that `maskfold[postgres]` installs. For SQLite, it is returned unchanged.

    Raises:
        MaskfoldError: the URL is invalid, or the database is neither PostgreSQL nor a SQLite file, the only ones that
            `study_lock` supports (status 2).
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    hint = (
        "Set --storage postgresql://user@host/database. Without --storage, the database is SQLite at mlruns/optuna.db."
    )
    try:
        parsed = make_url(url)
        _ = parsed.port  # this raises ValueError if the port is not a number
    except (ArgumentError, ValueError) as error:
        raise MaskfoldError(
            f"--storage: found {hide_password(url)}, expected the address of a database.", hint, status=2
        ) from error
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return "postgresql+psycopg://" + url.partition("://")[2]
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return url
    expected = (
        "a file, such as sqlite:///optuna.db"
        if parsed.drivername == "sqlite"
        else "an address that begins with postgresql:// or sqlite:///"
    )
    raise MaskfoldError(f"--storage: found {hide_password(url)}, expected {expected}.", hint, status=2)


@contextmanager
def study_lock(storage: Any, name: str) -> Iterator[Any]:
    """Hold the lock of a study during the `with` block; other processes that need the lock wait.

    The lock ensures that only one process at a time counts the trials and samples the values of the next one.

    Args:
        storage: Optuna's storage.
        name: name of the study.

    Yields:
        A function that releases the lock before the end of the `with` block.
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
        message = threading.Timer(
            QUIET_SECONDS, logger.warning, ("Waiting until another process releases the study (lock: %s).", path)
        )
        message.daemon = True
        message.start()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        finally:
            message.cancel()

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                file.close()

    try:
        yield release
    finally:
        release()


def current_process() -> dict[str, Any]:
    """Return host, process id and start time of this process, which a trial stores to identify its process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_process_dead(process: Any) -> bool:
    """Return whether the process of a trial ran on this machine and has ended.

    For a process on another machine, return False: only its missing heartbeats show that it has ended.

    Args:
        process: result of `current_process` that is stored with the trial.
    """
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return False
    return _started(int(process["pid"])) != process["started"]


def _started(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _created_concurrently(error: Exception) -> bool:
    """Return whether an error of opening the database means that another process was creating the same tables."""
    return any(
        text in str(error) for text in ("already exists", "duplicate key", "UNIQUE constraint", "database is locked")
    )


def hide_password(url: str) -> str:
    """Return a URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:…@{tail}" if at and head.count(":") > 1 else url
