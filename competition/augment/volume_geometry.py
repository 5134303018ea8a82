"""Flip, rotate, zoom and deform batches of volumes (and 2.5D patches)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from competition.augment.presets import TRANSFORMS, Range
from competition.augment.volume_transform import GeometricTransform, Patch

KNOTS = 7  # control points along each axis of an elastic field; a cubic B-spline with 7 control points has 4 spans


@dataclass(frozen=True)
class Flip(GeometricTransform):
    """Flip each axis with a probability of one half, without resampling.

    Attributes:
        axes: axes that may be flipped, from `augment.flip`.
    """

    axes: tuple[int, ...] = ()

    def sample(self, rng: np.random.Generator, patch: Patch) -> tuple[int, ...] | None:
        """Draw the axes to flip; return None if no axis is flipped."""
        return tuple(axis for axis in self.axes if rng.random() < 0.5) or None

    def apply(self, image: Tensor, mask: Tensor, drawn: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Flip the images and masks in place, and return them; see `GeometricTransform.apply` for the arguments."""
        for axes, *tensors in zip(drawn, image, mask, strict=True):
            for sample in tensors:
                sample.copy_(sample.flip([axis + 1 for axis in axes]))
        return image, mask


class Displacement(NamedTuple):
    """Map positions in the resampled patch to positions in the original patch.

    Attributes:
        matrix: (d, d) float64. The matrix maps an offset from the centre of the resampled patch to an offset from the
            centre of the original patch, in voxels. None is the identity.
        knots: (d, KNOTS, …, KNOTS) float32, the displacement of each control point in voxels. None means that there is
            no elastic deformation.
    """

    matrix: np.ndarray | None = None
    knots: np.ndarray | None = None


