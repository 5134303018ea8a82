"""The target of a loss, in the form that each kind of loss expects."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

IGNORE = 255
CERTAIN = 20.0  # a logit: exp(-2 * 20) is nothing beside 1 in float32, and no exponential overflows


class Truth:
    """One mask in its forms, each made once and only if asked for.

    Args:
        mask: (B, M, *spatial) uint8; exclusive: one channel of class numbers, 0 the background; overlapping: one
            channel of 0 and 1 per class. 255 is ignored, if `ignore`.
        channels: channels C of the network's output.
        exclusive: whether classes exclude each other.
        ignore: whether the mask may hold 255.
    """

    def __init__(self, mask: Tensor, channels: int, exclusive: bool, ignore: bool) -> None:
        self.channels, self.exclusive = channels, exclusive
        self.ignored = mask == IGNORE if ignore else None  # (B, M, *spatial) bool
        self.mask = mask.masked_fill(self.ignored, 0) if self.ignored is not None else mask

    @cached_property
    def numbers(self) -> Tensor:
        """(B, 1, *spatial) int64: class numbers; exclusive classes only."""
        return self.mask.long()

    @property
    def flat(self) -> Tensor:
        """(B, *spatial) int64: class numbers; exclusive classes only."""
        return self.numbers[:, 0]

    @cached_property
    def planes(self) -> Tensor:
        """(B, C, *spatial) float32: 1 where the class is, else 0."""
        if not self.exclusive:
            return self.mask.float()
        shape = (self.mask.shape[0], self.channels, *self.mask.shape[2:])
        return torch.zeros(shape, device=self.mask.device).scatter_(1, self.numbers, 1.0)

    @cached_property
    def native(self) -> Tensor:
        """(B, 1, *spatial) int64 class numbers, or (B, K, *spatial) float32 of overlapping classes."""
        return self.numbers if self.exclusive else self.planes

    def settle(self, logits: Tensor) -> Tensor:
        """Logits (B, C, *spatial) that do not depend on the network where the truth is ignored.

        There they say background with certainty, and the forms above say background too, so that every loss, whatever
        its formula, has a gradient of exactly 0 there, and next to no value. Averages over pixels count them as right.
        """
        if self.ignored is None:
            return logits
        certain = torch.full((1, self.channels, *[1] * (logits.ndim - 2)), -CERTAIN, device=logits.device)
        if self.exclusive:
            certain[:, 0] = CERTAIN
        return torch.where(self.ignored, certain, logits)
