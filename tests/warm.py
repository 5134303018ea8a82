"""Processes forked from one that has imported the libraries: what a test starts and ends need not import them again."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

# Variables that differ from test to test and that no library reads when it is imported.
PASSING = ("COLUMNS", "PYTEST_CURRENT_TEST")
# Libraries set these in the process that imports them, as the server does itself; with them, each would be another.
SET_BY_LIBRARIES = ("CUBLAS_", "GIT_PYTHON_", "KMP_", "MLFLOW_", "TORCHINDUCTOR_")
BEFORE_IMPORTS = frozenset(os.environ)
MODULES = ("monai.losses", "monai.networks.nets", "albumentations.pytorch")


class WarmProcess:
    """A child with the part of `subprocess.Popen` that tests use; `errors` is the file of its standard error."""

    def __init__(self, process: Any, output: IO[str], errors: Path) -> None:
        self._process, self.stdout, self.errors = process, output, errors
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(timeout)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return the rest of its output, and its errors, once it has ended."""
        said = self.stdout.read()
        self.wait(timeout)
        self.stdout.close()
        return said, self.errors.read_text()


class WarmProcesses:
    """Fork servers by their environment, which live until the tests end."""

    def __init__(self) -> None:
        self._servers: dict[tuple[tuple[str, str], ...], Any] = {}
        self._running: list[WarmProcess] = []

    def server(self, environment: dict[str, str]) -> Any:
        """Return a `ForkServer` whose children have an environment, but for the variables named above."""
        from competition.fork_server import ForkServer
        from competition.process import PARENT_VARIABLE
        from competition.training.fold_process import FOLD_MODULES

        kept = {
            name: value
            for name, value in environment.items()
            if name not in (*PASSING, PARENT_VARIABLE)
            and (name in BEFORE_IMPORTS or not name.startswith(SET_BY_LIBRARIES))
        }
        key = tuple(sorted(kept.items()))
        if key not in self._servers or self._servers[key].is_lost:
            self._servers[key] = ForkServer((*FOLD_MODULES, *MODULES), kept)
        return self._servers[key]

    def start(self, function: str, *arguments: object, cwd: Path) -> WarmProcess:
        """Call `module:name` with texts in a new session, with the environment of a fold of one thread."""
        from competition.fork_server import ForkedProcess
        from competition.training.fold_process import fold_environment

        server = self.server(fold_environment(1))
        descriptor, errors = tempfile.mkstemp(dir=cwd, prefix="errors-")
        reader, writer = os.pipe()
        with contextlib.chdir(cwd):
            pid = server.start(
                "tests.forked:call", [errors, function, *map(str, arguments)], writer, {}, [function.partition(":")[0]]
            )
        os.close(writer)
        os.close(descriptor)
        process = WarmProcess(ForkedProcess(server, pid), os.fdopen(reader, encoding="utf-8"), Path(errors))
        self._running.append(process)
        return process

    def end_all(self) -> None:
        """End the processes that a test has left."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            process.stdout.close()
        self._running.clear()

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


@pytest.fixture(scope="session")
def warm_servers() -> Iterator[WarmProcesses]:
    made = WarmProcesses()
    yield made
    made.close()


@pytest.fixture
def warm(warm_servers: WarmProcesses) -> Iterator[WarmProcesses]:
    """`warm.start("tests.forked:command", "cv", file, cwd=folder)`: a process that need not import the libraries.

    Only `exec` and the imports are left out; the process has a session, signals and an exit status of its own.
    """
    yield warm_servers
    warm_servers.end_all()


@pytest.fixture
def warm_folds(warm_servers: WarmProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds and candidates of commands in this process are forked from a server that outlives the command.

    A command starts its own server, which imports for seconds; tests/training/test_forked.py and tests/faults have it.
    """
    for module in ("competition.training.fold_process", "competition.fork_server"):  # folds; candidates of a plan
        monkeypatch.setattr(f"{module}.shared_server", lambda _, environment: warm_servers.server(environment))
