"""Run folds as tasks on a Ray cluster whose machines share the run's folder."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import competition
from competition.config.experiment import EXECUTORS, HardwareConfig
from competition.errors import MaskfoldError
from competition.runs.fold import RESULT_FILE, FoldJob
from competition.runs.lock import is_free
from competition.text import format_amount, format_count
from competition.training.fold_process import (
    OUTPUT_FILE,
    STOP_TIMEOUT,
    LogTail,
    raise_for_status,
    start_fold,
    stop_folds,
)

# Maximum number of restarts of a fold after its worker or machine was lost; each restart resumes from the checkpoint.
MAX_RETRIES = 10
POLL_SECONDS = 0.2  # seconds between two checks
# Seconds to wait for a lock or a file: a file server keeps the locks of a dead machine for 90 s, and may show a new
# file 60 s late.
LOCK_PATIENCE = 150.0
SHARED_FOLDER_HINT = (
    "Mount one folder at the same path on every machine of the cluster, and run the command in "
    "this folder; see docs/cluster.md."
)


@EXECUTORS.register("ray")
class RayExecutor:
    """Run each fold as a Ray task, on any machine of the cluster that has enough free resources.

    At most `run.parallel_folds` tasks run at the same time. If there is no cluster, Ray starts one on this machine.
    This cluster ends with this process.

    Args:
        run: the section `run` of the experiment.
        command: command line of a fold's process, see `start_fold`.
    """

    def __init__(self, run: HardwareConfig, command: Sequence[str] | None = None) -> None:
        self.settings, self.command = run, command

    def run(
        self, jobs: Sequence[FoldJob], say: Callable[[str], None], should_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run all jobs until they end; see `Executor.run`."""
        ray = connect_ray()
        resources = FoldResources.from_settings(
            self.settings, [node["Resources"] for node in ray.nodes() if node["Alive"]]
        )
        task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=MAX_RETRIES)(run_fold_task)
        waiting = [replace(job, threads=resources.threads, patience=LOCK_PATIENCE) for job in jobs]
        running: dict[Any, tuple[FoldJob, LogTail]] = {}  # by Ray's reference to the fold's result
        try:
            while waiting or running:
                while waiting and len(running) < self.settings.parallel_folds:
                    job = waiting.pop(0)
                    tail = LogTail(job, say)
                    reference = task.options(name=f"{job.run.name} {job.folder.name}").remote(
                        job.to_json(), os.getcwd(), self.command, resources.gpus == 0, competition.__version__
                    )
                    running[reference] = (job, tail)
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for _, tail in running.values():
                    tail.read()
                should_stop()
                for reference in done:
                    job, tail = running.pop(reference)
                    error = _task_error(ray, reference, job)
                    tail.read()
                    if error is not None:
                        raise error
        finally:
            _cancel(ray, running)


