"""Train one fold in several processes, one per device.

All processes take the same optimiser steps, each on different samples. Lightning Fabric starts the processes and
averages their gradients.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError
from competition.inference.precision import native_precision
from competition.process import PARENT_VARIABLE

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Key = TypeVar("Key", bound=Hashable)
MAX_WORKERS = 4  # `run.workers: auto` starts at most this many loader processes per GPU
SHARED_MEMORY, MIN_SHARED_BYTES = Path("/dev/shm"), 2**30  # on Linux; containers often have only 64 MiB
FABRIC_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(exp: Experiment, bf16_is_deterministic: Callable[[], bool] = lambda: True) -> tuple[Fabric, str]:
    """Return Lightning Fabric for the devices and precision of an experiment, and the name of the precision.

    Args:
        exp: the experiment.
        bf16_is_deterministic: function that is called if `training.precision: auto` selects bf16 on a CPU. If it
            returns False, fp32 is used instead. See `competition.training.guards`.

    Returns:
        Fabric, and the precision: fp32, bf16 or fp16.

    Raises:
        MaskfoldError: the machine has fewer devices than `run.devices`.
    """
    from lightning.fabric import Fabric  # this import takes seconds, and only a fold's process needs it

    accelerator, devices = exp.run.accelerator, exp.run.devices
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU, every number of processes is allowed.
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(accelerator, devices)
    if 0 < available < devices:
        raise MaskfoldError(
            f"run.devices={devices}, but this machine has only {available} {accelerator} "
            f"device{'s' * (available > 1)}.",
            f"Set run.devices={available}, or run.accelerator=cpu.",
        )
    precision: str = exp.training.precision
    if precision == "auto":
        precision = native_precision(accelerator)
        if precision == "bf16" and accelerator == "cpu" and not bf16_is_deterministic():
            precision = "fp32"
    # Without this, both loggers would also report the precision, which Maskfold itself logs.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    multi_device = _multi_device_options() if devices > 1 else {}
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=FABRIC_PRECISIONS[precision], **multi_device)  # type: ignore[arg-type]
    return fabric, precision


def _multi_device_options() -> dict[str, Any]:
    """Return the keyword arguments of Fabric for a fold with several processes on one machine."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # because all processes are on one machine
    # `find_unused_parameters` is needed because encoders may have stages that a shallow decoder does not use. The
    # timeout is long because the other processes wait while the main process validates, which may take hours. It is not
    # needed to detect dead processes; `exit_with_parent` and Fabric's launcher do that.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=timedelta(days=7))
    # Use Fabric's launcher even under a batch system, because the batch system started only one process for the fold.
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}


def with_workers(exp: Experiment, device: torch.device, threads: int) -> Experiment:
    """Return the experiment; if `run.workers` is `auto`, replace it by a number of loader processes per device.

    A single process could not prepare data fast enough for a GPU. So the number of loader processes per GPU is the
    GPU's share of the threads minus one, but at most `MAX_WORKERS`. A fold on a CPU gets no loader processes. Neither
    does a fold on a machine with little shared memory, because loader processes pass batches through shared memory.

    Args:
        exp: the experiment.
        device: the network's device.
        threads: number of CPU threads of the fold.
    """
    if exp.run.workers != "auto":
        return exp
    count = 0
    if device.type == "cuda" and (not SHARED_MEMORY.is_dir() or disk_usage(SHARED_MEMORY).free >= MIN_SHARED_BYTES):
        count = max(0, min(MAX_WORKERS, threads // exp.run.devices - 1))
    return exp.model_copy(update={"run": exp.run.model_copy(update={"workers": count})})


def is_main_process() -> bool:
    """Return whether this process is the fold's main process.

    The main process starts the other processes, validates, and writes all files.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"  # Fabric sets this number in the processes that it starts


def launch_processes(fabric: Fabric) -> None:
    """Start the other processes of a fold with several devices; they get the command line of this process."""
    own_parent = os.environ.get(PARENT_VARIABLE)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[PARENT_VARIABLE]
        if own_parent is not None:
            os.environ[PARENT_VARIABLE] = own_parent


class DistributedContext:
    """Exchange values between the processes of one fold; with a single process, nothing is exchanged.

    Args:
        fabric: Lightning Fabric, after its method `launch` was called.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.world_size, self.rank = fabric, fabric.world_size, fabric.global_rank

    def check_devices(self, devices: int, checkpoint: Path) -> None:
        """Check that a checkpoint was written with the present number of devices (processes).

        With another number, each step would use other samples.

        Args:
            devices: number of devices that the checkpoint records.
            checkpoint: path of the checkpoint, for the message.

        Raises:
            MaskfoldError: the numbers differ.
        """
        if devices != self.world_size:
            raise MaskfoldError(
                f"The checkpoint {checkpoint} was written with run.devices={devices}, but run.devices is "
                f"now {self.world_size}. With another number of devices, each step would have other samples.",
                f"Set run.devices={devices}, or start another run with --new.",
            )

    def run_on_main(
        self, action: Callable[[], None], get_state: Callable[[], Any], load_state: Callable[[Any], None]
    ) -> None:
        """Run an action in the main process, then copy the resulting state to the other processes.

        Args:
            action: function that is called in the main process only. If it raises an exception, this method raises an
                exception in all processes.
            get_state: function that is called in the main process after the action, and returns plain values.
            load_state: function that is called in the other processes with the result of `get_state`.

        Raises:
            BaseException: in the main process, the exception of the action.
            KeyboardInterrupt: in the other processes, if the action raised an exception.
        """
        if self.world_size == 1:
            return action()
        error: BaseException | None = None
        if self.rank == 0:
            try:
                action()
            except BaseException as caught:  # noqa: BLE001 - raised again after the broadcast
                error = caught
        failed, state = self.fabric.broadcast((error is not None, get_state()) if self.rank == 0 else (False, None))
        if error is not None:
            raise error
        if failed:
            raise KeyboardInterrupt("the main process stopped")
        if self.rank > 0:
            load_state(state)

    def agree(self, decision: bool) -> bool:
        """Return the main process's value of `decision` in every process."""
        return decision if self.world_size == 1 else bool(self.fabric.broadcast(decision))

    def mean(self, values: Mapping[Key, Tensor]) -> dict[Key, float]:
        """Average scalar tensors over the processes, and return the means as numbers by the same keys.

        All values are transferred at once, so that the device is synchronised only once.
        """
        means: Any = torch.stack([value.detach().float() for value in values.values()])
        if self.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def gather(self, numbers: Tensor) -> list[int]:
        """Concatenate an integer tensor of every process, and return the numbers in the order of the processes."""
        gathered: Any = self.fabric.all_gather(numbers.to(self.fabric.device)) if self.world_size > 1 else numbers
        return [int(number) for number in gathered.flatten().tolist()]

    def close(self) -> None:
        """End the communication between the processes; the main process then continues alone."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()
