"""Promise 4, the lock alone: host, process and heartbeat; only the lock of a dead process is taken over."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from competition.errors import MaskfoldError
from competition.runs import lock
from competition.runs.lock import LockOwner, is_free, run_lock
from tests.conftest import ROOT

HOLD = """
import os, sys, time
from pathlib import Path
from competition.runs import lock
lock.HEARTBEAT_SECONDS = 0.05
with lock.run_lock(Path(sys.argv[1])):
    if sys.argv[2] == "forks" and os.fork() == 0:
        os.close(1)
        time.sleep(300)
    print("held", flush=True)
    time.sleep(300)
"""


def holder_in(folder: Path) -> LockOwner:
    return LockOwner(**json.loads((folder / "lock").read_text()))


def write(folder: Path, holder: LockOwner) -> None:
    descriptor = os.open(
        folder / "lock", os.O_WRONLY | os.O_CREAT
    )  # never cut short: a reader would find nobody in between
    os.pwrite(descriptor, (json.dumps(asdict(holder)).ljust(lock.FILE_BYTES - 1) + "\n").encode(), 0)
    os.close(descriptor)


@pytest.fixture
def me() -> LockOwner:
    now = time.time()
    return LockOwner(os.getpid(), socket.gethostname(), lock._boot_id(), psutil.Process().create_time(), now, now)


@pytest.fixture
def elsewhere(me: LockOwner) -> LockOwner:
    return replace(me, host="far.example", boot="11111111-2222-3333-4444-555555555555", process=77, born=1.0)


def other(folder: Path, how: str = "plain") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n", process.stderr.read()
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_lock_says_who_holds_it_and_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        first = holder_in(tmp_path)
        assert (first.process, first.host) == (os.getpid(), socket.gethostname())
        deadline = time.monotonic() + 30
        while (text := (tmp_path / "lock").read_text()) and json.loads(text)["beat"] == first.beat:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(text) == lock.FILE_BYTES and holder_in(tmp_path).is_same_process(first) and not is_free(tmp_path)
    assert (tmp_path / "lock").read_text() == "" and is_free(tmp_path)  # no other machine waits for a heartbeat


def test_the_second_is_told_who_holds_it_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    process = other(tmp_path)
    try:
        with (
            pytest.raises(
                MaskfoldError, match=rf"is in use by process {process.pid} on {socket.gethostname()} \(since "
            ),
            run_lock(tmp_path),
        ):
            pass
        assert not is_free(tmp_path)
    finally:
        end(process)
    said: list[str] = []
    with run_lock(tmp_path, say=said.append):
        assert holder_in(tmp_path).process == os.getpid()
    assert len(said) == 1 and f"takes over the lock of process {process.pid} on" in said[0]


def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    process = other(tmp_path, "forks")
    try:
        children = psutil.Process(process.pid).children()
        assert len(children) == 1
        process.kill()
        process.wait()
        assert children[0].is_running()
        with run_lock(tmp_path, say=lambda _: None):
            pass
    finally:
        end(process)


def test_a_second_one_waits_as_long_as_it_has_patience(tmp_path: Path) -> None:
    process = other(tmp_path)
    said: list[str] = []
    threading.Timer(1.5, end, [process]).start()
    with run_lock(tmp_path, patience=60, say=said.append):
        assert process.poll() is not None
    assert any(line.startswith(f"this process waits until process {process.pid} on") for line in said)


def test_a_number_that_another_process_has_been_given_holds_nothing(tmp_path: Path, me: LockOwner) -> None:
    write(tmp_path, replace(me, process=os.getppid(), born=1.0))  # that process lives, but never took this lock
    assert is_free(tmp_path)
    with run_lock(tmp_path, say=lambda _: None):
        pass


def test_another_machines_silent_process_is_dead(
    tmp_path: Path, elsewhere: LockOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, elsewhere)
    assert not is_free(tmp_path)  # its last heartbeat is now
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    said: list[str] = []
    with run_lock(tmp_path, say=said.append):
        assert holder_in(tmp_path).process == os.getpid()
    assert "takes over the lock of process 77 on far.example" in said[-1]


def test_another_machines_process_that_was_silent_for_long_is_not_waited_for(
    tmp_path: Path, elsewhere: LockOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, replace(elsewhere, beat=time.time() - 3600))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    assert is_free(tmp_path)
    with run_lock(tmp_path, say=lambda _: None):
        pass


def test_another_machines_living_process_keeps_it_where_locks_do_not_travel(
    tmp_path: Path, elsewhere: LockOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 20.0)
    write(tmp_path, elsewhere)
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            write(tmp_path, replace(elsewhere, beat=time.time()))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(MaskfoldError, match=r"by process 77 on far\.example"),
            run_lock(tmp_path, say=lambda _: None),
        ):
            pass
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_kernel_number_and_birth_tell(
    tmp_path: Path, me: LockOwner, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    monkeypatch.setattr(lock, "STALE_SECONDS", 3.0)
    write(tmp_path, me if alive else replace(me, born=1.0))
    assert is_free(tmp_path) is not alive
    if not alive:
        with run_lock(tmp_path, say=lambda _: None):
            pass
        return
    over = threading.Event()
    thread = threading.Thread(
        target=lambda: [write(tmp_path, replace(me, beat=time.time())) for _ in range(200) if not over.wait(0.1)]
    )
    thread.start()
    try:
        with pytest.raises(MaskfoldError, match="is in use by"), run_lock(tmp_path, say=lambda _: None):
            pass
    finally:
        over.set()
        thread.join()


def test_who_slept_and_lost_its_place_ends_at_once(tmp_path: Path, elsewhere: LockOwner) -> None:
    process = other(tmp_path)
    try:
        write(tmp_path, elsewhere)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and "to process 77 on far.example" in errors
    finally:
        if process.poll() is None:
            end(process)


def test_nothing_that_can_be_read_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 12 on an older version's host")
    with run_lock(tmp_path):
        assert holder_in(tmp_path).process == os.getpid()
