"""Check that the disk, MLflow's store and Optuna's storage can be opened and written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from competition.doctor.finding import CheckResult, first_line
from competition.doctor.probe import run_probe
from competition.tracking.store import MLRUNS, MlflowStore, find_mlflow_store

# Disk

GIB = 2**30
LOW_SPACE = 5 * GIB
MIN_SPACE = GIB // 4
TEST_FILE_BYTES = 2**20


def check_disk(root: Path) -> list[CheckResult]:
    """Return rows for `mlruns/`, the cache of preprocessed cases, and MLflow's artifacts."""
    rows = [check_folder(f"{MLRUNS}/", root / MLRUNS)]
    artifacts = find_mlflow_store(root).artifacts
    if artifacts is None:
        rows.append(CheckResult("artifacts", "ok", "stored by the server that MLFLOW_TRACKING_URI names"))
    for name, folder in (("prepared cases", root / MLRUNS / "prepared"), ("artifacts", artifacts)):
        # If the first row is not ok, folders that would be created inside `mlruns/` have the same problem.
        if folder is not None and (rows[0].state == "ok" or nearest_existing(folder) == folder):
            rows.append(check_folder(name, folder))
    return rows


def check_folder(name: str, folder: Path) -> CheckResult:
    """Check that a folder is writable and that its disk has enough space.

    If the folder does not exist, its nearest existing parent is checked.
    """
    existing = nearest_existing(folder)
    label = f"{folder}" if existing == folder else f"{folder} (not created yet)"
    error = find_write_error(existing)
    free = shutil.disk_usage(existing).free if existing.is_dir() else 0
    space = f"{free / GIB:.1f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    hint = "Free some space, or replace the folder by a link to another disk."
    if error is not None:
        return CheckResult(name, "unusable", f"{label} is not writable: {error[0]}", error[1])
    if free < MIN_SPACE:
        return CheckResult(name, "unusable", f"{label} is on a disk that is nearly full: {space}", hint)
    if free < LOW_SPACE:
        needs = "checkpoints, preprocessed cases and predictions need several gigabytes"
        return CheckResult(name, "warning", f"{label} has {space}; {needs}", hint)
    return CheckResult(name, "ok", f"{label} is writable; {space}")


def nearest_existing(folder: Path) -> Path:
    """Return the folder if it exists; otherwise its nearest existing parent."""
    folder = folder.absolute()
    while not folder.exists() and not folder.is_symlink() and folder != folder.parent:
        folder = folder.parent
    return folder


