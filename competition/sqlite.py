"""Check that a SQLite database can be read and locked, before Optuna or MLflow opens it.

If the file is locked or damaged, both libraries would retry for minutes without a message.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from competition.errors import MaskfoldError

POLL_SECONDS = 0.5  # seconds that one attempt waits if the database is locked
QUIET_SECONDS = 3.0  # seconds of waiting after which a message appears
PATIENCE_SECONDS = 60.0  # seconds of waiting after which a locked database is an error
MAX_CHECKED_BYTES = 2**26  # bytes; for a larger database only the header is checked

logger = logging.getLogger(__name__)


def check_sqlite(path: Path, consequence: str, patience: float = PATIENCE_SECONDS) -> None:
    """Check that a database's file can be read and locked; wait while another program locks the file.

    A missing file is accepted.

    Args:
        path: the file.
        consequence: end of the hint "Or move it away; then …" for a damaged file, such as `the next command creates a
            new database`.
        patience: maximum time to wait for a lock, in seconds.

    Raises:
        MaskfoldError: the file is damaged, is not a database, or stays locked.
    """
    start, is_logged = time.monotonic(), False
    while path.exists():
        try:
            _probe(path)
        except sqlite3.OperationalError as error:
            if not is_lock(error):
                return  # the library itself reports read-only files and full disks
        except sqlite3.DatabaseError as error:
            raise damaged_error(path, error, consequence) from error
        else:
            return
        waited = time.monotonic() - start
        if waited >= patience:
            raise locked_error(path, waited)
        if waited >= min(QUIET_SECONDS, patience) and not is_logged:
            is_logged = True
            logger.warning(
                "%s is locked by another program; waiting up to %.0f s until the lock is released.", path, patience
            )


def is_lock(error: BaseException) -> bool:
    """Return whether an error of SQLite, or of a library that uses it, means that the database is locked."""
    return "database is locked" in str(error) or "database table is locked" in str(error)


def is_damage(error: BaseException) -> bool:
    """Return whether an error of SQLite, or of a library that uses it, means that the file is damaged."""
    return any(text in str(error) for text in ("file is not a database", "disk image is malformed"))


def locked_error(path: Path | str, waited: float) -> MaskfoldError:
    """Return the error for a database that stays locked."""
    return MaskfoldError(
        f"Another program has locked {path} for more than {waited:.0f} s.",
        f"Close that program, then repeat the command. `fuser {path}` shows its process id.",
    )


def damaged_error(path: Path | str, error: BaseException, consequence: str) -> MaskfoldError:
    """Return the error for a damaged database."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return MaskfoldError(
        f"{path} is damaged: {reason}.",
        f"Restore the file from a backup. Or move it away (mv {path} {path}.broken); then {consequence}.",
    )


def _probe(path: Path) -> None:
    """Check the content of a database, then acquire and release its write lock.

    Raises:
        sqlite3.OperationalError: the database is locked, or the system does not allow the access.
        sqlite3.DatabaseError: the file is damaged.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=POLL_SECONDS, isolation_level=None)) as connection:
        if path.stat().st_size <= MAX_CHECKED_BYTES:
            result = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if result != "ok":
                raise sqlite3.DatabaseError(result)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
