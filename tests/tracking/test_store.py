"""The store of a project, and MLflow's settings."""

import os
from pathlib import Path

import pytest

from competition.tracking.store import (
    configure_mlflow,
    connect_mlflow,
    find_mlflow_store,
    get_or_create_experiment,
    project_root,
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
