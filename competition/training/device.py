"""Which device and which precision a fold trains with."""

from __future__ import annotations

import logging

import torch
from lightning.fabric import Fabric

from competition.config import Experiment

PLUGINS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(exp: Experiment) -> tuple[Fabric, str]:
    """Fabric for an experiment's `run:` section, and the name of the precision it works in (fp32, bf16, fp16)."""
    accelerator = exp.run.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = exp.training.precision
    precision = native_precision(accelerator) if chosen == "auto" else chosen
    for name in ("lightning.fabric", "lightning.pytorch"):  # either announces the precision, as we do
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = Fabric(accelerator=accelerator, devices=exp.run.devices, precision=PLUGINS[precision])  # type: ignore[arg-type]
    return fabric, precision


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
