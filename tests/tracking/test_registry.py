"""Versions of a registered model: exactly one for each model, also after errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError
from competition.tracking.registry import RegisteredVersion, register_model
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import finish_fold, line
from tests.tracking.test_uploader import fetch


@pytest.fixture
def done(run_folder: Path, delivery: Callable[[], RunUploader]) -> Path:
    """A finished run that MLflow has."""
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    finish_fold(run_folder / "fold_0")
    (run_folder / "summary.json").write_text(json.dumps({"metric": "dice", "score": 0.625, "low": 0.5, "high": 0.75}))
    new = delivery()
    new.begin()
    new.upload(last=True)
    new.close("FINISHED")
    return run_folder


def write(folder: Path, place: Path) -> None:
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\nutc_time_created: '2026-01-01 00:00:00'\n")
    (folder / "weights.safetensors").write_bytes(b"weights")


def make(run_folder: Path, exp: Experiment, fingerprint: str = "one", best: bool = False) -> RegisteredVersion:
    return register_model(run_folder, exp, write, fingerprint, {"run_hash": run_folder.name}, "Good networks.", best)


def test_a_version_hangs_on_its_run_and_the_same_model_is_no_second_one(done: Path, exp: Experiment) -> None:
    client, before = fetch(done)
    version = make(done, exp)
    assert (version.name, version.number, version.uri, version.is_new) == ("toy", 1, "models:/toy/1", True)
    found = client.get_model_version("toy", "1")
    assert found.run_id == before["."].info.run_id and found.status == "READY"
    assert found.tags["run_hash"] == done.name and found.description == "Good networks."
    assert make(done, exp) == RegisteredVersion("toy", 1, "models:/toy/1", version.store, False)
    assert make(done, exp, "two").number == 2
    assert len(client.search_model_versions("name = 'toy'")) == 2
    (model,) = [
        one
        for one in client.search_logged_models([before["."].info.experiment_id])
        if one.artifact_location == found.source
    ]
    assert {metric.key: metric.value for metric in model.metrics}["cv_score"] == 0.625
    assert model.params["patch.size"] == "[32, 48]"
    after = fetch(done)[1]["."]
    assert (after.info.status, after.info.end_time) == ("FINISHED", before["."].info.end_time)
    assert len(client.get_metric_history(after.info.run_id, "cv_score")) == 1  # the model's points are the run's own


def test_the_alias_goes_to_the_best(done: Path, exp: Experiment) -> None:
    client, _ = fetch(done)
    make(done, exp, "one", best=True)
    make(done, exp, "two", best=True)
    assert client.get_model_version_by_alias("toy", "best").version in (2, "2")
    make(done, exp, "one", best=True)
    assert client.get_model_version_by_alias("toy", "best").version in (1, "1")


def test_a_run_that_mlflow_lost_is_delivered_first(done: Path, exp: Experiment, empty_database: Path) -> None:
    with open(empty_database, "rb") as source:
        (done.parents[2] / "mlflow.db").write_bytes(source.read())
    make(done, exp)
    client, runs = fetch(done)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    assert client.get_model_version("toy", "1").run_id == runs["."].info.run_id


def test_half_a_model_is_none(done: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    client, runs = fetch(done)
    experiment = runs["."].info.experiment_id
    networks = {model.model_id for model in client.search_logged_models([experiment])}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(MaskfoldError, match=r"mlflow\.db\).*no space left"):
        patch.setattr(MlflowClient, "log_model_artifacts", full)
        make(done, exp)
    assert {model.model_id for model in client.search_logged_models([experiment])} == networks
    assert not client.search_model_versions("name = 'toy'")
    assert make(done, exp).number == 1


def test_what_cannot_be_written_is_told_in_its_own_words(done: Path, exp: Experiment) -> None:
    def fail(folder: Path, place: Path) -> None:
        raise MaskfoldError("The weights are gone.", "Copy them back.")

    with pytest.raises(MaskfoldError, match="The weights are gone"):
        register_model(done, exp, fail, "one", {}, "")
    assert not fetch(done)[0].search_model_versions("name = 'toy'")


def test_a_server_that_is_away_is_told(done: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MaskfoldError, match=r"MLflow \(http://127\.0\.0\.1:9\)"):
        make(done, exp)
