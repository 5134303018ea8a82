"""Where networks predict, and in which precision: what a run's YAML asks for, on the device that is there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """A device and the precision of the networks on it.

    Attributes:
        device: where the networks are.
        precision: fp32, bf16 or fp16; weights and probabilities are float32 in each.
    """

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a network is called."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=TYPES[self.precision])


def place_of(exp: Experiment) -> Place:
    """The place of an experiment's networks: one device, as `run.accelerator` says.

    `training.precision: auto` is `native_precision`. A GPU without bf16 of its own computes in fp16 what was trained in
    bf16, and a CPU in bf16 what was trained in fp16, which it cannot do.

    Raises:
        MaskfoldError: the machine has no such device.
    """
    kind = exp.run.accelerator
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = "cuda" if there["cuda"] else "cpu"
    if not there.get(kind, True):
        raise MaskfoldError(f"run.accelerator is {kind}, and this machine has none.", "Set run.accelerator=auto.")
    precision: str = exp.training.precision
    if precision == "auto" or (precision == "bf16" and kind == "cuda"):
        precision = native_precision(kind)
    elif precision == "fp16" and kind == "cpu":
        precision = "bf16"
    return Place(torch.device(kind) if kind == "cpu" else torch.device(kind, 0), precision)


def native_precision(accelerator: str) -> str:
    """bf16 where the device computes in it natively, else fp16 on a GPU, else fp32.

    Kaggle's T4 and P100 emulate bf16 slowly: compute capability 8.0 is the first with it in hardware.
    """
    if accelerator == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if accelerator == "cpu":
        return "bf16" if torch.backends.mkldnn.is_available() and _cpu_has_bf16() else "fp32"
    return "fp32"


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
