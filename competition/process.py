"""Run work in parallel processes with a pool, and end processes together with their parent."""

# This module does not use joblib (loky). Its workers continued after a SIGKILL of their parent, and stayed for up to
# 300 s after the last result. The first result of two workers took 8.2 s instead of 4.8 s on a busy machine (`python
# benchmarks/libraries.py pool`). joblib has neither an environment for each device nor a way to abandon a worker that
# hangs at a deadline.

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from competition.errors import MaskfoldError

Result = TypeVar("Result")

MAX_CHUNK = 8  # number of items that a process receives at once
PARENT_VARIABLE = "MASKFOLD_PARENT"  # in a fold process: the id of the process that started it


def parent_process() -> int:
    """Return the id of the process that started this process, even if that process has ended."""
    return int(os.environ.get(PARENT_VARIABLE) or os.getppid())


def exit_with_parent(process: int) -> None:
    """End this process within a second after its parent has ended.

    Otherwise this process could wait forever for other processes, for example in a collective operation of
    `torch.distributed`.

    Args:
        process: the parent's process id.
    """

    def watch() -> None:
        while os.getppid() == process:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def keep_freed_memory() -> bool:
    """Keep small blocks of freed memory in this process, so that the next training step can use them again.

    By default, glibc returns freed memory to the system after each step, and the system clears it page by page when the
    next step needs it. For a small 3D U-Net on a CPU, a step took 0.22 s instead of 0.27 s when the memory was kept.
    Blocks of 32 MiB or more are still returned to the system. A value of `MALLOC_TRIM_THRESHOLD_` that the user has set
    in the environment is not changed.

    Returns:
        Whether the setting was changed, which is possible only with glibc.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(M_TRIM_THRESHOLD, MAX_INT))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's settings, from malloc.h
LARGE_BLOCK, MAX_INT = 32 * 2**20, 2**31 - 1  # bytes; 32 MiB is the largest value that glibc accepts for blocks


class ProcessPool:
    """Start processes that call methods of one object; use the pool in a `with` block, whose end ends the processes.

    Ctrl-C interrupts only this process, which then ends the worker processes. If this process is killed, the worker
    processes end within a second.

    Args:
        worker: the object, which is pickled once per process.
        count: number of processes. With 0, the methods run in this process.
        task: what the processes did, for the error if one is killed: a verb in the past tense with its object, e.g.
            `scored cases`.
        hint: the hint of the error if a process is killed.
        environment: environment variables of the processes. None means `OMP_NUM_THREADS=1`, so that each process uses
            one thread.

    Example:
        >>> with ProcessPool("a-b", 0, "split a text", "") as pool:
        ...     list(pool.map(str.split, ["-", "b"]))
        [['a', 'b'], ['a-', '']]
    """

    def __init__(
        self, worker: Any, count: int, task: str, hint: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.worker, self.count, self.task, self.hint = worker, count, task, hint
        self.environment = {"OMP_NUM_THREADS": "1"} if environment is None else environment
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> ProcessPool:
        if self.count:
            self._executor = ProcessPoolExecutor(
                self.count,
                mp_context=get_context("spawn"),  # not a fork, because a forked process may hang if torch has threads
                initializer=_init_worker,
                initargs=(self.worker, os.getpid()),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            # Kill the processes, because all results have arrived, or none is awaited any more, or a process hangs.
            # Close the writer, because the executor would otherwise wait forever for the rest of a result.
            self._executor._result_queue._writer.close()  # type: ignore[attr-defined]
            for process in list((self._executor._processes or {}).values()):
                process.kill()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def map(self, method: Callable[..., Result], items: Sequence[Any], *arguments: Any) -> Iterator[Result]:
        """Yield `method(worker, item, *arguments)` for each item, in the order of the items.

        Args:
            method: an importable function, such as `CaseScorer.score`.
            items: picklable items.
            arguments: picklable arguments.

        Raises:
            MaskfoldError: the method raised a MaskfoldError, or a process was killed.
        """
        if self._executor is None:
            for item in items:
                yield method(self.worker, item, *arguments)
            return
        chunk = max(1, min(MAX_CHUNK, len(items) // (4 * self.count)))
        chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
        futures = [self.submit(_call_for_each, method, one, arguments) for one in chunks]
        futures.reverse()
        while futures:  # frees the memory of each result after its use
            yield from self.result(futures.pop())

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Start `function(worker, *arguments)` in a process, and return a future; `result` waits for its value.

        Raises:
            MaskfoldError: a process was killed.
        """
        assert self._executor is not None, "the pool has no process, or its block has ended"
        try:
            with _inherited(self.environment):  # the executor starts its processes in this call
                return self._executor.submit(_call, function, arguments)
        except BrokenProcessPool as broken:
            raise self._killed() from broken

    def result(self, future: Future[Result]) -> Result:
        """Wait for a result of `submit`.

        Raises:
            MaskfoldError: the function raised a MaskfoldError, or its process was killed.
        """
        try:
            return future.result()
        except BrokenProcessPool as broken:
            raise self._killed() from broken

    def _killed(self) -> MaskfoldError:
        return MaskfoldError(f"A process that {self.task} was killed, probably because memory ran out.", self.hint)


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and block Ctrl-C, for processes that start in the `with` block.

    The variables must be set before a process starts, because libraries read them when they are imported. A terminal
    sends Ctrl-C to all processes, but the started processes must ignore it.
    """
    previous = {name: os.environ.get(name) for name in environment}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_worker: Any = None  # the worker object of this process


def _init_worker(worker: Any, parent: int) -> None:
    global _worker
    exit_with_parent(parent)
    _worker = worker


def _call(function: Callable[..., Result], arguments: Sequence[Any]) -> Result:
    return function(_worker, *arguments)


def _call_for_each(worker: Any, method: Callable[..., Result], items: Sequence[Any], arguments: Any) -> list[Result]:
    return [method(worker, item, *arguments) for item in items]
