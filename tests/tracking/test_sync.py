"""Upload of a run in the background, also when the store fails or the process is killed."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from competition.config.experiment import Experiment
from competition.tracking.store import connect_mlflow, find_mlflow_store, project_root
from competition.tracking.sync import MlflowSync
from competition.training.fold_process import fold_environment
from tests.tracking.conftest import finish_fold, line
from tests.tracking.test_uploader import fetch
from tests.warm import WarmProcesses


def test_a_run_is_delivered_while_it_lasts(run_folder: Path, exp: Experiment) -> None:
    with MlflowSync(run_folder, exp, interval=0.05) as shipper:
        (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
        until = time.monotonic() + 60
        while shipper._uploader.state.uploaded("fold_0").journal.offset == 0 and time.monotonic() < until:
            time.sleep(0.05)
        assert fetch(run_folder)[1]["fold_0"].data.metrics == {"lr": 0.1}
        assert fetch(run_folder)[1]["."].info.status == "RUNNING"
        finish_fold(run_folder / "fold_0")
    client, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    environment = {Path(file.path).name for file in client.list_artifacts(runs["."].info.run_id, "environment")}
    assert "packages.txt" in environment


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt("SIGTERM"), "KILLED"), (ValueError("x"), "FAILED")])
def test_an_exception_goes_through_and_is_told(
    run_folder: Path, exp: Experiment, error: BaseException, status: str
) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    with pytest.raises(type(error)), MlflowSync(run_folder, exp, interval=0.05):
        raise error
    _, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": status, "fold_0": status}


def test_what_finish_says_goes_first(run_folder: Path, exp: Experiment) -> None:
    with MlflowSync(run_folder, exp, interval=0.05) as shipper:
        shipper.set_status("KILLED")
    assert fetch(run_folder)[1]["."].info.status == "KILLED"


def test_a_server_that_is_down_is_told_once_and_served_later(
    run_folder: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    with caplog.at_level(logging.WARNING, "competition"), MlflowSync(run_folder, exp, interval=0.01) as shipper:
        until = time.monotonic() + 60
        while not shipper._is_failing and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("competition")]
    assert sum("cannot be sent to MLflow" in text for text in told) == 1
    assert "To upload them, run the same command again" in told[-1]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with MlflowSync(run_folder, exp, interval=0.05):
        pass
    assert fetch(run_folder)[1]["fold_0"].data.metrics == {"lr": 0.1}


def test_a_store_that_hangs_holds_the_end_for_a_bounded_time(
    run_folder: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("competition.tracking.uploader.connect_mlflow", lambda store: time.sleep(20))
    with (
        caplog.at_level(logging.WARNING, "competition"),
        MlflowSync(run_folder, exp, interval=0.01, timeout=0.2) as shipper,
    ):
        pass
    assert shipper._thread.is_alive()
    assert "To upload them, run the same command again" in caplog.text


def test_a_process_that_was_killed_is_gone_on_with(
    run_folder: Path, exp: Experiment, warm: WarmProcesses, tmp_path: Path
) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    process = warm.start("tests.forked:deliver", run_folder, exp.model_dump_json(by_alias=True), cwd=tmp_path)
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
    with MlflowSync(run_folder, exp, interval=0.05):
        pass
    client, runs = fetch(run_folder)
    assert set(runs) == {".", "fold_0"}
    assert len(client.search_runs([runs["."].info.experiment_id])) == 2
    assert [point.step for point in client.get_metric_history(runs["fold_0"].info.run_id, "lr")] == [1, 2]


class Served:
    """A real MLflow server that is started, killed and started again on one port; each start takes seconds."""

    def __init__(self, project: Path) -> None:
        self.port, self.place = free_port(), project / "served"
        self.place.mkdir()
        shutil.copy(project / "mlruns" / "mlflow.db", self.place / "mlflow.db")
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.place}/mlflow.db",
            "--artifacts-destination",
            str(self.place / "artifacts"),
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )

    def kill(self) -> None:
        """The server and its workers, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that is not there yet when the test begins."""
    served = Served(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("competition.tracking.sync.MAX_PAUSE", 1.0)
    yield served
    served.kill()


def wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 240
    while not done() and time.monotonic() < until:
        time.sleep(0.1)
    assert done()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_comes_up_later_gets_everything(run_folder: Path, exp: Experiment, server: Served) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1, "time": 1.0, "metrics": {"lr": 0.1, "train/loss": NaN}}\n'
    )
    finish_fold(run_folder / "fold_0")
    with MlflowSync(run_folder, exp, interval=0.5) as shipper:
        wait(lambda: shipper._is_failing)
        server.start()
        wait(lambda: shipper._uploader.state.uploaded("fold_0").status == "FINISHED")
    client, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    assert runs["fold_0"].data.metrics["lr"] == 0.1
    assert "last.pt" in {file.path for file in client.list_artifacts(runs["fold_0"].info.run_id)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_dies_in_mid_run_gets_the_rest_when_it_is_back(
    run_folder: Path, exp: Experiment, server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    journal = run_folder / "fold_0" / "metrics.jsonl"
    journal.write_text("".join(line(step, lr=step / 10) for step in (1, 2, 3)))
    server.start()
    with (
        caplog.at_level(logging.WARNING, "competition"),
        MlflowSync(run_folder, exp, interval=0.2, sampling_interval=0.2) as shipper,
    ):
        shipped = shipper._uploader.state
        wait(
            lambda: (
                shipped.uploaded("fold_0").steps.get("lr") == 3
                and "system/cpu_utilization_percentage" in shipped.uploaded(".").steps
            )
        )
        server.kill()
        wait(lambda: shipper._is_failing)
        there = shipped.uploaded(".").steps["system/cpu_utilization_percentage"]
        for step in (4, 5, 6):
            with open(journal, "a") as file:  # training goes on
                file.write(line(step, lr=step / 10))
            wait(lambda: (run_folder / "metrics.jsonl").read_text().count("\n") > there + 5)
        assert shipped.uploaded("fold_0").steps["lr"] == 3
        server.start()
        wait(lambda: not shipper._is_failing and shipped.uploaded("fold_0").steps["lr"] == 6)
        finish_fold(run_folder / "fold_0")
    client, runs = fetch(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {".": "FINISHED", "fold_0": "FINISHED"}
    assert len(client.search_runs([runs["."].info.experiment_id])) == 2
    history = client.get_metric_history(runs["fold_0"].info.run_id, "lr")
    assert sorted((point.step, point.value) for point in history) == [(step, step / 10) for step in range(1, 7)]
    sampled = client.get_metric_history(runs["."].info.run_id, "system/cpu_utilization_percentage")
    assert sorted(point.step for point in sampled) == list(
        range(1, (run_folder / "metrics.jsonl").read_text().count("\n") + 1)
    )
    told = [record.getMessage() for record in caplog.records]
    assert (
        sum("cannot be sent to MLflow" in text for text in told)
        == sum("accepts data again" in text for text in told)
        >= 1
    )


def free_port() -> int:
    """A TCP port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_all_folds_of_a_command_have_the_same_environment_variables(
    run_folder: Path, exp: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "_MLFLOW", "GIT_PYTHON"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    with MlflowSync(run_folder, exp, interval=0.01):
        first = fold_environment(1)  # before the thread has imported MLflow
        connect_mlflow(find_mlflow_store(project_root(run_folder)))
    assert fold_environment(1) == first
