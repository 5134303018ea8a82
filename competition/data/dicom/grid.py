"""The grid of a volume in the patient, and what of another grid falls on its voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from competition.data.dicom.refused import Refused

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's x and y point left and back, NIfTI's right and front
NEAR = 0.1  # of a voxel: further off is another grid


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels in the patient.

    Attributes:
        affine: 4×4 float64, voxel (x, y, z) to RAS mm.
        shape: voxels along columns (X), rows (Y) and slices (Z).
    """

    affine: np.ndarray
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} voxels of {'×'.join(f'{step:.4g}' for step in self.spacing)} mm"


def affine_of(position: np.ndarray, orientation: np.ndarray, spacing: tuple[float, float], step: float) -> np.ndarray:
    """The affine of slices one upon the other (PS3.3 C.7.6.2.1.1, then LPS to RAS as dcm2niix does).

    Args:
        position: (3,) mm, LPS: ImagePositionPatient of the first slice.
        orientation: (6,) ImageOrientationPatient.
        spacing: PixelSpacing: mm between rows, mm between columns.
        step: mm from slice to slice along the normal.

    Returns:
        4×4 float64: (column, row, slice) to RAS mm.
    """
    row, column = orientation[:3], orientation[3:]
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = normal_of(orientation) * step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def normal_of(orientation: np.ndarray) -> np.ndarray:
    """The unit vector (3,) along which slices follow one another."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def check_orientation(orientation: np.ndarray, name: str) -> None:
    """Raises Refused unless both cosines have length 1 and a right angle between them."""
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-3:
        raise Refused(f"{name} has an orientation that is none ({', '.join(f'{one:g}' for one in orientation)})")


def onto(grid: Grid, affine: np.ndarray, points: np.ndarray, extent: tuple[int, int, int]) -> np.ndarray:
    """Finds the voxels of a grid that points of another grid are.

    The other grid may run along other axes, in other directions, and cover another part of the patient; its voxels must
    lie on this one's.

    Args:
        grid: the image's.
        affine: 4×4, the other grid's voxels to RAS mm.
        points: (N, 3) int, voxels of the other grid.
        extent: the other grid's shape; an axis of one voxel has no direction of its own.

    Returns:
        (N, 3) int64, voxels of `grid`.

    Raises:
        Refused: the grids do not agree to a tenth of a voxel, or a point lies outside of `grid`.
    """
    exact = np.linalg.inv(grid.affine) @ affine
    turn = np.round(exact[:3, :3]).astype(np.int64)
    moved = np.round(exact[:3, 3]).astype(np.int64)
    used = [axis for axis in range(3) if extent[axis] > 1]
    for axis in range(3):
        if axis not in used:
            turn[:, axis] = 0
    if any(np.abs(turn[:, axis]).sum() != 1 for axis in used) or np.abs(turn).sum(axis=1).max(initial=0) > 1:
        raise Refused("its voxels have another size or direction than the image's")
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in extent], indexing="ij")).reshape(3, -1)
    off = np.abs(exact[:3, :3] @ ends + exact[:3, 3:] - turn @ ends - moved[:, None]).max()
    if not off <= NEAR:
        raise Refused(f"its voxels lie up to {off:.2g} voxels beside the image's")
    found = points @ turn.T + moved
    outside = int(((found < 0) | (found >= np.array(grid.shape))).any(axis=1).sum())
    if outside:
        raise Refused(f"{outside:,} of its labelled voxels lie outside of the image")
    return found
