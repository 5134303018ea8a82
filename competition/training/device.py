"""Which device and which precision a fold trains with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric

from competition.config import Experiment, MaskfoldError
from competition.inference.place import native_precision

PLUGINS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(exp: Experiment, steady: Callable[[], bool] = lambda: True) -> tuple[Fabric, str]:
    """Fabric for an experiment's `run:` section, and the name of the precision it works in (fp32, bf16, fp16).

    Args:
        exp: the experiment.
        steady: asked where `training.precision: auto` would be bf16 on a CPU, see `competition.training.repeat`; fp32 if not.

    Raises:
        MaskfoldError: the machine has fewer devices than `run.devices`.
    """
    accelerator, devices = exp.run.accelerator, exp.run.devices
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(
        accelerator, devices
    )  # a CPU is as many as it is asked to be
    if 0 < there < devices:
        raise MaskfoldError(
            f"run.devices is {devices}, but this machine has {there} {accelerator} device{'s' * (there > 1)}.",
            f"Set run.devices={there}, or run.accelerator=cpu.",
        )
    chosen = exp.training.precision
    precision = native_precision(accelerator) if chosen == "auto" else chosen
    if chosen == "auto" and precision == "bf16" and accelerator == "cpu" and not steady():
        precision = "fp32"
    for name in ("lightning.fabric", "lightning.pytorch"):  # either announces the precision, as we do
        logging.getLogger(name).setLevel(logging.WARNING)
    several = _several() if devices > 1 else {}
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=PLUGINS[precision], **several)  # type: ignore[arg-type]
    return fabric, precision


def _several() -> dict[str, Any]:
    """What Fabric is told about a fold of several processes on one machine."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they talk inside of this machine only
    # Encoders may have stages that a shallow decoder does not use. A validation, for which the others wait, may take
    # hours; whether all are still there is watched by other means (`ranks.die_with`, Fabric's launcher).
    strategy = DDPStrategy(find_unused_parameters=True, timeout=timedelta(days=7))
    # By its own launcher also where a batch system would be found: the system started one process for the fold.
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}
