"""Run MLflow's web server, which shows the runs of a project in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from competition.errors import MaskfoldError
from competition.tracking.store import MLRUNS, VIEW_TAG, MlflowStore, configure_mlflow, find_mlflow_store, view_link

SERVER_LOG = "server.log"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
START_TIMEOUT_SECONDS = 180.0  # as long as the first import of MLflow from a slow disk may take


def serve_mlflow(root: Path, host: str = "127.0.0.1", port: int = 5000, say: Callable[[str], None] = print) -> None:
    """Run MLflow's web server until the user interrupts it.

    If `MLFLOW_TRACKING_URI` names a server, no server is started; only the links to that server are shown.

    Args:
        root: folder of the project, which contains `mlruns/`.
        host: the address to listen on; the default accepts connections from this machine only.
        port: TCP port.
        say: function that receives messages for the user.

    Raises:
        MaskfoldError: there are no runs yet, the address is in use, or the server does not start.
    """
    store = find_mlflow_store(root)
    if store.is_server:
        say("The runs are stored by the MLflow server that MLFLOW_TRACKING_URI names. Open in a browser:")
        for line in _link_lines(store.display_uri.rstrip("/"), store.uri.rstrip("/")):
            say(line)
        return
    if store.database is not None and not store.database.exists():
        raise MaskfoldError(
            f"No run is stored in MLflow yet, because {store.database} does not exist.",
            "First train a run with `maskfold cv`.",
        )
    _check_address(host, port)
    log = root / MLRUNS / SERVER_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file, _interrupt_on_sigterm():
        server = subprocess.Popen(
            _command(store, host, port),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(store),
        )
        try:
            say("starting MLflow …")
            _wait_until_ready(server, host, port, log)
            lines = _link_lines(_url(host, port), _url(host, port))
            say(f"MLflow is running; Ctrl-C stops it, and its log is {log}. Open in a browser:")
            for line in lines:
                say(line)
            if host not in LOOPBACK_HOSTS:
                say(
                    "note: everybody who can connect to this machine can read and delete runs. To connect by the "
                    "name of this machine instead of its IP address, add the name to the variable "
                    "MLFLOW_SERVER_ALLOWED_HOSTS"
                )
            if status := server.wait():
                raise MaskfoldError(
                    f"MLflow's server ended with status {status}: {_last_line(log)}",
                    f"To find the cause, read the server's output in {log}.",
                )
        except KeyboardInterrupt:
            say("stopped")
        finally:
            _stop(server)


def _command(store: MlflowStore, host: str, port: int) -> list[str]:
    arguments = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning",
    ]
    if store.artifacts is not None:
        arguments += ["--artifacts-destination", str(store.artifacts)]
    return arguments


def _environment(store: MlflowStore) -> dict[str, str]:
    configure_mlflow()
    environment = dict(os.environ)
    # without this variable, MLflow starts seven processes of 200 MB each for evaluating language models
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    environment.setdefault("MLFLOW_ENABLE_AI_GATEWAY", "false")
    environment["PYTHONWARNINGS"] = "ignore"
    environment.pop("MLFLOW_TRACKING_URI", None)
    # The URI may contain a password, so it is not on the command line, which other users can see.
    environment["MLFLOW_BACKEND_STORE_URI"] = store.uri
    return environment


def _check_address(host: str, port: int) -> None:
    """Check that the server can listen on an address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # With this option, a port that another program has just released is accepted.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MaskfoldError(
            f"Port {port} of {host} cannot be used: {reason}.",
            f"Stop the program that uses this port, or run `maskfold ui --port {_alternative(port)}`.",
        ) from error


def _alternative(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else 5001


def _wait_until_ready(server: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise MaskfoldError(
                f"MLflow's server did not start: {_last_line(log)}",
                f"To find the cause, read the server's output in {log}.",
            )
        try:
            with _open(f"{_url(host, port)}/health"):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise MaskfoldError(
        f"MLflow's server has not answered within {START_TIMEOUT_SECONDS:.0f} s.",
        f"To find the cause, read the server's output in {log}.",
    )


def _url(host: str, port: int) -> str:
    """Return the URL of the server for a browser on this machine.

    If the server listens on all addresses (`0.0.0.0` or `::`), the URL has the loopback address.
    """
    name = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def _link_lines(shown_address: str, address: str) -> list[str]:
    """Return one line per competition with the link to its table of runs.

    If the server does not answer or has no competitions, return one line with the link to the list of all experiments.

    Args:
        shown_address: address of the server for the links, without a password.
        address: address of the server for requests, which may contain a password.
    """
    try:
        views = _views(address)
    except (OSError, ValueError, LookupError):
        views = []
    lines = [f"  {name}: {view_link(shown_address, experiment_id)}" for name, experiment_id in views]
    return lines or [f"  all competitions: {shown_address}/#/experiments"]


def _views(address: str) -> list[tuple[str, str]]:
    """Return the name and the MLflow experiment id of each competition that has a saved view."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 20}',
        headers={"Content-Type": "application/json"},
    )
    with _open(request) as answer:
        experiments = json.load(answer).get("experiments", [])
    return [
        (experiment["name"], experiment["experiment_id"])
        for experiment in experiments
        if any(tag["key"] == VIEW_TAG for tag in experiment.get("tags", []))
    ]


def _open(request: str | urllib.request.Request) -> Any:
    """Send a request directly, without the proxies that the environment sets, and return the open response."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no output"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server process, which stops its worker process, and wait until the server has ended."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt when SIGTERM arrives in the `with` block, so that the block can stop the server."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
