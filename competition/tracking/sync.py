"""Upload a run's folder to MLflow in the background of a command, or once for a finished run.

`MlflowSync` uploads in the background with a `RunUploader`, and writes system metrics with a `SystemMetricsSampler`.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from competition.config.experiment import Experiment
from competition.redact import redact
from competition.tracking.provenance import record_environment
from competition.tracking.store import MlflowStore, RunMetadata, configure_mlflow, find_mlflow_store, project_root
from competition.tracking.system_metrics import SystemMetricsSampler
from competition.tracking.uploader import RunUploader

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PAUSE = 30.0  # s between two attempts while the store cannot be reached
LAST_ATTEMPTS = 3  # number of attempts for the last upload

logger = logging.getLogger(__name__)


class MlflowSync:
    """Upload a run's folder to MLflow in the background of a `with` block.

    Errors of MLflow are logged as warnings and do not reach the block. If an upload is incomplete, the next upload of
    the same folder completes it.

    The end of the block sets the status of the MLflow run: FINISHED after a normal end, KILLED after a
    KeyboardInterrupt, and FAILED after any other exception. `set_status` overrides this status.

    Args:
        run_folder: `mlruns/runs/<competition>-<experiment>/<hash>`, or a study's folder.
        exp: the experiment.
        kind: value of the tag `kind`: `cv` or `study`.
        name: name of the run in MLflow. If None, it consists of the names of the experiment and of the run's folder.
        study: folder of the study to which the run belongs as a trial; None if the run belongs to no study. This
            instance does not upload the study's folder.
        interval: seconds between two uploads.
        timeout: the last upload is abandoned after this many seconds without progress. If the previous upload failed,
            the last upload is abandoned after a quarter of this time.
        sampling_interval: seconds between two samples of system metrics, which are recorded only for `cv` runs.

    Example:
        >>> with MlflowSync(run.folder, exp):  # doctest: +SKIP
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
        interval: float = 2.0,
        timeout: float = 60.0,
        sampling_interval: float = 10.0,
    ) -> None:
        self.run_folder, self.store = run_folder, find_mlflow_store(project_root(run_folder))
        self.interval, self.timeout = interval, timeout
        self._uploader = RunUploader(run_folder, self.store, RunMetadata.of(run_folder, exp, kind, name), study)
        self._status: RunStatus | None = None
        self._stop = threading.Event()
        self._is_complete = False
        self._is_failing = False
        # a daemon thread, so that a server that hangs does not keep the process alive
        self._thread = threading.Thread(target=self._work, name="MLflow upload", daemon=True)
        self._sampler = (
            SystemMetricsSampler(run_folder, lambda: self._uploader.is_finished, sampling_interval)
            if kind == "cv"
            else None
        )

    def set_status(self, status: RunStatus) -> None:
        """Set the run's final status, which is uploaded when the `with` block ends."""
        self._status = status

    def __enter__(self) -> Self:
        # Set the variables now and not in the thread, because only folds with the same variables share a fork server.
        configure_mlflow()
        self._thread.start()
        if self._sampler is not None:
            self._sampler.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and self._status is None:
            self._status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        if self._sampler is not None:
            self._sampler.__exit__(kind, error, None)
        self._stop.set()
        self._thread.join(min(3.0, self.timeout))
        if self._thread.is_alive():
            logger.warning("Waiting until the last files are uploaded to MLflow (%s).", self.store.display_uri)
        calls = -1
        while self._thread.is_alive() and calls != self._uploader.calls:
            calls = self._uploader.calls
            self._thread.join(self.timeout / 4 if self._is_failing else self.timeout)
        if not self._is_complete:
            logger.warning(
                "Not all data of this run are in MLflow (%s). The files are in %s. To upload them, run the "
                "same command again.",
                self.store.display_uri,
                self.run_folder,
            )

    def _work(self) -> None:
        """Upload at each interval; after the end of the `with` block, make the last upload, with retries."""
        has_begun = False
        pause = 0.0
        while not self._stop.wait(pause):
            has_begun = self._try_upload(begin=not has_begun) or has_begun
            pause = min(2 * max(pause, self.interval), MAX_PAUSE) if self._is_failing else self.interval
        for _ in range(1 if self._is_failing else LAST_ATTEMPTS):
            if self._try_upload(begin=not has_begun, last=True):
                self._is_complete = True
                return

    def _try_upload(self, begin: bool = False, last: bool = False) -> bool:
        """Upload once, and return whether the upload succeeded.

        Of several consecutive failures, only the first is logged. The first success after a failure is logged too.

        Args:
            begin: whether to create the MLflow run first, or set it to RUNNING.
            last: whether this is the last upload, which also sets the final status.
        """
        try:
            if begin:
                self._begin()
            self._uploader.upload(last)
            if last:
                self._uploader.close(self._status or "FINISHED")
        except Exception as error:  # noqa: BLE001 - no error of MLflow, its database or the network may stop training
            if not self._is_failing:
                logger.warning(
                    "Data cannot be sent to MLflow (%s): %s%s. %s",
                    self.store.display_uri,
                    _first_line(error),
                    _free_space(self.store, error),
                    "To upload it later, run the same command again."
                    if last
                    else "Training continues, and Maskfold tries again.",
                )
            self._is_failing = True
            return False
        if self._is_failing:
            logger.warning("MLflow (%s) accepts data again.", self.store.display_uri)
        self._is_failing = False
        return True

    def _begin(self) -> None:
        if not self._uploader.is_finished:
            record_environment(self.run_folder)
        self._uploader.begin()


def upload_finished_run(run_folder: Path, exp: Experiment) -> bool:
    """Upload new files of a run that has the status FINISHED in MLflow.

    A run with another status is not uploaded here, because `maskfold cv` uploads it. The caller must hold the run's
    lock. An error of MLflow is logged as a warning.

    Returns:
        True if MLflow now has the run and all its files; False if the run has another status or the upload failed.
    """
    store = find_mlflow_store(project_root(run_folder))
    uploader = RunUploader(run_folder, store, RunMetadata.of(run_folder, exp, "cv"))
    if not uploader.is_finished:  # `maskfold cv` uploads the run
        return False
    try:
        uploader.upload(last=True)
    except Exception as error:  # noqa: BLE001 - no error of MLflow, its database or the network may stop a command
        logger.warning("Data cannot be sent to MLflow (%s): %s.", store.display_uri, _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = redact(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _free_space(store: MlflowStore, error: Exception) -> str:
    """Return a text with the free disk space if the error's message contains "disk"; otherwise return an empty text."""
    if store.database is None or "disk" not in str(error).lower():
        return ""
    return f" ({shutil.disk_usage(store.database.parent).free:,} bytes are free in {store.database.parent})"
