"""Run one fold in several processes, one per device; they take the same steps on different samples.

Lightning Fabric starts the processes and averages the gradients.
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
from competition.inference.predict import native_precision
from competition.process import PARENT_VARIABLE

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Key = TypeVar("Key", bound=Hashable)
MAX_WORKERS = 4  # `run.workers: auto` starts at most this many loader processes per GPU
SHARED_MEMORY, MIN_SHARED_BYTES = Path("/dev/shm"), 2**30  # on Linux; containers often have only 64 MiB
FABRIC_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(exp: Experiment, bf16_is_deterministic: Callable[[], bool] = lambda: True) -> tuple[Fabric, str]:
    """Return Fabric for an experiment's `run:` section, and the name of its precision (fp32, bf16, fp16).

    Args:
        exp: the experiment.
        bf16_is_deterministic: function that is called if `training.precision: auto` selects bf16 on a CPU. If it
            returns False, the precision is fp32. See `competition.training.guards`.

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
            f"run.devices={devices}, but this machine has {available} {accelerator} device{'s' * (available > 1)}.",
            f"Set run.devices={available}, or run.accelerator=cpu.",
        )
    precision: str = exp.training.precision
    if precision == "auto":
        precision = native_precision(accelerator)
        if precision == "bf16" and accelerator == "cpu" and not bf16_is_deterministic():
            precision = "fp32"
    # Both loggers report the precision, which Maskfold also logs.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    multi_device = _multi_device_options() if devices > 1 else {}
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=FABRIC_PRECISIONS[precision], **multi_device)  # type: ignore[arg-type]
    return fabric, precision


def _multi_device_options() -> dict[str, Any]:
    """Return the options of Fabric for a fold of several processes on one machine."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # because all processes are on one machine
    # `find_unused_parameters`: encoders may have stages that a shallow decoder does not use. The timeout is long
    # because the other processes wait during a validation, which may take hours; `exit_with_parent` and Fabric's
    # launcher detect dead processes.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=timedelta(days=7))
    # Use Fabric's launcher even under a batch system, because the batch system started only one process for the fold.
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}


def with_workers(exp: Experiment, device: torch.device, threads: int) -> Experiment:
    """Return the experiment with a number of loader processes instead of `run.workers: auto`.

    A single process could not prepare data fast enough for a GPU. So a fold on a GPU gets one loader process less than
    it has threads, and at most `MAX_WORKERS`. A fold on a CPU gets no loader processes, nor does a fold with little
    shared memory, through which loader processes pass batches.

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
    """Return whether this is the fold's main process, which starts the other processes, validates and writes files."""
    return os.environ.get("LOCAL_RANK", "0") == "0"  # Fabric sets this number in the processes that it starts


def launch_processes(fabric: Fabric) -> None:
    """Start the fold's other processes, if it needs any, with the command line of this process."""
    own_parent = os.environ.get(PARENT_VARIABLE)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[PARENT_VARIABLE]
        if own_parent is not None:
            os.environ[PARENT_VARIABLE] = own_parent


class DistributedContext:
    """Exchange values between the processes of one fold; with a single process, every method returns its input.

    Args:
        fabric: Fabric after `launch`.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.world_size, self.rank = fabric, fabric.world_size, fabric.global_rank

    def check_devices(self, devices: int, checkpoint: Path) -> None:
        """Check that a checkpoint was written with the present number of processes.

        Raises:
            MaskfoldError: the number of processes differs, so the steps would use other samples.
        """
        if devices != self.world_size:
            raise MaskfoldError(
                f"The checkpoint {checkpoint} was written with run.devices={devices}, expected {self.world_size}: "
                "another number of devices takes other samples in each step.",
                f"Set run.devices={devices}, or start another run with --new.",
            )

    def run_on_main(
        self, action: Callable[[], None], get_state: Callable[[], Any], load_state: Callable[[Any], None]
    ) -> None:
        """Run an action in the main process, then copy the resulting state to the other processes.

        Args:
            action: function that is called in the main process only; an exception in it ends all processes.
            get_state: function that is then called in the main process and returns plain values.
            load_state: function that is called in the other processes with the result of `get_state`.

        Raises:
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
        """Return the main process's decision in every process."""
        return decision if self.world_size == 1 else bool(self.fabric.broadcast(decision))

    def mean(self, values: Mapping[Key, Tensor]) -> dict[Key, float]:
        """Average scalars over the processes, with a single synchronisation with the device."""
        means: Any = torch.stack([value.detach().float() for value in values.values()])
        if self.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def gather(self, numbers: Tensor) -> list[int]:
        """Return the integers of all processes as one list, in the order of the processes."""
        gathered: Any = self.fabric.all_gather(numbers.to(self.fabric.device)) if self.world_size > 1 else numbers
        return [int(number) for number in gathered.flatten().tolist()]

    def close(self) -> None:
        """End the communication between the processes; afterwards only the main process continues."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()
