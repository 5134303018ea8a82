"""The pool of processes: order, errors, environment, and its end."""

from __future__ import annotations

import os
import pickle
import platform
import signal
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.io import DiskFullError
from competition.process import ProcessPool


class Worker:
    """Methods that a pool calls."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def multiply(self, item: int, plus: int) -> tuple[int, int]:
        return item * self.factor + plus, os.getpid()

    def fail(self, item: int) -> int:
        if item == 3:
            raise DiskFullError(f"item {item} does not fit.", "Free some space.", status=2)
        return item

    def die(self, item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def environment(self, name: str) -> tuple[str | None, bool]:
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        return os.environ.get(name), blocked

    def send(self, item: int, size: int) -> bytes:
        return bytes(size)

    def count_pickles(self, item: int) -> int:
        return self.factor

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__ = state
        if "log" in state:
            with open(str(state["log"]), "a") as file:
                file.write("x")


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    with ProcessPool(Worker(3), count, "worked", "") as pool:
        results = list(pool.map(Worker.multiply, list(range(70)), 1))
    assert [value for value, _ in results] == [3 * item + 1 for item in range(70)]
    processes = {process for _, process in results}
    assert (processes == {os.getpid()}) if count == 0 else (os.getpid() not in processes)
    assert not active_children()


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_arrives_with_its_class_message_hint_and_status(count: int) -> None:
    with pytest.raises(DiskFullError) as caught, ProcessPool(Worker(1), count, "worked", "") as pool:
        list(pool.map(Worker.fail, [1, 2, 3, 4]))
    error = caught.value
    assert (error.message, error.hint, error.status) == ("item 3 does not fit.", "Free some space.", 2)
    assert not active_children()


def test_a_process_that_the_kernel_kills_is_an_error() -> None:
    with pytest.raises(MaskfoldError) as caught, ProcessPool(Worker(1), 2, "scored cases", "Use less.") as pool:
        list(pool.map(Worker.die, list(range(50))))
    assert caught.value.message == "A process that scored cases was killed, probably because memory ran out."
    assert caught.value.hint == "Use less." and not active_children()


def test_processes_inherit_one_thread_and_a_blocked_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with ProcessPool(Worker(1), 2, "worked", "") as pool:
        assert set(pool.map(Worker.environment, ["OMP_NUM_THREADS"] * 4)) == {("1", True)}
    with ProcessPool(Worker(1), 1, "worked", "", {"MASKFOLD_TEST": "7"}) as pool:
        assert list(pool.map(Worker.environment, ["MASKFOLD_TEST", "OMP_NUM_THREADS"])) == [("7", True), (None, True)]
    assert Worker(1).environment("OMP_NUM_THREADS") == (None, False) and "MASKFOLD_TEST" not in os.environ


def test_the_worker_is_pickled_once_per_process(tmp_path: Path) -> None:
    worker = Worker(5)
    worker.__dict__["log"] = str(tmp_path / "log")
    with ProcessPool(worker, 2, "worked", "") as pool:
        assert list(pool.map(Worker.count_pickles, list(range(100)))) == [5] * 100
    assert len((tmp_path / "log").read_text()) <= 2


def test_leaving_while_processes_send_large_results_does_not_hang() -> None:
    with ProcessPool(Worker(1), 2, "worked", "") as pool:
        assert len(next(pool.map(Worker.send, list(range(40)), 20_000_000))) == 20_000_000
    assert not active_children()


def test_an_error_keeps_its_class_when_it_is_pickled() -> None:
    error = pickle.loads(pickle.dumps(DiskFullError("The disk is full.", "Free some space.", status=2)))
    assert type(error) is DiskFullError and (error.message, error.hint, error.status) == (
        "The disk is full.",
        "Free some space.",
        2,
    )


PAGE_FAULTS = """
import resource, sys
import numpy as np
from competition.process import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2**17) for _ in range(64)]  # 64 MiB in blocks of 1 MiB
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_a_step(mode: str, **environment: str) -> tuple[str, int]:
    """Return what `keep_freed_memory` returned, and the page faults of a step that reuses freed memory."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    kept, faults = subprocess.run(
        command, env=unset | environment, check=True, capture_output=True, text=True
    ).stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, faults = faults_of_a_step("keep")
    assert kept == "True"
    assert faults < 1000
    assert faults_of_a_step("default")[1] > 10 * faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_users_own_setting_of_the_allocator_stays() -> None:
    kept, faults = faults_of_a_step("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
    assert faults > 10_000
