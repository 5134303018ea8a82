"""A function that makes experiments, and toy networks whose predictions can be computed without windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from competition.config.experiment import Experiment


def experiment(
    dimensions: int = 3,
    size: tuple[int, ...] = (8, 8, 8),
    comp: dict[str, Any] | None = None,
    slices: int | None = None,
    flip: Any = True,
    preset: str = "none",
    **inference: Any,
) -> Experiment:
    """Return a minimal experiment of two classes.

    Args:
        dimensions: number of spatial dimensions.
        size: patch size.
        comp: keys of the competition to add or replace.
        slices: number of slices that a 2.5D network gets; None for a 2D or 3D network.
        flip: `augment.flip`.
        preset: `augment.preset`.
        **inference: keys of the section `inference`.
    """
    return Experiment.model_validate(
        {
            "competition": {
                "name": "tiny",
                "root": "data",
                "dimensions": dimensions,
                "classes": ["a", "b"],
                "train": {"images": "i/{id}", "masks": "m/{id}"},
                **(comp or {}),
            },
            "patch": {"size": list(size), "slices": slices},
            "augment": {"flip": flip, "preset": preset},
            "model": {"target": "x.Y"},
            "loss": {"target": "x.Z"},
            "inference": inference,
        }
    )


class Pointwise(nn.Module):
    """A 1×1 convolution: the prediction of a voxel depends only on this voxel, not on the position of the window."""

    def __init__(self, channels: int, outputs: int, dims: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, outputs, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch)


class Local(nn.Module):
    """A 3×3 convolution without symmetry: predictions depend on the edges of windows and on flips of the image."""

    def __init__(self, channels: int, outputs: int, dims: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, outputs, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return 3 * self.layer(batch)
