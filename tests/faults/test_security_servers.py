"""What we show to others: servers listen on this machine only, and passwords reach no log, file, tag or traceback."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.redact import install_redaction, redact
from tests.faults.strangers import ROOT, watched

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from watched(tmp_path, monkeypatch)


# Servers


def test_servers_let_nobody_else_in_unless_they_are_asked_to(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    import inspect
    from types import SimpleNamespace

    from competition.cli.commands_runs import ui
    from competition.tracking import server
    from competition.tracking.store import find_mlflow_store
    from competition.training import ray_executor as executor

    assert inspect.signature(server.serve_mlflow).parameters["host"].default == "127.0.0.1"
    assert inspect.signature(ui).parameters["host"].default == "127.0.0.1"
    command = server._command(find_mlflow_store(here), "127.0.0.1", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1" and "0.0.0.0" not in command
    makefile = (ROOT / "Makefile").read_text()
    boards = [
        line
        for line in makefile.splitlines()
        if "optuna-dashboard" in line and "install" not in line and "##" not in line
    ]
    assert boards and all("--host 127.0.0.1" in line for line in boards)
    asked: dict[str, Any] = {}
    fake = SimpleNamespace(is_initialized=lambda: False, init=lambda **words: asked.update(words))
    monkeypatch.setitem(sys.modules, "ray", fake)
    executor.connect_ray()
    assert asked["include_dashboard"] is False


def test_nothing_in_the_package_listens_on_every_address() -> None:
    """Words in strings, but for the one that translates a user's own `--host 0.0.0.0` for the browser."""
    found = []
    for path in (ROOT / "competition").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::", "*:0"):
                found.append(f"{path.name}:{node.lineno}")
    assert {one.split(":")[0] for one in found} <= {"server.py"}, found


# Passwords


SECRET = "hush-hush-4711"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", f"{SECRET}-kaggle")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}-mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9/store")


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@host:5432/runs",
        f"postgresql+psycopg://me:{SECRET}@host/runs?x=1",
        f"https://me:{SECRET}@host/path",
        f"(psycopg.OperationalError) connection to postgresql://me:{SECRET}@host failed",
        f"--storage mysql://root:{SECRET}@h/db",
        f"http://h/x?password={SECRET}&a=1",
        f"s3://b/?aws_secret_access_key={SECRET}",
        f"key {SECRET}-kaggle",
        f"git+https://{SECRET}-and-more@github.com/a",
    ],
)
def test_scrub_hides_passwords_and_keeps_the_rest(secrets: None, text: str) -> None:
    assert SECRET not in redact(text) and "…" in redact(text)
    assert redact(text).split("://")[0] == text.split("://")[0].replace(f"{SECRET}-kaggle", "…")


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1",
        "sqlite:////home/me/mlruns/mlflow.db",
        "me@host",
        "a: b @ c",
        "git+ssh://git@github.com/a/b",
        "postgresql://me@host/runs",
        "seed=12345",
        "12:30@noon",
    ],
)
def test_scrub_leaves_what_is_no_password(text: str) -> None:
    assert redact(text) == text


def test_logs_and_tracebacks_hold_no_passwords(secrets: None, here: Path) -> None:
    (here / "program.py").write_text("""
import logging, os, threading
from competition.redact import install_redaction
install_redaction(); install_redaction()
S = os.environ["S"]
logging.warning("MLflow (%s) is down, key %s", f"postgresql://me:{S}@h/x", f"{S}-kaggle")
try:
    raise OSError(f"http://me:{S}@h")
except OSError:
    logging.exception("oh")
def work():
    raise KeyError(f"in a thread: http://me:{S}@h")
thread = threading.Thread(target=work)
thread.start()
thread.join()
raise RuntimeError(f"postgresql://me:{S}@host/runs")
""")
    done = subprocess.run(
        [sys.executable, "program.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "S": SECRET, "PYTHONPATH": str(ROOT)},
    )
    assert (
        done.returncode == 1
        and "RuntimeError" in done.stderr
        and "is down" in done.stderr
        and "in a thread" in done.stderr
    )
    assert SECRET not in done.stderr + done.stdout


def test_the_command_and_the_folds_guard_themselves() -> None:
    """Both programs put the guard up before they do anything."""
    for name in ("cli/main.py", "training/fold.py"):
        tree = ast.parse((ROOT / "competition" / name).read_text())
        [main] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        first = next(
            node for node in main.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        )
        assert ast.unparse(first) == "install_redaction()", name


def test_what_a_run_keeps_and_what_mlflow_gets_holds_no_passwords(
    secrets: None,
    tiny: Any,
    finished: Callable[..., Any],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server does not answer, so that every warning about it is said, and the files are what would be delivered."""
    from competition.tracking import provenance
    from competition.tracking.store import RunMetadata
    from competition.tracking.sync import MlflowSync

    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "argv", ["maskfold", "study", "x.yaml", "--storage", f"postgresql://me:{SECRET}@h/db"])
    monkeypatch.setattr(
        provenance, "_git", lambda *words: f"+KAGGLE_KEY = {SECRET}-kaggle\n" if words[0] == "diff" else ""
    )
    run = finished(tiny(2, "folds.run=[0]"))
    caplog.set_level(logging.DEBUG)
    with MlflowSync(run.folder, run.exp, interval=0.1, timeout=0.5):
        deadline = time.monotonic() + 60
        while "cannot be sent to MLflow" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)  # the first attempt may take longer than the timeout on a busy machine
    assert "cannot be sent to MLflow" in caplog.text
    identity = RunMetadata.of(run.folder, run.exp, "cv")
    said = [caplog.text, json.dumps([identity.tags, identity.fold_tags, identity.parameters])]
    said += [path.read_text(errors="replace") for path in run.folder.rglob("*") if path.is_file()]
    assert any("--storage" in text for text in said)
    for text in said:
        assert SECRET not in text, text[:500]


def test_errors_about_stores_hold_no_passwords(secrets: None, here: Path) -> None:
    from competition.study.storage import open_storage
    from competition.tracking.registry import register_model

    with pytest.raises(MaskfoldError) as caught:
        open_storage(f"postgresql://me:{SECRET}@127.0.0.1:9/runs?connect_timeout=1")
    assert SECRET not in str(caught.value)
    exp = load_experiment(ROOT / "experiments/demo2d/unet2d.yaml")
    with pytest.raises(MaskfoldError, match="MLflow") as caught:
        register_model(here, exp, lambda *_: None, "f", {}, "d")
    assert SECRET not in str(caught.value)


def test_guard_may_be_put_up_twice() -> None:
    before = logging.getLogRecordFactory(), sys.excepthook
    try:
        install_redaction()
        once = logging.getLogRecordFactory()
        install_redaction()
        assert logging.getLogRecordFactory() is once
        record = once("x", logging.INFO, "f", 1, "wrong %d", ("words",), None)
        assert record.msg == "wrong %d"  # a library's mistake stays its own
    finally:
        logging.setLogRecordFactory(before[0])
        sys.excepthook = before[1]
