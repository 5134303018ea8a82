"""A plain U-Net: blocks of two convolutions, halved on the way down, doubled on the way up, joined at each level.

After Ronneberger, Fischer, Brox (2015), U-Net: Convolutional Networks for Biomedical Image Segmentation,
https://arxiv.org/abs/1505.04597, with padded convolutions (so that the output is as large as the input), normalisation,
and dropout in the one place where that paper has it: at the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn


class UNet(nn.Module):
    """A U-Net of pictures or volumes.

    Any patch goes through whose edges are at least 2 ** (len(channels) - 1) pixels, 16 with five levels: where an odd
    edge was halved, the way up is padded by a pixel. Multiples of that number waste nothing.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        channels: width of each level, the bottleneck last: five numbers are four levels and a bottleneck.
        dropout: share of the bottleneck's values that are set to 0 in training.
        norm: batch, or instance for small batches.

    Raises:
        ValueError: an argument makes no sense.

    Example:
        >>> UNet(2, 3, 1, channels=(8, 16, 32))(torch.zeros(1, 3, 33, 50)).shape
        torch.Size([1, 1, 33, 50])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: float = 0.3,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims}, and images have 2 or 3 axes")
        if len(channels) < 2 or norm not in ("batch", "instance"):
            raise ValueError(
                f"channels {list(channels)} need two numbers or more, and norm {norm} is batch or instance"
            )
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        transposed = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        normal = {"batch": (nn.BatchNorm2d, nn.BatchNorm3d), "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d)}[norm][
            spatial_dims - 2
        ]

        def block(inputs: int, width: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for before in (inputs, width):  # no bias: the normalisation takes means away, and has its own shift
                layers += [
                    convolution(before, width, 3, padding=1, bias=False),
                    normal(width, affine=True),
                    nn.ReLU(inplace=True),
                ]
            return nn.Sequential(*layers)

        above, below = list(channels[:-1]), list(channels[1:])
        self.down = nn.ModuleList(block(inputs, width) for inputs, width in zip([in_channels, *above], channels[:-1]))
        self.halve = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.bottleneck = nn.Sequential(block(above[-1], channels[-1]), nn.Dropout(dropout))
        self.enlarge = nn.ModuleList(transposed(wide, width, 2, stride=2) for width, wide in zip(above, below))
        self.up = nn.ModuleList(block(2 * width, width) for width in above)
        self.logits = convolution(channels[0], out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *spatial) of images (B, in_channels, *spatial)."""
        joins = []
        for block in self.down:
            image = block(image)
            joins.append(image)
            image = self.halve(image)
        image = self.bottleneck(image)
        for enlarge, block, join in zip(reversed(self.enlarge), reversed(self.up), reversed(joins)):
            image = block(torch.cat([join, _as_large(enlarge(image), join)], dim=1))
        return self.logits(image)


def _as_large(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The image with a row of zeros at the end of each axis that lost one when an odd edge was halved."""
    short = [wanted - found for wanted, found in zip(like.shape[2:], image.shape[2:])]
    return nn.functional.pad(image, [number for missing in reversed(short) for number in (0, missing)])
