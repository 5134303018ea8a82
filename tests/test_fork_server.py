"""The server that forks folds: a child is like a process that was started afresh, and ends with the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from competition import fork_server
from competition.fork_server import ForkedProcess, ForkServer, ServerLost
from competition.process import PARENT_VARIABLE
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not fork_server.is_supported(), reason="needs Linux")

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLOUR": "blue"}


@pytest.fixture
def server() -> Iterator[ForkServer]:
    made = ForkServer(["csv"], ENVIRONMENT)
    yield made
    made.close()


def start(server: ForkServer, path: Path, name: str, *arguments: str, **descriptors: int) -> ForkedProcess:
    with open(path, "ab") as output:
        return ForkedProcess(server, server.start(f"tests.forked:{name}", arguments, output.fileno(), descriptors))


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_is_like_a_process_that_was_started_afresh(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = start(server, tmp_path / "said", "describe", "hello")
    assert process.wait(60) == 7 and process.poll() == 7
    said = json.loads((tmp_path / "said").read_text())
    assert said["word"] == "hello" and said["argv"] == ["tests.forked", "hello"]
    assert said["folder"] == str(tmp_path) and said["input"] == os.devnull and said["session"]
    assert said["threads"] == 1 and said["signals"] == [] and said["loaded"]
    assert said["handlers"] == ["<built-in function default_int_handler>", str(signal.SIG_DFL)]
    inherited = {name: said["environment"].get(name) for name in ENVIRONMENT}
    assert inherited == ENVIRONMENT and "OMP_NUM_THREADS" not in said["environment"]
    assert fork_server.ARROW_ALLOCATOR not in said["environment"]
    assert said["environment"][PARENT_VARIABLE] == str(said["parent"]) != str(os.getpid())


def test_a_child_writes_to_the_descriptors_that_it_got(server: ForkServer, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = start(server, tmp_path / "said", "answer", "WHERE", WHERE=writer)
    os.close(writer)
    assert process.wait(60) == 0, (tmp_path / "said").read_text()
    assert os.read(reader, 100) == b"well" and os.read(reader, 100) == b""  # the server has closed its copy
    os.close(reader)


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("3", 3, ""),
        ("none", 0, ""),
        ("text", 1, "a text"),
        ("error", 1, "ValueError: a fault"),
        ("Ctrl-C", -signal.SIGINT, "KeyboardInterrupt"),
        ("kill", -signal.SIGKILL, None),
    ],
)
def test_a_child_ends_as_an_interpreter_does(
    server: ForkServer, tmp_path: Path, how: str, status: int, said: str | None
) -> None:
    code = f"import sys; from tests.forked import end; sys.exit(end({how!r}))"
    fresh = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert start(server, tmp_path / "said", "end", how).wait(60) == status == fresh.returncode
    text = (tmp_path / "said").read_text()
    assert ("at exit" in text) == ("at exit" in fresh.stdout) == (said is not None)
    assert (said or "") in text and (said or "") in fresh.stderr


def test_a_signal_that_comes_at_once_is_not_lost(server: ForkServer, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(server, tmp_path / "said", "stay")
        (process.terminate if number == signal.SIGTERM else process.kill)()
        assert process.wait(60) == -number
        process.kill()  # nothing happens to another process with the same id
    with pytest.raises(subprocess.TimeoutExpired):
        process = start(server, tmp_path / "said", "stay")
        try:
            process.wait(0.1)
        finally:
            process.kill()
            process.wait(60)


def test_signals_do_not_end_the_server(server: ForkServer, tmp_path: Path) -> None:
    process = start(server, tmp_path / "said", "stay")
    parent = psutil.Process(process.pid).ppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(parent, number)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM and not server.is_lost
    assert start(server, tmp_path / "said", "end", "0").wait(60) == 0


def test_children_notice_that_their_server_was_killed(server: ForkServer, tmp_path: Path) -> None:
    process = start(server, tmp_path / "said", "stay")
    until(lambda: "here" in (tmp_path / "said").read_text())
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL  # its own status was lost with the server
    assert (tmp_path / "said").read_text() == "here\nthe parent ended\n"
    with pytest.raises(ServerLost):
        start(server, tmp_path / "said", "end", "0")
    assert server.is_lost


COMMAND = """
import os, sys, time
from tests.test_fork_server import ENVIRONMENT, start
from pathlib import Path
from competition.fork_server import ForkServer
server = ForkServer([], ENVIRONMENT)
process = start(server, Path(sys.argv[1]), "stay")
print(process.pid, server._process.pid, flush=True)
if sys.argv[2] == "fork" and os.fork() == 0:  # has the command's end of the connection
    time.sleep(60)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_nothing_outlives_a_command_that_is_killed(tmp_path: Path, how: str) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "said"), how], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    pids = [int(word) for word in command.stdout.readline().split()]
    assert len(pids) == 2
    until(lambda: "here" in (tmp_path / "said").read_text())
    others = [process.pid for process in psutil.Process(command.pid).children() if process.pid not in pids]
    command.kill()
    command.wait()
    until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids))
    assert (tmp_path / "said").read_text() == "here\nthe parent ended\n"
    for pid in others:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def nothing_shared() -> Iterator[None]:
    fork_server.close_shared_server()
    yield
    fork_server.close_shared_server()


def test_tasks_share_a_server_while_their_environment_is_the_same(nothing_shared: None, tmp_path: Path) -> None:
    first = fork_server.shared_server([], ENVIRONMENT)
    assert first is not None and fork_server.shared_server([], {**ENVIRONMENT, PARENT_VARIABLE: "1"}) is first
    process = start(first, tmp_path / "said", "stay")
    other = {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}
    assert fork_server.shared_server([], other) is None  # the first one still has a child
    process.kill()
    process.wait(60)
    second = fork_server.shared_server([], other)
    assert second is not None and second is not first and first.is_lost
    os.kill(second._process.pid, signal.SIGKILL)
    second._process.wait()
    third = fork_server.shared_server([], other)
    assert third is not None and third is not second and start(third, tmp_path / "said", "end", "0").wait(60) == 0


def test_an_empty_entry_of_pythonpath_is_the_working_folder(
    nothing_shared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = fork_server.shared_server([], {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}"})
    assert server is not None and server.environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path)]


def test_a_variable_turns_the_server_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fork_server.is_supported()
    monkeypatch.setenv(fork_server.SWITCH, "0")
    assert not fork_server.is_supported()
    monkeypatch.delenv(fork_server.SWITCH)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not fork_server.is_supported()
