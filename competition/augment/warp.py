"""Geometry of a batch: flips, and rotation, zoom and elastic displacement in one sampling grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from competition.augment.draws import KNOTS, Draw


def flip(batch: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Flips each sample of (B, C, *spatial) along its own axes; the batch is changed in place.

    A flip is a copy and not a part of the grid: it stays exact.
    """
    for sample, drawn in zip(batch, draws, strict=True):
        if drawn.flips:
            sample.copy_(sample.flip([axis + 1 for axis in drawn.flips]))
    return batch


def warp(image: Tensor, mask: Tensor, draws: Sequence[Draw]) -> None:
    """Samples image and mask anew, in place; samples without rotation, zoom and elastic field stay bit-identical.

    Outside of the patch the nearest voxel is repeated, in the mask as well.

    Args:
        image: (B, C, *spatial) float32, sampled linearly.
        mask: (B, M, *spatial) uint8, nearest neighbour.
        draws: one per sample.
    """
    chosen = [index for index, drawn in enumerate(draws) if drawn.warps]
    if not chosen:
        return
    grid = sampling_grid([draws[index] for index in chosen], image.shape[2:], image.device)
    rows = torch.tensor(chosen, device=image.device)
    image[rows] = F.grid_sample(image[rows], grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(mask[rows].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    mask[rows] = labels.to(torch.uint8)


def sampling_grid(draws: Sequence[Draw], shape: Sequence[int], device: torch.device) -> Tensor:
    """The grid for `grid_sample(…, align_corners=False)`: (B, *spatial, d) float32.

    A voxel at offset p from the patch's centre is taken from the offset M p + u(p), all in voxels; only the end result
    is normalised, axis by axis, so that patches of any extent are turned without shear.
    """
    dims = len(shape)
    matrices = np.stack([np.eye(dims) if drawn.matrix is None else drawn.matrix for drawn in draws])
    lengths = np.asarray(shape, np.float64)
    # Voxel v = p + (length - 1) / 2 is (2 v + 1) / length - 1 = 2 p / length in grid_sample's coordinates.
    weights = torch.tensor(matrices * 2 / lengths[:, None], dtype=torch.float32, device=device)
    offsets = [torch.arange(length, device=device) - (length - 1) / 2 for length in shape]
    grid = torch.empty((len(draws), *shape, dims), device=device)
    for row in range(dims):
        target = grid[..., dims - 1 - row]  # grid_sample counts axes from the last
        for column, offset in enumerate(offsets):
            along = [1] * dims
            along[column] = -1
            term = weights[:, row, column].view(-1, *[1] * dims) * offset.view(1, *along)
            if column == 0:
                target.copy_(term.expand_as(target))
            else:
                target += term
    bent = {index: drawn.knots for index, drawn in enumerate(draws) if drawn.knots is not None}
    if bent:
        # Scaled and in grid_sample's order of axes while there are few numbers.
        knots = np.stack(list(bent.values())) * (2 / lengths).reshape(-1, *[1] * dims)
        field = elastic_field(torch.tensor(knots[:, ::-1].copy(), dtype=torch.float32, device=device), shape)
        grid[torch.tensor(list(bent), device=device)] += field
    return grid


def elastic_field(knots: Tensor, shape: Sequence[int]) -> Tensor:
    """The displacement at every voxel, (B, *shape, d), from that of the control points (B, d, KNOTS, …, KNOTS).

    Free-form deformation by cubic B-splines: Rueckert et al., IEEE Transactions on Medical Imaging 18(8), 1999. One small
    matrix product per axis; the last one leaves the components interleaved, as a sampling grid wants them.
    """
    batch, dims = knots.shape[:2]
    field, lead = knots.movedim(1, -1), batch
    for length in shape[:-1]:
        field = spline(length, knots.device) @ field.reshape(lead, KNOTS, -1)
        lead *= length
    last = torch.kron(spline(shape[-1], knots.device), torch.eye(dims, device=knots.device))
    return (field.reshape(lead, -1) @ last.T).view(batch, *shape, dims)


def spline(length: int, device: torch.device) -> Tensor:
    """Cubic B-spline weights of the control points at each voxel of an axis: (length, KNOTS)."""
    spans = KNOTS - 3
    place = (torch.arange(length, dtype=torch.float64) + 0.5) / length * spans
    span = place.floor().clamp_(max=spans - 1).long()
    t = place - span
    basis = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    weights = torch.zeros((length, KNOTS), dtype=torch.float64)
    weights.scatter_(1, span[:, None] + torch.arange(4), basis)
    return weights.float().to(device)