@dataclass(frozen=True)
class FoldResources:
    """Hold the resources that a fold requests from the cluster.

    Attributes:
        cpus: number of CPU cores.
        gpus: number of GPUs; may be a fraction.
        threads: number of CPU threads that the fold uses.
    """

    cpus: int
    gpus: float
    threads: int

    @classmethod
    def from_settings(cls, run: HardwareConfig, machines: Sequence[Mapping[str, float]]) -> FoldResources:
        """Return the resources of a fold: the values in the section `run`, or defaults that suit the machines.

        Args:
            run: the section `run` of the experiment.
            machines: for each machine, its number of CPUs by the key `CPU`, and of GPUs by the key `GPU`. Machines
                without CPUs get no folds.

        Raises:
            MaskfoldError: no machine has these resources.
        """
        gpus = run.gpus
        if gpus is None:
            gpus = run.devices if run.accelerator in ("auto", "cuda") and any(m.get("GPU", 0) for m in machines) else 0
        suitable = [machine for machine in machines if machine.get("CPU", 0) and machine.get("GPU", 0) >= gpus]
        cores = [int(machine["CPU"]) for machine in suitable]
        # Request at most the cores of the smallest machine, so that each machine can continue a fold of a lost machine.
        share = max(run.devices, min(min(cores, default=1), sum(cores) // run.parallel_folds))
        cpus = run.cpus or run.threads or share
        if max(cores, default=0) < cpus:
            available = ", ".join(
                f"{format_amount(m.get('CPU', 0), 'CPU')} and {format_amount(m.get('GPU', 0), 'GPU')}" for m in machines
            )
            raise MaskfoldError(
                f"A fold requires {format_count(cpus, 'CPU')} and {format_amount(gpus, 'GPU')}, but no machine of the "
                f"cluster has so many; the machines have {available}.",
                "Lower run.cpus, run.threads, run.gpus or run.devices, so that one machine has enough.",
            )
        return cls(cpus, gpus, run.threads or cpus)


def connect_ray() -> Any:
    """Connect to a Ray cluster, and return the module `ray`.

    The environment variable `RAY_ADDRESS` names the cluster. If this variable is not set, connect to the cluster that
    `ray start` has started on this machine. If there is none, start a new cluster on this machine.

    Raises:
        MaskfoldError: Ray is not installed, or the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MaskfoldError(
            "run.executor is ray, but Ray is not installed.", 'Install Ray: pip install "maskfold[ray]".', status=2
        ) from error
    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MaskfoldError(
            f"Ray does not answer: {str(error).splitlines()[0]}.",
            "Check the cluster with `ray status`. Then correct the variable RAY_ADDRESS, or remove a dead "
            "cluster with `ray stop`.",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray installs its own signal handler, which would leave the folds running.
            signal.signal(signal.SIGTERM, handler)
    return ray


def run_fold_task(
    job_json: str, working_folder: str, command: Sequence[str] | None, without_gpu: bool, version: str
) -> MaskfoldError | KeyboardInterrupt | None:
    """Train a fold in a process on this machine; resume it if it has a checkpoint.

    This function is the Ray task. It runs on a machine of the cluster; the driver is the process of the user's command.

    Args:
        job_json: the job as JSON, see `FoldJob.to_json`.
        working_folder: working folder of the driver. Paths of data in the YAML may be relative to it.
        command: command line of the fold's process, see `start_fold`.
        without_gpu: whether to hide the GPUs of this machine from the fold.
        version: version of Maskfold in the driver.

    Returns:
        An error, which the driver raises; None if the fold is finished.
    """
    job, host = FoldJob.from_json(job_json), socket.gethostname()
    if version != competition.__version__:
        return MaskfoldError(
            f"{host} has Maskfold {competition.__version__}, expected {version}, the version of this command.",
            "Install the same version on every machine.",
        )
    for folder in (job.run, Path(working_folder)):
        if not folder.is_dir():
            return MaskfoldError(f"The folder {folder} does not exist on {host}.", SHARED_FOLDER_HINT)
    os.chdir(working_folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / OUTPUT_FILE, "a") as file:
        file.write(f"starts on {host} (parent: Ray process {os.getpid()})\n")
    process = start_fold(job, command, gpus=[] if without_gpu else None)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)  # `ray.cancel` raises KeyboardInterrupt in this block
    finally:
        stop_folds([process])
    try:
        raise_for_status(job, process.wait(), process.read_error())
    except (MaskfoldError, KeyboardInterrupt) as error:
        return error
    return None


def _task_error(ray: Any, reference: Any, job: FoldJob) -> MaskfoldError | KeyboardInterrupt | None:
    """Return the error of a task that has ended; None if its fold is finished and this machine can see its result."""
    try:
        task_error: MaskfoldError | KeyboardInterrupt | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return MaskfoldError(
            f"Ray gave up running fold {job.folder.name}: {message}.",
            f"The whole output of the fold is in {job.folder / OUTPUT_FILE}. To resume the fold from its last "
            "checkpoint, run the same command again.",
        )
    if task_error is None and not _wait_until((job.folder / RESULT_FILE).exists, LOCK_PATIENCE):
        return MaskfoldError(
            f"Fold {job.folder.name} is finished, but {job.folder} on this machine does not contain its result.",
            SHARED_FOLDER_HINT,
        )
    return task_error


def _cancel(ray: Any, running: Mapping[Any, tuple[FoldJob, LogTail]]) -> None:
    """Stop all running tasks, and wait until each fold has written a checkpoint and released its lock."""
    for reference in running:
        ray.cancel(reference)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=STOP_TIMEOUT)
    for job, tail in running.values():
        _wait_until(lambda job=job: is_free(job.folder), STOP_TIMEOUT)  # type: ignore[misc]
        tail.read()


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition is true, for at most `seconds`; return whether it has become true."""
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return fulfilled
