"""MLflow's store and Optuna's storage: open, and take a write."""

from __future__ import annotations

import socket
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from competition.doctor.child import ask
from competition.doctor.disk import nearest_there
from competition.doctor.finding import Finding, first_line
from competition.tracking.store import FOLDER, Store, store_of

OPTUNA = "optuna.db"  # as `competition.study.storage` has it, which imports more than may be there
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
LARGE = 2**28  # bytes of a database that is not read as a whole
PATIENCE = 5.0  # s for another program to let go of the database
UNTIL_THEN = "until then training goes on, and the next start of the same command delivers what was missed"


def look_mlflow(root: Path) -> list[Finding]:
    """One row; a server that is down is a warning, since runs wait on disk for it."""
    what, store = "MLflow's store", store_of(root)
    if store.database is not None:
        if (bad := database_row(what, store.database)) is not None:
            return [bad]
        if not store.database.exists():
            return [Finding(what, "ok", f"{store.database} is made by the first run")]
    elif (silence := no_answer(store.uri)) is not None:
        return [_refused(what, store, "reached", silence)]
    answer = ask("mlflow", root=root)
    said = {key for line in answer.lines for key in line}
    if answer.trouble is None:
        how = "takes writes" if "written" in said else "opens; it holds no experiment to write to"
        return [Finding(what, "ok", f"{shown(store.uri)} {how}")]
    trouble = hide(answer.trouble.removeprefix("mlflow.exceptions.MlflowException: "), store.uri)
    return [_refused(what, store, "written to" if "opened" in said else "opened", trouble)]


def _refused(what: str, store: Store, verb: str, trouble: str) -> Finding:
    found = f"{shown(store.uri)} cannot be {verb}: {trouble}"
    if "No module named 'mlflow'" in trouble:
        return Finding(what, "warning", "unknown, since mlflow is not installed", "Install mlflow first.")
    if "schema" in trouble.lower():
        return Finding(what, "unusable", found, f"Copy the database, then type: mlflow db upgrade {shown(store.uri)}.")
    if store.database is None:
        return Finding(
            what, "warning", found, f"Start the server, or correct or unset MLFLOW_TRACKING_URI; {UNTIL_THEN}."
        )
    return Finding(what, "unusable", found, _aside(store.database))


def look_optuna(root: Path) -> list[Finding]:
    """One row for the SQLite file of studies."""
    what, database = "Optuna's storage", root / FOLDER / OPTUNA
    if (bad := database_row(what, database)) is not None:
        return [bad]
    if not database.exists():
        return [Finding(what, "ok", f"{database} is made by the first study")]
    answer = ask("optuna", root=root)
    if answer.trouble is None:
        return [Finding(what, "ok", f"{database} takes writes; {answer.lines[-1]['studies']} studies")]
    if "No module named" in answer.trouble:
        return [Finding(what, "warning", f"cannot be opened: {answer.trouble}", "Install what is missing first.")]
    return [Finding(what, "unusable", f"{database} cannot be opened: {answer.trouble}", _aside(database))]


def database_row(what: str, database: Path) -> Finding | None:
    """What is wrong with a SQLite file, or with SQLite in the folder where it will be; None if nothing."""
    try:
        if database.exists():
            write_there(database)
        else:
            write_beside(nearest_there(database.parent))
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Finding(
                what,
                "warning",
                f"{database} is held by another program for more than {PATIENCE:.0f} s",
                "See which: fuser " + str(database) + ".",
            )
        reason = {
            "attempt to write a readonly database": "it is read-only",
            "database or disk is full": "the disk is full",
            "unable to open database file": "the file or its folder is not open to this user, or is read-only",
            "disk I/O error": "the disk reports an error, or is full",
        }.get(str(error), str(error))
        return Finding(
            what,
            "unusable",
            f"{database} cannot be written: {reason}",
            "Correct the disk, its mount, or the file's mode.",
        )
    except sqlite3.DatabaseError as error:
        return Finding(what, "unusable", f"{database} is broken: {first_line(error)}", _aside(database))
    except OSError as error:
        return Finding(
            what, "unusable", f"{database} cannot be made: {error.strerror or error}", "See the row of mlruns/."
        )
    return None


def write_there(database: Path) -> None:
    """Check a database, and make a table in it that is taken back.

    Raises:
        sqlite3.DatabaseError: it is broken, cannot be written, or is locked.
    """
    place = f"file:{quote(str(database.absolute()))}?mode=rw"
    with closing(sqlite3.connect(place, uri=True, timeout=PATIENCE, isolation_level=None)) as connection:
        if database.stat().st_size < LARGE:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("CREATE TABLE maskfold_doctor (x)")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def write_beside(folder: Path) -> None:
    """Make a database in a folder and remove it: some network disks have no locks, and SQLite fails there.

    Raises:
        sqlite3.DatabaseError: SQLite does not work there.
        OSError: the folder cannot be written.
    """
    with (
        tempfile.TemporaryDirectory(prefix=".doctor~", dir=folder) as inside,
        closing(sqlite3.connect(Path(inside) / "probe.db", timeout=PATIENCE)) as connection,
    ):
        connection.execute("CREATE TABLE probe (x)")
        connection.execute("INSERT INTO probe VALUES (1)")
        connection.commit()


def no_answer(uri: str, seconds: float = 10.0) -> str | None:
    """Why nobody listens at the host and port of an address; None if somebody does, or if it names none.

    Libraries try for minutes before they say so.
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


def shown(uri: str) -> str:
    """An address without its password.

    Example:
        >>> shown("postgresql://me:secret@host/runs")
        'postgresql://me:…@host/runs'
    """
    parts = urlsplit(uri)
    return uri if not parts.password else hide(uri, uri)


def hide(text: str, uri: str) -> str:
    """A text in which the password of an address may stand, without it."""
    password = urlsplit(uri).password
    for word in {password, unquote(password)} if password else ():
        text = text.replace(word, "…")
    return text


def _aside(database: Path) -> str:
    then = (
        "the next study begins at trial 0"
        if database.name == OPTUNA
        else "the next start makes another and delivers its run again"
    )
    return f"Move it away (mv {database} {database}.broken): {then}."
