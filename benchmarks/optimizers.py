"""Measure the time of an optimiser's step on one thread, for two of the networks that `maskfold init` selects.

    python benchmarks/optimizers.py

The script prints processor seconds per step, and their ratio to the seconds of torch's AdamW. timm's Muon computes in
bfloat16, which is slow on processors without bfloat16 instructions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import timm.optim
import torch
from monai.networks.nets import UNet
from torch import nn

from competition.models.muon import Muon

REPEATS = 5
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "3D U-Net, medium": lambda: UNet(3, 1, 3, [32, 64, 128, 256], [2, 2, 2], num_res_units=2, norm="instance"),
    "EfficientNet-Lite0 U-Net": lambda: smp.Unet(
        "tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=[128, 64, 48, 32, 16], classes=3
    ),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "competition.models.muon.Muon": Muon,
    "timm.optim.Muon": timm.optim.Muon,
}


def seconds_per_step(optimizer: torch.optim.Optimizer) -> float:
    """Return the mean processor seconds of a step; a first step, which allocates the optimiser's state, is excluded."""
    optimizer.step()
    start = time.process_time()
    for _ in range(REPEATS):
        optimizer.step()
    return (time.process_time() - start) / REPEATS


def main() -> None:
    """Print a table with the seconds per step of each optimiser for each network."""
    torch.set_num_threads(1)
    print("| network | optimizer | seconds | of AdamW |\n|---|---|---|---|")
    for network_name, build in NETWORKS.items():
        network, base = build(), 0.0
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        for name, make in OPTIMIZERS.items():
            seconds = seconds_per_step(make(network.parameters(), lr=1e-3))
            base = base or seconds
            print(f"| {network_name} | {name} | {seconds:.3f} | {seconds / base:.1f} |", flush=True)


if __name__ == "__main__":
    main()
