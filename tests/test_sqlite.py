"""A damaged or locked database of Optuna or MLflow is an error with its cause, before the library retries."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.sqlite import check_sqlite
from competition.study.storage import open_storage, storage_errors, study_lock
from competition.tracking.store import connect_mlflow, find_mlflow_store

CONSEQUENCE = "all is lost"


def database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(f"{number}" * 50,) for number in range(500)])
        connection.commit()
    return path


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield connection


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database, but a text" * 100)


def broken_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\x07" * 4096
    path.write_bytes(bytes(content))


def test_a_sound_missing_or_empty_file_passes(tmp_path: Path) -> None:
    check_sqlite(database(tmp_path / "a.db"), CONSEQUENCE)
    check_sqlite(tmp_path / "none.db", CONSEQUENCE)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    check_sqlite(tmp_path / "empty.db", CONSEQUENCE)
    (tmp_path / "a.db").chmod(0o444)
    check_sqlite(tmp_path / "a.db", CONSEQUENCE)


@pytest.mark.parametrize("harm", [no_database, broken_page])
def test_a_damaged_file(tmp_path: Path, harm: partial[None]) -> None:
    path = database(tmp_path / "a.db")
    harm(path)
    with pytest.raises(MaskfoldError, match=r"a\.db is damaged") as caught:
        check_sqlite(path, CONSEQUENCE)
    assert f"mv {path} {path}.broken" in caught.value.hint and CONSEQUENCE in caught.value.hint


def test_a_locked_file_is_waited_for_and_then_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = database(tmp_path / "a.db")
    with locked(path), pytest.raises(MaskfoldError, match="nother program has locked") as caught:
        check_sqlite(path, CONSEQUENCE, patience=0.6)
    assert f"fuser {path}" in caught.value.hint
    check_sqlite(path, CONSEQUENCE, patience=0.6)


def test_the_wait_is_announced_and_ends_with_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("competition.sqlite.QUIET_SECONDS", 0.0)
    path = database(tmp_path / "a.db")
    with locked(path) as connection, caplog.at_level(logging.WARNING):
        timer = threading.Timer(1.0, connection.execute, ("ROLLBACK",))
        timer.start()
        check_sqlite(path, CONSEQUENCE)
        timer.join()
    assert len(caplog.records) == 1 and "locked by another program; waiting" in caplog.text


# Optuna


def test_a_damaged_storage_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_database(database(tmp_path / "mlruns/optuna.db"))
    with pytest.raises(MaskfoldError, match=r"optuna\.db is damaged: file is not a database") as caught:
        open_storage(None)
    assert "move it away" in caught.value.hint and "starts at trial 0" in caught.value.hint
    no_database(tmp_path / "mine.db")
    with pytest.raises(MaskfoldError, match=r"mine\.db is damaged"):
        open_storage(f"sqlite:///{tmp_path}/mine.db")


def test_a_locked_storage_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("competition.study.storage.check_sqlite", partial(check_sqlite, patience=0.6))
    with locked(database(tmp_path / "mlruns/optuna.db")), pytest.raises(MaskfoldError, match="nother program has"):
        open_storage(None)


def test_a_storage_that_fails_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("competition.study.storage.SQLITE_TIMEOUT", 0.1)
    storage = open_storage(None)
    path = tmp_path / "mlruns/optuna.db"
    error = r"Another program has locked .*optuna\.db"
    with locked(path), pytest.raises(MaskfoldError, match=error), storage_errors(storage):
        storage.get_all_studies()
    storage.engine.dispose()
    no_database(path)
    with pytest.raises(MaskfoldError, match="is damaged") as caught, storage_errors(storage):
        storage.get_all_studies()
    assert "move it away" in caught.value.hint


def test_waiting_for_the_lock_of_a_study_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("competition.study.storage.QUIET_SECONDS", 0.05)
    storage = open_storage(None)
    with caplog.at_level(logging.WARNING), study_lock(storage, "a") as release:
        threading.Timer(1.0, release).start()
        with study_lock(storage, "a"):
            pass
    assert "another process releases the study" in caplog.text


# MLflow


def test_a_damaged_or_locked_store_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = database(tmp_path / "mlruns/mlflow.db")
    with locked(path), pytest.raises(MaskfoldError, match=r"has locked .*mlflow\.db"):
        connect_mlflow(find_mlflow_store(tmp_path), patience=0.6)
    no_database(path)
    with pytest.raises(MaskfoldError, match=r"mlflow\.db is damaged") as caught:
        connect_mlflow(find_mlflow_store(tmp_path))
    assert "uploads its run again" in caught.value.hint
