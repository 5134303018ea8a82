"""Convert the target of a loss to the form that each loss library expects."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

IGNORE_INDEX = 255
CERTAIN_LOGIT = 20.0  # a logit: exp(-2 * 20) is negligible relative to 1 in float32, and exp(20) does not overflow


class LossTarget:
    """Hold the target mask in every form that a loss may need; each form is computed when it is first used.

    Args:
        mask: (B, M, *spatial) uint8. If classes exclude each other, the mask has one channel of class indices, with 0
            for the background. If classes overlap, it has one channel of 0 and 1 per class. If `ignore` is set, pixels
            of 255 are ignored.
        channels: number of channels C of the network's output.
        exclusive: whether classes exclude each other.
        ignore: whether the mask may contain 255.
    """

    def __init__(self, mask: Tensor, channels: int, exclusive: bool, ignore: bool) -> None:
        self.channels, self.exclusive = channels, exclusive
        self.ignored = mask == IGNORE_INDEX if ignore else None  # (B, M, *spatial) bool
        self.mask = mask.masked_fill(self.ignored, 0) if self.ignored is not None else mask

    @cached_property
    def class_indices(self) -> Tensor:
        """Class indices (B, 1, *spatial) int64, only for exclusive classes."""
        return self.mask.long()

    @property
    def class_indices_flat(self) -> Tensor:
        """Class indices (B, *spatial) int64 without a channel axis, only for exclusive classes."""
        return self.class_indices[:, 0]

    @cached_property
    def binary_channels(self) -> Tensor:
        """One channel per output channel of the network, (B, C, *spatial) float32: 1 at the class's pixels, else 0."""
        if not self.exclusive:
            return self.mask.float()
        shape = (self.mask.shape[0], self.channels, *self.mask.shape[2:])
        return torch.zeros(shape, device=self.mask.device).scatter_(1, self.class_indices, 1.0)

    @cached_property
    def native(self) -> Tensor:
        """The target in the form of the competition's labels.

        If classes are exclusive, the target is class indices (B, 1, *spatial) int64. If classes overlap, the target is
        one channel of 0 and 1 per class, (B, K, *spatial) float32.
        """
        return self.class_indices if self.exclusive else self.binary_channels

    def mask_ignored(self, logits: Tensor) -> Tensor:
        """Replace logits (B, C, *spatial) at ignored pixels by constants that predict the background with certainty.

        The target is also background at these pixels. So every loss has a gradient of exactly 0 and a value of almost
        0 there. If a loss averages over pixels, the ignored pixels lower the average, like pixels that are predicted
        correctly.
        """
        if self.ignored is None:
            return logits
        certain = torch.full((1, self.channels, *[1] * (logits.ndim - 2)), -CERTAIN_LOGIT, device=logits.device)
        if self.exclusive:
            certain[:, 0] = CERTAIN_LOGIT
        return torch.where(self.ignored, certain, logits)
