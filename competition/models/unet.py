"""Define a plain U-Net with blocks of two convolutions, max-pooling by a factor of 2, and skip connections.

The network follows Ronneberger, Fischer, Brox (2015), U-Net: Convolutional Networks for Biomedical Image Segmentation,
https://arxiv.org/abs/1505.04597. As in the paper, only the bottleneck has dropout. Unlike in the paper, the network
has normalisation layers, and its convolutions are padded, so that the output is as large as the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn


class UNet(nn.Module):
    """Segment 2D images or volumes with a plain U-Net.

    Every edge of a patch must have at least 2 ** (len(channels) - 1) pixels: 16 if `channels` has five values. If a
    level halves an edge of odd length, the decoder pads one pixel. Edges that are multiples of
    2 ** (len(channels) - 1) need no padding.

    Args:
        spatial_dims: number of spatial axes, 2 or 3.
        in_channels: number of channels of the image.
        out_channels: number of channels of the logits.
        channels: number of channels of each level, from the highest resolution to the bottleneck. Five values mean
            four levels and a bottleneck.
        dropout: fraction of the bottleneck's values that are set to 0 in training.
        norm: kind of normalisation, `batch` or `instance`. Use `instance` for small batches.

    Raises:
        ValueError: an argument is invalid.

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
            raise ValueError(f"spatial_dims: found {spatial_dims}, expected 2 or 3")
        if len(channels) < 2:
            raise ValueError(f"channels: found {list(channels)}, expected two values or more")
        if norm not in ("batch", "instance"):
            raise ValueError(f"norm: found {norm}, expected batch or instance")
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        transposed = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        norms = {"batch": (nn.BatchNorm2d, nn.BatchNorm3d), "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d)}
        normalisation = norms[norm][spatial_dims - 2]

        def block(inputs: int, width: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            # No bias, because the normalisation removes the mean and has its own shift.
            for in_width in (inputs, width):
                layers += [
                    convolution(in_width, width, 3, padding=1, bias=False),
                    normalisation(width, affine=True),
                    nn.ReLU(inplace=True),
                ]
            return nn.Sequential(*layers)

        widths, deeper_widths = list(channels[:-1]), list(channels[1:])
        self.down = nn.ModuleList(block(inputs, width) for inputs, width in zip([in_channels, *widths], widths))
        self.halve = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.bottleneck = nn.Sequential(block(widths[-1], channels[-1]), nn.Dropout(dropout))
        self.enlarge = nn.ModuleList(
            transposed(deeper, width, 2, stride=2) for width, deeper in zip(widths, deeper_widths)
        )
        self.up = nn.ModuleList(block(2 * width, width) for width in widths)
        self.logits = convolution(channels[0], out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial)."""
        skips = []
        for block in self.down:
            image = block(image)
            skips.append(image)
            image = self.halve(image)
        image = self.bottleneck(image)
        for enlarge, block, skip in zip(reversed(self.enlarge), reversed(self.up), reversed(skips)):
            image = block(torch.cat([skip, _pad_like(enlarge(image), skip)], dim=1))
        return self.logits(image)


def _pad_like(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Append one row of zeros to each axis of `image` that is one pixel shorter than in `like`.

    Such an axis lost a pixel when its odd length was halved.
    """
    missing = [target - size for target, size in zip(like.shape[2:], image.shape[2:])]
    return nn.functional.pad(image, [pad for count in reversed(missing) for pad in (0, count)])
