"""A thread beside the training that delivers what folds write on disk to MLflow."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from competition.config import Experiment
from competition.config.secrets import scrub
from competition.tracking.delivery import Delivery
from competition.tracking.identity import Identity
from competition.tracking.provenance import record
from competition.tracking.store import Store, root_of, store_of
from competition.tracking.system import Sampler

Status = Literal["FINISHED", "FAILED", "KILLED"]

LONGEST_PAUSE = 30.0  # s between two tries while the store cannot be reached
LAST_TRIES = 3

logger = logging.getLogger(__name__)


class Shipper:
    """Delivers a run's folder to MLflow while the body of the `with` runs; nothing it meets reaches the body.

    Leaving the body normally makes the run FINISHED, a KeyboardInterrupt KILLED, any other exception FAILED; what
    `finish` said goes first. What could not be delivered is delivered by the next shipper of the same folder.

    Args:
        run_folder: `mlruns/runs/<competition>-<experiment>/<hash>`, or a study's folder.
        exp: the experiment.
        kind: the tag `kind`: `cv`, or `study`.
        name: the run's name in MLflow; None: experiment and hash.
        study: the folder of the study that this run is a trial of, delivered by a shipper of its own.
        pause: seconds between two looks at the folder.
        patience: seconds without a sign of life after which the last delivery is given up; a quarter of them where the
            store could not be reached before either.
        sampling: seconds between two looks at the machine, of a `cv` run.

    Example:
        >>> with Shipper(run.folder, exp):  # doctest: +SKIP
        ...     run_cv(run, print)
    """

    def __init__(
        self,
        run_folder: Path,
        exp: Experiment,
        *,
        kind: str = "cv",
        name: str | None = None,
        study: Path | None = None,
        pause: float = 2.0,
        patience: float = 60.0,
        sampling: float = 10.0,
    ) -> None:
        self.run_folder, self.store = run_folder, store_of(root_of(run_folder))
        self.pause, self.patience = pause, patience
        self._delivery = Delivery(run_folder, self.store, Identity.of(run_folder, exp, kind, name), study)
        self._status: Status | None = None
        self._leaving = threading.Event()
        self._delivered = False
        self._troubled = False
        # a daemon: a server that hangs must not keep the process alive
        self._thread = threading.Thread(target=self._work, name="shipper", daemon=True)
        self._sampler = Sampler(run_folder, lambda: self._delivery.is_finished, sampling) if kind == "cv" else None

    def finish(self, status: Status) -> None:
        """Say how the run ended; it is told to MLflow when the body is left."""
        self._status = status

    def __enter__(self) -> Self:
        self._thread.start()
        if self._sampler is not None:
            self._sampler.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and self._status is None:
            self._status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        if self._sampler is not None:
            self._sampler.__exit__(kind, error, None)
        self._leaving.set()
        self._thread.join(min(3.0, self.patience))
        if self._thread.is_alive():
            logger.warning("Waiting for MLflow (%s) to take the last files.", self.store.shown)
        seen = -1
        while self._thread.is_alive() and seen != self._delivery.calls:
            seen = self._delivery.calls
            self._thread.join(self.patience / 4 if self._troubled else self.patience)
        if not self._delivered:
            logger.warning(
                "Not all of this run is in MLflow (%s). The files are in %s; the next start of the same command "
                "delivers them.",
                self.store.shown,
                self.run_folder,
            )

    def _work(self) -> None:
        """The thread: look, deliver, wait; once more when the body is left."""
        begun = False
        pause = 0.0
        while not self._leaving.wait(pause):
            begun = self._try(begin=not begun) or begun
            pause = min(2 * max(pause, self.pause), LONGEST_PAUSE) if self._troubled else self.pause
        for _ in range(1 if self._troubled else LAST_TRIES):
            if self._try(begin=not begun, last=True):
                self._delivered = True
                return

    def _try(self, begin: bool = False, last: bool = False) -> bool:
        """One delivery; True if all went through. The first of a row of failures is told, and its end."""
        try:
            if begin:
                self._begin()
            self._delivery.deliver(last)
            if last:
                self._delivery.close(self._status or "FINISHED")
        except Exception as error:  # noqa: BLE001 - training goes on, whatever MLflow, its database or the network do
            if not self._troubled:
                logger.warning(
                    "MLflow (%s) does not take deliveries: %s%s. Training goes on, and so do the tries.",
                    self.store.shown,
                    _first_line(error),
                    _room(self.store, error),
                )
            self._troubled = True
            return False
        if self._troubled:
            logger.warning("MLflow (%s) takes deliveries again.", self.store.shown)
        self._troubled = False
        return True

    def _begin(self) -> None:
        if not self._delivery.is_finished:
            record(self.run_folder)
        self._delivery.begin()


def _first_line(error: Exception) -> str:
    lines = scrub(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _room(store: Store, error: Exception) -> str:
    """How much room there is, where a full disk may be the reason."""
    if store.database is None or "disk" not in str(error).lower():
        return ""
    return f" ({shutil.disk_usage(store.database.parent).free:,} bytes are free in {store.database.parent})"
