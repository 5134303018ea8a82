"""Processes for tests that are forked from a process with all libraries, so that they need not import them again."""

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
# Prefixes of variables that libraries set when they are imported, in the tests' process and also in the server. They
# are ignored, because otherwise a new server would be started after each such change.
SET_BY_LIBRARIES = ("CUBLAS_", "GIT_PYTHON_", "KMP_", "MLFLOW_", "TORCHINDUCTOR_")
BEFORE_IMPORTS = frozenset(os.environ)
MODULES = ("monai.losses", "monai.networks.nets", "albumentations.pytorch")


class WarmProcess:
    """A forked process with the part of the interface of `subprocess.Popen` that tests use.

    Args:
        process: the process, with `pid`, `poll` and `wait`.
        output: its standard output.
        errors: file to which its standard error is written.
    """

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
        """Wait for the end of the process; return the rest of its standard output, and its whole standard error."""
        said = self.stdout.read()
        self.wait(timeout)
        self.stdout.close()
        return said, self.errors.read_text()


class WarmProcesses:
    """Start processes from fork servers, of which there is one per environment; they run until all tests have ended."""

    def __init__(self) -> None:
        self._servers: dict[tuple[tuple[str, str], ...], Any] = {}
        self._running: list[WarmProcess] = []

    def server(self, environment: dict[str, str]) -> Any:
        """Return the `ForkServer` whose children have this environment; start it if there is none yet.

        Variables in `PASSING`, and those that libraries set, are ignored.
        """
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
        """Call a function in a forked process, in a new session and with the environment of a fold with one thread.

        Args:
            function: the function, as `module:name`.
            *arguments: its arguments, which are converted to texts.
            cwd: working folder of the process.
        """
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
        """Kill the processes that a test has not ended."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            process.stdout.close()
        self._running.clear()

    def close(self) -> None:
        """End all fork servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


@pytest.fixture(scope="session")
def warm_servers() -> Iterator[WarmProcesses]:
    """The fork servers of this pytest worker."""
    made = WarmProcesses()
    yield made
    made.close()


@pytest.fixture
def warm(warm_servers: WarmProcesses) -> Iterator[WarmProcesses]:
    """`warm.start("tests.forked:command", "cv", file, cwd=folder)`: start a process that need not import libraries.

    Compared with a new program, only `exec` and the imports are left out. The process has its own session, signals and
    exit status.
    """
    yield warm_servers
    warm_servers.end_all()


@pytest.fixture
def warm_folds(warm_servers: WarmProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands in this process fork their folds and their plan's candidates from a server that outlives them.

    Without this fixture, each command starts its own server, whose imports take seconds. This is tested in
    tests/training/test_forked.py and tests/faults.
    """
    for module in ("competition.training.fold_process", "competition.fork_server"):  # folds; candidates of a plan
        monkeypatch.setattr(f"{module}.shared_server", lambda _, environment: warm_servers.server(environment))
