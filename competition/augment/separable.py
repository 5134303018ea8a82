"""Linear filters that work on one axis after the other: one small matrix per sample and axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def along_axes(batch: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Applies a matrix of its own to each spatial axis of each sample.

    As matrix products, blurring, lowering the resolution and interpolating a spline are the same code, borders need no
    padding, and each sample may have its own strength.

    Args:
        batch: (B, C, *spatial).
        matrices: for each spatial axis (B, length of the result, length).

    Returns:
        (B, C, *lengths of the result).
    """
    for axis, matrix in enumerate(matrices, start=2):
        moved = batch.movedim(axis, 1)
        product = torch.bmm(matrix, moved.reshape(len(batch), moved.shape[1], -1))
        batch = product.view(len(batch), -1, *moved.shape[2:]).movedim(1, axis)
    return batch


def gauss(length: int, sigma: float) -> np.ndarray:
    """Blurring as a matrix (length, length), float64; rows sum to 1, at borders by the voxels that exist."""
    if sigma <= 0 or length == 1:
        return np.eye(length)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(1, keepdims=True)


def coarse(length: int, share: float) -> np.ndarray:
    """Low resolution as a matrix (length, length), float64: nearest voxels of a coarser grid, linearly interpolated."""
    fewer = max(1, round(length * share))
    if fewer >= length:
        return np.eye(length)
    kept = ((np.arange(fewer) + 0.5) * length / fewer).astype(np.int64)
    place = np.clip((np.arange(length) + 0.5) * fewer / length - 0.5, 0, fewer - 1)
    low = np.floor(place).astype(np.int64)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length), kept[low]), 1 - (place - low))
    np.add.at(matrix, (np.arange(length), kept[np.minimum(low + 1, fewer - 1)]), place - low)
    return matrix
