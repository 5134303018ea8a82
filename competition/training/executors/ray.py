"""Folds as tasks of a Ray cluster, whose machines share the run's folder."""

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
from competition.config import MaskfoldError
from competition.config.experiment import Run
from competition.training.executors.process import OUTPUT, PATIENCE, Tail, check, start, stop
from competition.training.job import Job
from competition.training.lock import is_free

RETRIES = 10  # of a fold whose worker or machine is lost; each goes on from the last checkpoint
GLANCE = 0.2  # seconds between two looks
LEASE = 150.0  # seconds: a file server keeps a dead machine's locks for 90, and shows a new file after 60 at most
CURE = "Mount one folder at the same place on every machine of the cluster and type the command inside of it; see docs/cluster.md."


class RayExecutor:
    """One task per fold, `run.parallel_folds` of them at once, wherever the cluster has room.

    Where there is no cluster, this machine becomes one for as long as the process lives.

    Args:
        run: the experiment's `run:` section.
        command: see `start`.
    """

    def __init__(self, run: Run, command: Sequence[str] | None = None) -> None:
        self.asked, self.command = run, command

    def run(self, jobs: Sequence[Job], say: Callable[[str], None], alive: Callable[[], None] = lambda: None) -> None:
        """See `Executor.run`."""
        ray = connect()
        need = Need.of(self.asked, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        task = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_retries=RETRIES)(train_here)
        waiting = [replace(job, threads=need.threads, patience=LEASE) for job in jobs]
        running: dict[Any, tuple[Job, Tail]] = {}  # by what Ray calls a reference to the task's outcome
        try:
            while waiting or running:
                while waiting and len(running) < self.asked.parallel_folds:
                    job = waiting.pop(0)
                    tail = Tail(job, say)
                    reference = task.options(name=f"{job.run.name} {job.folder.name}").remote(
                        job.to_json(), os.getcwd(), self.command, need.gpus == 0, competition.__version__
                    )
                    running[reference] = (job, tail)
                done, _ = ray.wait(list(running), timeout=GLANCE)
                for _, tail in running.values():
                    tail.read()
                alive()
                for reference in done:
                    job, tail = running.pop(reference)
                    outcome = _outcome(ray, reference, job)
                    tail.read()
                    if outcome is not None:
                        raise outcome
        finally:
            _cancel(ray, running)


@dataclass(frozen=True)
class Need:
    """What a fold asks the cluster for."""

    cpus: int
    gpus: float
    threads: int

    @classmethod
    def of(cls, run: Run, machines: Sequence[Mapping[str, float]]) -> Need:
        """As `run:` says; where it is silent, a fair share.

        Args:
            run: the section.
            machines: `CPU` and `GPU` of each; a machine without CPUs takes no folds.

        Raises:
            MaskfoldError: no machine has as much as a fold asks for.
        """
        gpus = run.gpus
        if gpus is None:
            gpus = run.devices if run.accelerator in ("auto", "cuda") and any(m.get("GPU", 0) for m in machines) else 0
        able = [machine for machine in machines if machine.get("CPU", 0) and machine.get("GPU", 0) >= gpus]
        cores = [int(machine["CPU"]) for machine in able]
        # No more than the smallest machine has: any of them can take a fold over from one that is lost.
        share = max(run.devices, min(min(cores, default=1), sum(cores) // run.parallel_folds))
        cpus = run.cpus or run.threads or share
        if max(cores, default=0) < cpus:
            found = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
            raise MaskfoldError(
                f"A fold asks for {cpus} CPUs and {gpus:g} GPUs, and the cluster's machines have {found}.",
                "Set run.cpus, run.gpus and run.devices to what one machine has.",
            )
        return cls(cpus, gpus, run.threads or cpus)


def connect() -> Any:
    """Ray, connected: to `RAY_ADDRESS`, else to the cluster of this machine's `ray start`, else to one of its own.

    Raises:
        MaskfoldError: Ray is not installed, or the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MaskfoldError(
            "run.executor is ray, but Ray is not installed.", 'Run `pip install "maskfold[ray]"`.', status=2
        ) from error
    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MaskfoldError(
            f"Ray does not answer: {str(error).splitlines()[0]}.",
            "Look at `ray status`, correct RAY_ADDRESS, or forget a dead cluster with `ray stop`.",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which would leave the folds running
    return ray


def train_here(
    text: str, here: str, command: Sequence[str] | None, without_gpu: bool, version: str
) -> MaskfoldError | KeyboardInterrupt | None:
    """The task: a fold's process on whichever machine Ray has chosen, from its first step or its last checkpoint.

    Args:
        text: the job as JSON.
        here: the driver's working folder, from which the data's paths count.
        command: see `start`.
        without_gpu: hide this machine's GPUs.
        version: the driver's version of Maskfold.

    Returns:
        What the driver is to raise; None when the fold is finished.
    """
    job, host = Job.from_json(text), socket.gethostname()
    if version != competition.__version__:
        return MaskfoldError(
            f"{host} has Maskfold {competition.__version__}, and the command was given by {version}.",
            "Install the same version on every machine.",
        )
    if not job.run.is_dir() or not Path(here).is_dir():
        return MaskfoldError(f"{host} does not see {here if job.run.is_dir() else job.run}.", CURE)
    os.chdir(here)
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / OUTPUT, "a") as file:
        file.write(f"starts on {host}, below process {os.getpid()}\n")
    process = start(job, command, gpus=[] if without_gpu else None)
    try:
        while process.poll() is None:
            time.sleep(GLANCE)  # `ray.cancel` interrupts here
    finally:
        stop([process])
    try:
        check(job, process.returncode, process.last_words())
    except (MaskfoldError, KeyboardInterrupt) as outcome:
        return outcome
    return None


def _outcome(ray: Any, reference: Any, job: Job) -> MaskfoldError | KeyboardInterrupt | None:
    """How a task has ended; None when its fold is finished and this machine sees it."""
    try:
        outcome: MaskfoldError | KeyboardInterrupt | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return MaskfoldError(
            f"Ray gave up fold {job.folder.name}: {words}.",
            f"See {job.folder / OUTPUT}; the same command goes on from its last checkpoint.",
        )
    if outcome is None and not _until((job.folder / "result.json").exists, LEASE):
        return MaskfoldError(
            f"Fold {job.folder.name} is finished, but its result is not in {job.folder} on this machine.", CURE
        )
    return outcome


def _cancel(ray: Any, running: Mapping[Any, tuple[Job, Tail]]) -> None:
    """Have each fold write a checkpoint and end."""
    for reference in running:
        ray.cancel(reference)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)
    for job, tail in running.values():
        _until(lambda job=job: is_free(job.folder), PATIENCE)  # type: ignore[misc]
        tail.read()


def _until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true, for some seconds at most."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(GLANCE)
    return found
