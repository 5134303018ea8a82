import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from competition.config import Experiment
from competition.tracking.shipper import Shipper

from .conftest import finish_fold, line
from .test_delivery import fetch


def test_a_run_is_delivered_while_it_lasts(run_folder: Path, exp: Experiment) -> None:
    with Shipper(run_folder, exp, pause=0.05) as shipper:
        (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
        until = time.monotonic() + 60
        while shipper._delivery.state.of("fold_0").journal.offset == 0 and time.monotonic() < until:
            time.sleep(0.05)
        assert fetch(run_folder)[1]["fold_0"].data.metrics == {"lr": 0.1}
        assert fetch(run_folder)[1]["."].info.status == "RUNNING"
        finish_fold(run_folder / "fold_0")
    client, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    environment = {Path(file.path).name for file in client.list_artifacts(runs["."].info.run_id, "environment")}
    assert "packages.txt" in environment


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt("SIGTERM"), "KILLED"), (ValueError("x"), "FAILED")])
def test_an_exception_goes_through_and_is_told(run_folder: Path, exp: Experiment, error: BaseException, status: str) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    with pytest.raises(type(error)), Shipper(run_folder, exp, pause=0.05):
        raise error
    _, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": status, "fold_0": status}


def test_what_finish_says_goes_first(run_folder: Path, exp: Experiment) -> None:
    with Shipper(run_folder, exp, pause=0.05) as shipper:
        shipper.finish("KILLED")
    assert fetch(run_folder)[1]["."].info.status == "KILLED"


def test_a_server_that_is_down_is_told_once_and_served_later(
        run_folder: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    with caplog.at_level(logging.WARNING, "competition"), Shipper(run_folder, exp, pause=0.01) as shipper:
        until = time.monotonic() + 60
        while not shipper._troubled and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("competition")]
    assert sum("does not take deliveries" in text for text in told) == 1
    assert "the next start of the same command delivers them" in told[-1]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Shipper(run_folder, exp, pause=0.05):
        pass
    assert fetch(run_folder)[1]["fold_0"].data.metrics == {"lr": 0.1}


def test_a_store_that_hangs_holds_the_end_for_a_bounded_time(
        run_folder: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("competition.tracking.delivery.connect", lambda store: time.sleep(20))
    with caplog.at_level(logging.WARNING, "competition"), Shipper(run_folder, exp, pause=0.01, patience=0.2) as shipper:
        pass
    assert shipper._thread.is_alive()
    assert "the next start of the same command delivers them" in caplog.text


def test_a_process_that_was_killed_is_gone_on_with(run_folder: Path, exp: Experiment) -> None:
    script = ("import sys, time; from pathlib import Path; from competition.config import Experiment;"
              "from competition.tracking.shipper import Shipper;"
              "exp = Experiment.model_validate_json(sys.argv[2], strict=False); shipper = Shipper(Path(sys.argv[1]), exp, pause=0.05);"
              "shipper.__enter__(); time.sleep(300)")
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    process = subprocess.Popen([sys.executable, "-c", script, str(run_folder), exp.model_dump_json(by_alias=True)])
    try:
        until = time.monotonic() + 120
        while not (run_folder / "shipped.json").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open(run_folder / "fold_0" / "metrics.jsonl", "a") as file:
        file.write(line(2, lr=0.2))
    with Shipper(run_folder, exp, pause=0.05):
        pass
    client, runs = fetch(run_folder)
    assert set(runs) == {".", "fold_0"}
    assert len(client.search_runs([runs["."].info.experiment_id])) == 2
    assert [point.step for point in client.get_metric_history(runs["fold_0"].info.run_id, "lr")] == [1, 2]


@pytest.fixture
def server(project: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real MLflow server that is not listening yet when the test begins: it takes seconds."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{project}/served/mlflow.db",
             "--artifacts-destination", str(project / "served" / "artifacts"), "--port", str(port), "--workers", "1"]
    (project / "served").mkdir()
    shutil.copy(project / "mlruns" / "mlflow.db", project / "served" / "mlflow.db")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    yield f"http://127.0.0.1:{port}", process
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.slow
def test_a_server_that_comes_up_later_gets_everything(
        run_folder: Path, exp: Experiment, server: tuple[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    uri, process = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (run_folder / "fold_0" / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1, "time": 1.0, "metrics": {"lr": 0.1, "train/loss": NaN}}\n')
    finish_fold(run_folder / "fold_0")
    with Shipper(run_folder, exp, pause=0.5) as shipper:
        until = time.monotonic() + 120
        while shipper._delivery.state.of("fold_0").status != "FINISHED" and time.monotonic() < until:
            time.sleep(0.2)
        assert process.poll() is None
    client, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    assert runs["fold_0"].data.metrics["lr"] == 0.1
    assert "last.pt" in {file.path for file in client.list_artifacts(runs["fold_0"].info.run_id)}
    assert urllib.request.urlopen(f"{uri}/health", timeout=10).status == 200


def free_port() -> int:
    """A TCP port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
