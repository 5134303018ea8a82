"""Processes that work through the cases of one desk, in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from competition.config import MaskfoldError
from competition.training.ranks import die_with

FEW = 8  # cases that are not worth the start of a process


class Crew:
    """Calls a method of one object for each case, in several processes; used in a `with`.

    Args:
        desk: the object; its methods take a case and an argument. It is pickled once for each process.
        cases: the cases.
        workers: processes; None: one for each core. 1 works in this process.
    """

    def __init__(self, desk: Any, cases: Sequence[str], workers: int | None = None) -> None:
        self.desk, self.cases = desk, cases
        self.workers = min(workers or _cores(), len(cases)) if len(cases) > FEW else 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self.workers > 1:  # spawn: a fork of a process with torch's threads may hang
            self._others = set(active_children())
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=_sit_down, initargs=(self.desk, os.getpid())
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:  # nobody waits for the cases at hand
                for process in set(active_children()) - self._others:
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, method: str, argument: Any) -> Iterator[Any]:
        """The method's results, in the order of the cases.

        Raises:
            MaskfoldError: a process was killed, or the method raised it.
        """
        if self._pool is None:
            for case in self.cases:
                yield getattr(self.desk, method)(case, argument)
            return
        chunk = max(1, min(8, len(self.cases) // (4 * self.workers)))
        try:
            with _without_interruption():  # here processes are started
                results = self._pool.map(
                    _work, [method] * len(self.cases), self.cases, [argument] * len(self.cases), chunksize=chunk
                )
            for failure, result in results:
                if failure is not None:
                    raise MaskfoldError(failure[0], failure[1], status=failure[2])
                yield result
        except BrokenProcessPool as broken:
            raise MaskfoldError(
                "A process that scored out-of-fold predictions was killed.",
                "Memory may have run out; run it again with fewer cores (taskset -c 0).",
            ) from broken


_desk: Any = None  # of this process


@contextmanager
def _without_interruption() -> Iterator[None]:
    """Ctrl-C in a terminal reaches all processes; the ones that are started in the block leave it to this one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _sit_down(desk: Any, parent: int) -> None:
    global _desk
    os.environ["OMP_NUM_THREADS"] = "1"
    die_with(parent)  # which may be killed
    _desk = desk


def _work(method: str, case: str, argument: Any) -> tuple[tuple[str, str, int] | None, Any]:
    """The error travels as plain words."""
    try:
        return None, getattr(_desk, method)(case, argument)
    except MaskfoldError as error:
        return (error.wrong, error.cure, error.status), None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
