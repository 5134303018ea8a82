"""MLflow's pages on the runs of a project."""

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

from competition.config import MaskfoldError
from competition.tracking.store import FOLDER, Store, quieten, store_of
from competition.tracking.view import TAG, view_link

LOG = "server.log"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
START_SECONDS = 180.0  # a cold import of MLflow on a slow disk


def serve(root: Path, host: str = "127.0.0.1", port: int = 5000, say: Callable[[str], None] = print) -> None:
    """Run MLflow's server until it is interrupted.

    Args:
        root: the project, with `mlruns/`.
        host: the address to listen on; the default lets nobody else in.
        port: TCP port.
        say: takes lines for the user.

    Raises:
        MaskfoldError: nothing was logged yet, the address is taken, or the server does not start.
    """
    store = store_of(root)
    if store.is_server:
        say(f"Runs are kept by the MLflow server that MLFLOW_TRACKING_URI names: open {store.shown}")
        return
    if store.database is not None and not store.database.exists():
        raise MaskfoldError(f"Nothing is logged yet: {store.database} does not exist.", "Run `make cv` first.")
    _check_address(host, port)
    log = root / FOLDER / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file, _terminable():
        server = subprocess.Popen(
            _command(store, host, port),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(store),
        )
        try:
            say("starting MLflow …")
            _wait_until_up(server, host, port, log)
            say(f"MLflow is at {_url(host, port)}   (Ctrl-C stops it; its log is {log})")
            for name, link in _views(_url(host, port)):
                say(f"  {name}: {link}")
            if host not in LOOPBACK:
                say(
                    "note: whoever reaches this machine can read and delete runs; reached by name instead of by number, "
                    "it answers once MLFLOW_SERVER_ALLOWED_HOSTS has that name"
                )
            if status := server.wait():
                raise MaskfoldError(f"MLflow's server ended with status {status}: {_last_line(log)}", f"See {log}.")
        except KeyboardInterrupt:
            say("stopped")
        finally:
            _stop(server)


def _command(store: Store, host: str, port: int) -> list[str]:
    words = [
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
        words += ["--artifacts-destination", str(store.artifacts)]
    return words


def _environment(store: Store) -> dict[str, str]:
    quieten()
    environment = dict(os.environ)
    # seven processes of 200 MB each, for evaluations of language models, and a gateway to those
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    environment.setdefault("MLFLOW_ENABLE_AI_GATEWAY", "false")
    environment["PYTHONWARNINGS"] = "ignore"
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment["MLFLOW_BACKEND_STORE_URI"] = store.uri  # everybody sees a command line, and there may be a password
    return environment


def _check_address(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
            listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MaskfoldError(
            f"Port {port} of {host} cannot be used: {reason}.",
            f"Stop the program that listens there, or type `maskfold ui --port {_other(port)}`.",
        ) from error


def _other(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else 5001


def _wait_until_up(server: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise MaskfoldError(f"MLflow's server did not start: {_last_line(log)}", f"See {log}.")
        try:
            with _open(f"{_url(host, port)}/health"):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise MaskfoldError(f"MLflow's server does not answer after {START_SECONDS:.0f} s.", f"See {log}.")


def _url(host: str, port: int) -> str:
    """What to open in a browser on this machine."""
    name = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def _views(address: str) -> list[tuple[str, str]]:
    """Competitions and where their table of scores is."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 20}',
        headers={"Content-Type": "application/json"},
    )
    with _open(request) as answer:
        found = json.load(answer).get("experiments", [])
    return [
        (experiment["name"], view_link(address, experiment["experiment_id"]))
        for experiment in found
        if any(tag["key"] == TAG for tag in experiment.get("tags", []))
    ]


def _open(what: str | urllib.request.Request) -> Any:
    """Ask our own machine, where no proxy belongs in between."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(what, timeout=20)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and wait for it; it forwards the signal to its worker."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C, so that the server is not left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
