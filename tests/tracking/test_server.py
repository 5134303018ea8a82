"""MLflow's server for a project."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.tracking.server import serve_mlflow
from tests.tracking.test_sync import free_port


def test_before_the_first_run_there_is_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(MaskfoldError, match=r"mlflow\.db does not exist.*maskfold cv"):
        serve_mlflow(tmp_path)


def test_a_port_that_is_taken_is_told(project: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MaskfoldError, match=f"Port {port} of 127.0.0.1 cannot be used.*--port {port + 1}"):
            serve_mlflow(project, port=port)


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_does_not_exist_is_told(project: Path, port: int) -> None:
    with pytest.raises(MaskfoldError, match="cannot be used"):
        serve_mlflow(project, port=port)


def test_a_remote_server_is_named_and_none_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    said: list[str] = []
    serve_mlflow(tmp_path, say=said.append)
    assert said[1].endswith("http://mlflow.example:5000/#/experiments")  # never the bare address


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mlruns" / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(MaskfoldError, match=r"did not start: .*server\.log"):
        serve_mlflow(project, port=free_port(), say=lambda line: None)


@pytest.mark.slow
def test_the_server_answers_on_loopback_names_only_and_ends_with_its_parent(project: Path) -> None:
    port = free_port()
    script = (
        "import sys; from pathlib import Path; from competition.tracking.server import serve_mlflow;"
        "serve_mlflow(Path(sys.argv[1]), port=int(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(project), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert f"http://127.0.0.1:{port}" in lines[1]
        for name in ("127.0.0.1", "localhost"):
            assert urllib.request.urlopen(f"http://{name}:{port}/", timeout=30).status == 200
        stranger = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "stranger.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(stranger, timeout=30)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    assert status == 0
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except OSError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the server outlived its parent")
