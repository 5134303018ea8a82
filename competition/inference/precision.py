"""Select the device and the precision of the forward passes: fp32, bf16 or fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeviceContext:
    """Hold the device of the networks, and the precision of their forward passes.

    Attributes:
        device: device of the networks.
        precision: fp32, bf16 or fp16; weights and probabilities are always float32.
    """

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context manager for the forward pass of a network."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])


def device_context(exp: Experiment) -> DeviceContext:
    """Return the device that `run.accelerator` selects, and the precision of the forward passes on this device.

    The precision is the value of `training.precision`, with these exceptions:

    - `auto` becomes the result of `native_precision`.
    - `bf16` becomes fp16 on a GPU without native support for bf16.
    - `fp16` becomes bf16 on a CPU, because CPUs do not support fp16.

    Raises:
        MaskfoldError: the machine has no such device.
    """
    kind = exp.run.accelerator
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = "cuda" if available["cuda"] else "cpu"
    if not available.get(kind, True):
        raise MaskfoldError(
            f"run.accelerator: found {kind}, but this machine has no such device.", "Set run.accelerator=auto."
        )
    precision: str = exp.training.precision
    if precision == "auto" or (precision == "bf16" and kind == "cuda"):
        precision = native_precision(kind)
    elif precision == "fp16" and kind == "cpu":
        precision = "bf16"
    return DeviceContext(torch.device(kind) if kind == "cpu" else torch.device(kind, 0), precision)


def native_precision(accelerator: str) -> str:
    """Return the fastest safe precision of a device: bf16 with native support, else fp16 on CUDA and fp32 elsewhere.

    GPUs below compute capability 8.0, such as Kaggle's T4 and P100, have no native bf16 and emulate it slowly.

    Args:
        accelerator: cuda, cpu or mps.
    """
    if accelerator == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if accelerator == "cpu":
        return "bf16" if torch.backends.mkldnn.is_available() and _cpu_has_bf16() else "fp32"
    return "fp32"


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
