"""Cases to masks, one after the other, within the time that there is."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config import Competition, MaskfoldError
from competition.submission.members import Ensemble
from competition.submission.offline.bundle import Bundle
from competition.submission.offline.hours import Clock, Watch
from competition.submission.offline.lessen import Lessened
from competition.submission.postprocess import Outcome, postprocess

Say = Callable[[str], None]


class TimeUp(BaseException):
    """The time is over in the middle of a case; no `except Exception` on the way may take it for something else."""


class Predicted(NamedTuple):
    """One case: its masks, and (K, *spatial) probabilities where the file has a confidence for each object."""

    row: Any
    outcome: Outcome
    shown: NDArray[Any] | None
    reached: bool = True


@dataclass(frozen=True)
class Order:
    """How cases are to be predicted.

    Attributes:
        limit: seconds in all; None: no limit.
        started: when the time began, on the clock.
        go_on: whether a case that cannot be read or predicted gets empty masks instead of ending everything.
        onnx: whether by onnxruntime.
        clock: seconds.
    """

    limit: float | None = None
    started: float = 0.0
    go_on: bool = False
    onnx: bool = False
    clock: Clock = time.monotonic


def predict(
    bundle: Bundle, rows: Sequence[Any], confidence: bool, scratch: Path, order: Order, say: Say
) -> Iterator[Predicted]:
    """Predicts cases in order.

    Args:
        bundle: the networks.
        rows: rows of the case table.
        confidence: whether the file has a confidence for each object.
        scratch: a folder for a prepared case.
        order: how.
        say: takes lines for the user.

    Raises:
        MaskfoldError: a case cannot be read or predicted; with `order.go_on` only where all of them cannot.
    """
    comp, steps = bundle.blend.comp, bundle.settings
    lessened = Lessened(_ensemble(bundle, rows, scratch, order), order.clock)
    watch = Watch(
        lessened.rungs, lessened.views, [voxels(row) for row in rows], order.limit, order.started, order.clock
    )
    failed = 0
    for number, row in enumerate(rows):
        start = order.clock()
        try:
            with _until(watch):
                probabilities, gate = lessened.ensemble.predict(row)
                outcome = postprocess(probabilities, comp, steps, row, gate)
        except TimeUp:
            say(f"time: over; {len(rows) - number} of {len(rows)} cases get empty masks")
            yield from (empty(left, comp) for left in rows[number:])
            return
        except MaskfoldError as error:
            failed += 1
            if not order.go_on or failed == len(rows):
                raise
            say(f"note: {error.wrong} The case {row.id} gets empty masks.")
            yield empty(row, comp)
        else:
            shown = probabilities[len(probabilities) - len(comp.classes) :] if confidence else None
            yield Predicted(row, outcome, shown)
        lines = watch.done(order.clock() - start, lessened.seconds())
        if lines:
            lessened.take(watch.rung)
        for line in lines:
            say(line)


def empty(row: Any, comp: Competition) -> Predicted:
    """A case of which nothing is known."""
    return Predicted(row, Outcome(np.zeros((len(comp.classes), *json.loads(row.shape)), np.bool_), None), None, False)


def _ensemble(bundle: Bundle, rows: Sequence[Any], scratch: Path, order: Order) -> Ensemble:
    """The networks, after the first case that can be read."""
    for number, row in enumerate(rows):
        try:
            ensemble = Ensemble(bundle.blend, row, bundle.trust, scratch)
            break
        except MaskfoldError:
            if not order.go_on or number + 1 == len(rows):
                raise
    if order.onnx:
        from competition.submission.offline.onnx import take_onnx

        take_onnx(ensemble)
    return ensemble


def voxels(row: Any) -> int:
    """Of a case: what its time goes with."""
    return int(np.prod(json.loads(row.shape)))


@contextmanager
def _until(watch: Watch) -> Iterator[None]:
    """Raises `TimeUp` if the deadline has come, and inside of the block when it comes, where a process can be woken."""
    if watch.late():
        raise TimeUp
    awake = watch.deadline is None or watch.clock is not time.monotonic or not hasattr(signal, "setitimer")
    if awake or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(_number: int, _frame: Any) -> None:
        raise TimeUp

    former = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, (watch.deadline or 0.0) - watch.clock()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
