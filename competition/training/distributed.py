"""The processes of one fold, one for each device: all take the same steps, each on its own samples.

Lightning Fabric starts the processes and averages their gradients.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from datetime import timedelta
from pathlib import Path
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
FABRIC_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(exp: Experiment, bf16_is_deterministic: Callable[[], bool] = lambda: True) -> tuple[Fabric, str]:
    """Return Fabric for an experiment's `run:` section, and the name of its precision (fp32, bf16, fp16).

    Args:
        exp: the experiment.
        bf16_is_deterministic: called if `training.precision: auto` would be bf16 on a CPU; if it returns False, the
            precision is fp32. See `competition.training.guards`.

    Raises:
        MaskfoldError: the machine has fewer devices than `run.devices`.
    """
    from lightning.fabric import Fabric  # takes seconds; only a fold's process needs it

    accelerator, devices = exp.run.accelerator, exp.run.devices
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(accelerator, devices)  # a CPU allows any number
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
    for name in ("lightning.fabric", "lightning.pytorch"):  # both log the precision, which Maskfold logs itself
        logging.getLogger(name).setLevel(logging.WARNING)
    multi_device = _multi_device_options() if devices > 1 else {}
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=FABRIC_PRECISIONS[precision], **multi_device)  # type: ignore[arg-type]
    return fabric, precision


def _multi_device_options() -> dict[str, Any]:
    """Return the options of Fabric for a fold of several processes on one machine."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the processes are on one machine
    # Encoders may have stages that a shallow decoder does not use. The other processes wait for a validation, which may
    # take hours, hence the long timeout; `exit_with_parent` and Fabric's launcher detect dead processes.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=timedelta(days=7))
    # Fabric's own launcher even under a batch system, which started only one process for the fold.
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}


def is_main_process() -> bool:
    """Return whether this is the fold's main process, which starts the others, validates and writes files."""
    return os.environ.get("LOCAL_RANK", "0") == "0"  # Fabric numbers the processes that it starts


def launch_processes(fabric: Fabric) -> None:
    """Start the other processes of the fold, if it has any; they run this process's command line."""
    own_parent = os.environ.get(PARENT_VARIABLE)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[PARENT_VARIABLE]
        if own_parent is not None:
            os.environ[PARENT_VARIABLE] = own_parent


class DistributedContext:
    """The processes of one fold and their communication; a single process needs none.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.world_size, self.rank = fabric, fabric.world_size, fabric.global_rank

    def check_devices(self, devices: int, checkpoint: Path) -> None:
        """Check that a checkpoint was written with this number of processes.

        Raises:
            MaskfoldError: it was not; the steps would take other samples.
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
        """Run an action in the main process, then copy its state to the others.

        Args:
            action: called in the main process only; an exception ends all processes.
            get_state: called after it in the main process; returns plain values.
            load_state: called with these values in the other processes.

        Raises:
            KeyboardInterrupt: in the other processes, if the action raised anything.
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
        """Return the main process's decision, in all processes."""
        return decision if self.world_size == 1 else bool(self.fabric.broadcast(decision))

    def mean(self, values: Mapping[Key, Tensor]) -> dict[Key, float]:
        """Average scalars over the processes; synchronises with the device once for all of them."""
        means: Any = torch.stack([value.detach().float() for value in values.values()])
        if self.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def gather(self, numbers: Tensor) -> list[int]:
        """Return the integers (n,) of all processes, in the order of the processes."""
        gathered: Any = self.fabric.all_gather(numbers.to(self.fabric.device)) if self.world_size > 1 else numbers
        return [int(number) for number in gathered.flatten().tolist()]

    def close(self) -> None:
        """End the communication; only the main process continues."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()