@TRANSFORMS.register("warp")
@dataclass(frozen=True)
class Warp(GeometricTransform):
    """Rotate and zoom a patch, and deform it elastically, all in one resampling.

    At positions outside of the patch, the nearest voxel of image and mask is repeated.

    Attributes:
        rotate, zoom, elastic: probability of each of the three transforms.
        degrees: maximum rotation about each axis, in either direction.
        zoom_factor: smallest and largest factor by which the content is enlarged.
        elastic_size: maximum standard deviation of a control point's displacement, as a fraction of the patch's
            extent.
    """

    rotate: float = 0
    degrees: float = 0
    zoom: float = 0
    zoom_factor: Range = (1, 1)
    elastic: float = 0
    elastic_size: float = 0

    def sample(self, rng: np.random.Generator, patch: Patch) -> Displacement | None:
        """Draw the matrix and the control points; return None if the patch is not warped."""
        drawn = Displacement(self._sample_matrix(rng, patch.spacing), self._sample_knots(rng, patch.shape))
        return None if drawn.matrix is None and drawn.knots is None else drawn

    def _sample_matrix(self, rng: np.random.Generator, spacing: Sequence[float]) -> np.ndarray | None:
        """Draw rotation and zoom, and return them as one matrix in voxels; return None if neither is applied.

        The matrix is S⁻¹ R S / zoom, where R is the rotation, and S is the diagonal matrix of the voxel sizes. If the
        voxels are anisotropic, a rotation in units of voxels (or in the [-1, 1] of `grid_sample`) would shear the
        content.
        """
        dims = len(spacing)
        planes = list(itertools.combinations(range(dims), 2))  # one angle in 2D, three in 3D
        rotates = rng.random() < self.rotate
        angles = np.radians(rng.uniform(-self.degrees, self.degrees, len(planes)))
        zooms, low, high = rng.random() < self.zoom, *np.log(self.zoom_factor)
        factor = float(np.exp(rng.uniform(low, high)))
        if not rotates and not zooms:
            return None
        matrix = np.eye(dims)
        for (first, second), angle in zip(planes, angles if rotates else (), strict=False):
            plane = np.eye(dims)
            plane[[first, second], [first, second]] = np.cos(angle)
            plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ plane
        size = np.asarray(spacing, np.float64)
        return matrix * size[None, :] / size[:, None] / (factor if zooms else 1.0)

    def _sample_knots(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray | None:
        """Draw the displacement of each control point in voxels; return None if no elastic deformation is applied."""
        applies, strength = rng.random() < self.elastic, rng.uniform(0.2, 1.0) * self.elastic_size
        field = rng.standard_normal((len(shape), *[KNOTS] * len(shape)), np.float32)
        if not applies:
            return None
        extents = np.asarray(shape, np.float32).reshape(-1, *[1] * len(shape))
        return field * np.float32(strength) * extents

    def apply(self, image: Tensor, mask: Tensor, drawn: Sequence[Displacement]) -> tuple[Tensor, Tensor]:
        """Resample the images with linear interpolation, and the masks with nearest-neighbour interpolation.

        See `GeometricTransform.apply` for the arguments.
        """
        grid = sampling_grid(drawn, image.shape[2:], image.device)
        labels = F.grid_sample(mask.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return image, labels.to(torch.uint8)


def sampling_grid(drawn: Sequence[Displacement], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the sampling grid (B, *spatial, d) float32 for `grid_sample(…, align_corners=False)`.

    Let p be the offset of a voxel from the patch's centre, in voxels. The value of this voxel is read at the offset
    M p + u(p), where M is the matrix and u is the elastic field. The offsets are divided by the extents of the axes
    only after this sum. So patches with axes of different extents rotate without shear.

    Args:
        drawn: the displacement of each sample.
        shape: shape of the patch in voxels.
        device: device of the grid.
    """
    dims = len(shape)
    matrices = np.stack([np.eye(dims) if one.matrix is None else one.matrix for one in drawn])
    lengths = np.asarray(shape, np.float64)
    # Voxel v = p + (length - 1) / 2 is (2 v + 1) / length - 1 = 2 p / length in grid_sample's coordinates.
    weights = torch.tensor(matrices * 2 / lengths[:, None], dtype=torch.float32, device=device)
    offsets = [torch.arange(length, device=device) - (length - 1) / 2 for length in shape]
    grid = torch.empty((len(drawn), *shape, dims), device=device)
    for row in range(dims):
        target = grid[..., dims - 1 - row]  # grid_sample orders axes from the last to the first
        for column, offset in enumerate(offsets):
            offset_shape = [1] * dims
            offset_shape[column] = -1
            term = weights[:, row, column].view(-1, *[1] * dims) * offset.view(1, *offset_shape)
            if column == 0:
                target.copy_(term.expand_as(target))
            else:
                target += term
    elastic = {index: one.knots for index, one in enumerate(drawn) if one.knots is not None}
    if elastic:
        # Scale and reorder the few control points instead of the dense field.
        knots = np.stack(list(elastic.values())) * (2 / lengths).reshape(-1, *[1] * dims)
        field = elastic_field(torch.tensor(knots[:, ::-1].copy(), dtype=torch.float32, device=device), shape)
        grid[torch.tensor(list(elastic), device=device)] += field
    return grid


def elastic_field(knots: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate the displacement of each voxel from the displacements of the control points.

    This is a free-form deformation by cubic B-splines (Rueckert et al., IEEE Transactions on Medical Imaging 18(8),
    1999). Each axis needs one small matrix product. The last product also moves the components of the displacement to
    the last axis, as a sampling grid requires.

    Args:
        knots: (B, d, KNOTS, …, KNOTS), displacements of the control points.
        shape: shape of the patch in voxels.

    Returns:
        (B, *shape, d), displacements of the voxels.
    """
    batch, dims = knots.shape[:2]
    field, rows = knots.movedim(1, -1), batch
    for length in shape[:-1]:
        field = spline_weights(length, knots.device) @ field.reshape(rows, KNOTS, -1)
        rows *= length
    last = torch.kron(spline_weights(shape[-1], knots.device), torch.eye(dims, device=knots.device))
    return (field.reshape(rows, -1) @ last.T).view(batch, *shape, dims)


def spline_weights(length: int, device: torch.device) -> Tensor:
    """Return the weight of each control point at each voxel of an axis: (length, KNOTS) float32, cubic B-splines."""
    spans = KNOTS - 3
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / length * spans
    span = position.floor().clamp_(max=spans - 1).long()
    t = position - span
    basis = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    weights = torch.zeros((length, KNOTS), dtype=torch.float64)
    weights.scatter_(1, span[:, None] + torch.arange(4), basis)
    return weights.float().to(device)
