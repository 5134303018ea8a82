"""The store of a project, and MLflow's settings."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.orm import Session

from competition.tracking.datasets import CaseSet, log_case_sets
from competition.tracking.store import (
    MlflowStore,
    configure_mlflow,
    connect_mlflow,
    find_mlflow_store,
    get_or_create_experiment,
    project_root,
    retry_after_conflict,
)


def test_the_default_is_sqlite_below_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    store = find_mlflow_store(tmp_path)
    assert store.uri == f"sqlite:///{tmp_path.resolve()}/mlruns/mlflow.db"
    assert store.artifacts == tmp_path.resolve() / "mlruns" / "artifacts"


def test_the_variable_moves_database_and_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/my.db")
    store = find_mlflow_store(tmp_path / "project")
    assert (store.database, store.artifacts) == (tmp_path / "elsewhere" / "my.db", tmp_path / "elsewhere" / "artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    store = find_mlflow_store(tmp_path)
    assert store.is_server
    assert (store.database, store.artifacts) == (None, None)


def test_the_root_of_a_run_is_above_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project_root(tmp_path / "mlruns" / "runs" / "a" / "b") == tmp_path.resolve()
    monkeypatch.chdir(tmp_path)
    assert project_root(tmp_path / "elsewhere") == tmp_path


def test_telemetry_is_off_and_a_users_waits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    configure_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_an_experiment_is_made_once_and_restored(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = find_mlflow_store(project)
    client = connect_mlflow(store)
    first = get_or_create_experiment(client, store, "toy")
    assert get_or_create_experiment(client, store, "toy") == first
    assert client.get_experiment(first).artifact_location == (project / "mlruns" / "artifacts").as_uri()
    client.delete_experiment(first)
    assert get_or_create_experiment(client, store, "toy") == first
    assert client.get_experiment(first).lifecycle_stage == "active"
    assert "was deleted" in caplog.text


def meet_before_inserting(store: MlflowStore, calls: list[Callable[[], object]]) -> list[BaseException | None]:
    """Run calls in threads that all look up before one of them inserts; return their errors."""
    together = threading.Barrier(len(calls))
    met: set[int] = set()

    def wait_once(*_: object) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            together.wait(60)

    event.listen(Session, "before_flush", wait_once)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.exception() for future in [pool.submit(call) for call in calls]]
    finally:
        event.remove(Session, "before_flush", wait_once)


def test_two_runs_log_one_data_set_at_the_same_time(project: Path) -> None:
    store = find_mlflow_store(project)
    client = connect_mlflow(store)
    experiment = get_or_create_experiment(client, store, "toy")
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    cases = [CaseSet("train", "toy, train", "0123", 4, "/runs")]
    calls = [lambda run=run: log_case_sets(client, run, cases) for run in runs]
    assert meet_before_inserting(store, calls) == [None, None]
    logged = [client.get_run(run).inputs.dataset_inputs for run in runs]
    assert [[one.dataset.digest for one in sets] for sets in logged] == [["0123"], ["0123"]]


def test_two_runs_set_one_tag_at_the_same_time(project: Path) -> None:
    store = find_mlflow_store(project)
    client = connect_mlflow(store)
    experiment = get_or_create_experiment(client, store, "toy")
    calls = [
        lambda: retry_after_conflict(lambda: client.set_experiment_tag(experiment, "view", "columns")) for _ in range(2)
    ]
    assert meet_before_inserting(store, calls) == [None, None]
    assert client.get_experiment(experiment).tags["view"] == "columns"


def test_only_conflicts_are_retried() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise MlflowException("the run was deleted")

    with pytest.raises(MlflowException):
        retry_after_conflict(refuse)
    assert len(calls) == 1