def find_write_error(folder: Path) -> tuple[str, str] | None:
    """Test whether a folder is writable: write a file of one mebibyte and remove the file.

    Returns:
        None if the folder is writable; otherwise the problem and a hint.
    """
    if not folder.is_dir():
        is_broken_link = folder.is_symlink() and not folder.exists()
        return (
            "it is a broken link" if is_broken_link else "it is a file",
            f"Remove {folder}, and create a folder in its place.",
        )
    path = folder / f".doctor~{os.getpid()}~{secrets.token_hex(4)}.tmp"
    try:
        with open(path, "wb") as file:
            file.write(os.urandom(TEST_FILE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return explain_os_error(error)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def explain_os_error(error: OSError) -> tuple[str, str]:
    """Return the problem and a hint for an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "Free some space, or replace the folder by a link to another disk."
    if error.errno == errno.EROFS:
        return "the file system is read-only", "Mount the file system writable, or work in another folder."
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "permission denied (read-only for this user)",
            "Correct the owner of the folder, or make the folder writable: chmod u+rwx FOLDER.",
        )
    return error.strerror or str(error), "Work in another folder."


# Databases

# Equal to the value in `competition.study.storage`, which imports packages that may be missing.
OPTUNA_FILE = "optuna.db"
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
MAX_CHECKED_BYTES = 2**28  # databases of more bytes are not checked completely
LOCK_TIMEOUT = 5.0  # s to wait for a locked database
UPLOAD_LATER = "training works without the server: when you repeat the training command, it uploads the missing results"


def check_mlflow_store(root: Path) -> list[CheckResult]:
    """Return one row for MLflow's store.

    An unreachable server is only a warning, because runs stay on disk until they can be uploaded.
    """
    name, store = "MLflow's store", find_mlflow_store(root)
    if store.database is not None:
        if (problem := check_database(name, store.database)) is not None:
            return [problem]
        if not store.database.exists():
            return [CheckResult(name, "ok", f"{store.database} does not exist yet; the first run creates it")]
    elif (error := connection_error(store.uri)) is not None:
        return [_store_problem(name, store, "reached", error)]
    answer = run_probe("mlflow", root=root)
    keys = {key for line in answer.lines for key in line}
    if answer.trouble is None:
        result = (
            "is writable"
            if "written" in keys
            else "can be opened; a test write is not possible, because the store contains no MLflow experiment"
        )
        return [CheckResult(name, "ok", f"{without_password(store.uri)} {result}")]
    error = remove_password(answer.trouble.removeprefix("mlflow.exceptions.MlflowException: "), store.uri)
    return [_store_problem(name, store, "written to" if "opened" in keys else "opened", error)]


def _store_problem(name: str, store: MlflowStore, verb: str, error: str) -> CheckResult:
    detail = f"{without_password(store.uri)} cannot be {verb}: {error}"
    if "No module named 'mlflow'" in error:
        return CheckResult(name, "warning", "unknown, because mlflow is not installed", "Install mlflow first.")
    if "schema" in error.lower():
        return CheckResult(
            name,
            "unusable",
            detail,
            f"Make a backup of the database, then run: mlflow db upgrade {without_password(store.uri)}.",
        )
    if store.database is None:
        hint = f"Start the server, or correct or unset the variable MLFLOW_TRACKING_URI; {UPLOAD_LATER}."
        return CheckResult(name, "warning", detail, hint)
    return CheckResult(name, "unusable", detail, _move_away_hint(store.database))


def check_optuna_storage(root: Path) -> list[CheckResult]:
    """Return one row for the SQLite file of studies."""
    name, database = "Optuna's storage", root / MLRUNS / OPTUNA_FILE
    if (problem := check_database(name, database)) is not None:
        return [problem]
    if not database.exists():
        return [CheckResult(name, "ok", f"{database} does not exist yet; the first study creates it")]
    answer = run_probe("optuna", root=root)
    if answer.trouble is None:
        return [CheckResult(name, "ok", f"{database} is writable; studies: {answer.lines[-1]['studies']}")]
    if "No module named" in answer.trouble:
        return [
            CheckResult(name, "warning", f"cannot be opened: {answer.trouble}", "Install the missing package first.")
        ]
    return [CheckResult(name, "unusable", f"{database} cannot be opened: {answer.trouble}", _move_away_hint(database))]


def check_database(name: str, database: Path) -> CheckResult | None:
    """Return the problem with a SQLite file; None if there is no problem.

    If the file does not exist, check whether SQLite works in its folder.
    """
    try:
        if database.exists():
            probe_database(database)
        else:
            probe_new_database(nearest_existing(database.parent))
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            detail = f"another program has locked {database} for more than {LOCK_TIMEOUT:.0f} s"
            return CheckResult(name, "warning", detail, f"To find that program, run: fuser {database}.")
        reason = {
            "attempt to write a readonly database": "it is read-only",
            "database or disk is full": "the disk is full",
            "unable to open database file": "this user may not access the file or its folder, or the file is read-only",
            "disk I/O error": "the disk reports an error, or is full",
        }.get(str(error), str(error))
        hint = "Make the file and its folder writable, free some space, or use another disk."
        return CheckResult(name, "unusable", f"{database} is not writable: {reason}", hint)
    except sqlite3.DatabaseError as error:
        return CheckResult(name, "unusable", f"{database} is damaged: {first_line(error)}", _move_away_hint(database))
    except OSError as error:
        detail = f"{database} cannot be created: {error.strerror or error}"
        return CheckResult(name, "unusable", detail, "See the row of mlruns/ in this table.")
    return None


def probe_database(database: Path) -> None:
    """Check that a database can be read and written: create a table, and roll the creation back.

    Raises:
        sqlite3.DatabaseError: the database is damaged, not writable, or locked.
    """
    uri = f"file:{quote(str(database.absolute()))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)) as connection:
        if database.stat().st_size < MAX_CHECKED_BYTES:
            result = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if result != "ok":
                raise sqlite3.DatabaseError(result)
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("CREATE TABLE maskfold_doctor (x)")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def probe_new_database(folder: Path) -> None:
    """Check that SQLite works in a folder: create a database, and remove it.

    On a network disk without file locks, SQLite does not work.

    Raises:
        sqlite3.DatabaseError: SQLite does not work in the folder.
        OSError: the folder is not writable.
    """
    with (
        tempfile.TemporaryDirectory(prefix=".doctor~", dir=folder) as temporary,
        closing(sqlite3.connect(Path(temporary) / "probe.db", timeout=LOCK_TIMEOUT)) as connection,
    ):
        connection.execute("CREATE TABLE probe (x)")
        connection.execute("INSERT INTO probe VALUES (1)")
        connection.commit()


def connection_error(uri: str, seconds: float = 10.0) -> str | None:
    """Return the reason why the host of a URL cannot be reached.

    Return None if the host can be reached, or if the URL has no host or is reached through a proxy. Call this function
    before a library connects, because libraries retry for minutes before they report an unreachable server.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    try:
        host, port = parts.hostname, parts.port or PORTS.get(scheme)
        if host is None or port is None or (scheme in getproxies() and not proxy_bypass(host)):
            return None
        with socket.create_connection((host, port), seconds):
            return None
    except (OSError, ValueError) as error:
        return f"{getattr(error, 'strerror', None) or error}"


def without_password(uri: str) -> str:
    """Return a URL without its password.

    Example:
        >>> without_password("postgresql://me:secret@host/runs")
        'postgresql://me:…@host/runs'
    """
    parts = urlsplit(uri)
    return uri if not parts.password else remove_password(uri, uri)


def remove_password(text: str, uri: str) -> str:
    """Return a text in which the password of a URL is hidden.

    Both the percent-encoded and the decoded form of the password are hidden.
    """
    password = urlsplit(uri).password
    for secret in {password, unquote(password)} if password else ():
        text = text.replace(secret, "…")
    return text


def _move_away_hint(database: Path) -> str:
    consequence = (
        "the next study starts at trial 0"
        if database.name == OPTUNA_FILE
        else "the next command that uses MLflow creates a new database and uploads its run again"
    )
    return f"Move the database away (mv {database} {database}.broken); then {consequence}."
