"""NIfTI files that appear whole or not at all, and with the same bytes for the same values."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from competition.data.dicom.grid import Grid
from competition.data.files import sweep, sync_folder, temporary, whole_file

LEVEL = 4  # of gzip: twice as fast as the usual 9, and hardly larger on noisy images


def write_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Writes a volume.

    Args:
        path: name.nii.gz; its folder is made.
        array: (X, Y, Z) int16, float32 or uint8.
        grid: gives sform and qform, both coded as scanner coordinates, in mm.

    Raises:
        FullDisk: there is no room for it.
    """
    import nibabel

    image = nibabel.Nifti1Image(array, grid.affine)
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    beside = temporary(path)
    try:
        # Neither a name nor a time in gzip's header: the same values give the same bytes.
        with whole_file(beside, array.nbytes) as stream, gzip.GzipFile("", "wb", LEVEL, stream, mtime=0) as packed:
            image.to_stream(packed)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
