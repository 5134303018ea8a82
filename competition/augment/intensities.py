"""Intensity changes of a batch, each sample by its own draw; samples that drew none stay bit-identical."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from competition.augment.draws import Draw
from competition.augment.separable import along_axes, coarse, gauss

LEAST = 1e-7  # of a divisor


def change_intensities(image: Tensor, draws: Sequence[Draw]) -> None:
    """Changes (B, C, *spatial) float32 in place, in the order in which a scanner does: optics, noise, amplifier.

    Channels of a sample share their parameters; brightness apart, each channel keeps its own range or moments.
    """
    _soften(image, draws)
    for sample, drawn in zip(image, draws, strict=True):
        if drawn.noise:
            # Of the device's own generator, as copying noise to a GPU would cost more than the training step allows: the
            # same seed gives other noise on another kind of device, all else is equal.
            generator = torch.Generator(image.device).manual_seed(drawn.noise_seed)
            noise = torch.randn(sample.shape, generator=generator, device=image.device)
            sample.add_(noise, alpha=drawn.noise)
    _each(image, [drawn.brightness for drawn in draws], lambda values, factor: values * factor)
    _each(image, [drawn.contrast for drawn in draws], stretch)
    _each(image, [1.0 if drawn.inverted else drawn.gamma for drawn in draws], bend)
    _each(
        image, [drawn.gamma if drawn.inverted else 1.0 for drawn in draws], lambda values, power: -bend(-values, power)
    )


def stretch(values: Tensor, factor: Tensor) -> Tensor:
    """Contrast: (B, C, n) away from or towards each channel's mean, within the channel's former range."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.lerp(values.mean(-1, keepdim=True), values, factor).clamp_(low, high)


def bend(values: Tensor, exponent: Tensor) -> Tensor:
    """Gamma: a power of each channel of (B, C, n) scaled to [0, 1].

    Mean and standard deviation are restored, as batchgenerators' `retain_stats` does.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    mean = values.mean(-1, keepdim=True)
    bent = values.sub(low).div_((high - low).clamp_min_(LEAST)).pow_(exponent)
    bent.sub_(bent.mean(-1, keepdim=True))
    # Norms of centred values: torch.std takes 50 times as long on a CPU.
    before = torch.linalg.vector_norm(values - mean, dim=-1, keepdim=True)
    after = torch.linalg.vector_norm(bent, dim=-1, keepdim=True)
    return bent.mul_(before / after.clamp_min(LEAST)).add_(mean)


def _each(image: Tensor, values: list[float], change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Applies `change(samples, value of each)` to the samples whose value is not 1."""
    chosen = [index for index, value in enumerate(values) if value != 1.0]
    if not chosen:
        return
    rows = torch.tensor(chosen, device=image.device)
    strength = torch.tensor([values[index] for index in chosen], dtype=torch.float32, device=image.device)
    samples = image[rows]
    image[rows] = change(samples.flatten(2), strength.view(-1, 1, 1)).view_as(samples)


def _soften(image: Tensor, draws: Sequence[Draw]) -> None:
    """Blur and low resolution, both linear and separable: one product of matrices per axis."""
    chosen = [index for index, drawn in enumerate(draws) if drawn.blur > 0 or drawn.coarse < 1]
    if not chosen:
        return
    rows = torch.tensor(chosen, device=image.device)
    matrices = [
        torch.tensor(np.stack([_softener(length, draws[index]) for index in chosen]), device=image.device)
        for length in image.shape[2:]
    ]
    image[rows] = along_axes(image[rows], matrices)


def _softener(length: int, drawn: Draw) -> np.ndarray:
    """Blur, then low resolution, as one matrix (length, length) float32."""
    if drawn.coarse == 1.0:
        return gauss(length, drawn.blur).astype(np.float32)
    lowered = coarse(length, drawn.coarse)
    return (lowered @ gauss(length, drawn.blur) if drawn.blur else lowered).astype(np.float32)
