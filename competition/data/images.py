"""The image of a case: channels side by side, slices one behind the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.readers import Picture, read_image
from competition.data.rows import cell


def load_image(comp: Competition, row: Any) -> Picture:
    """Reads the image of a case.

    Args:
        comp: what the host gave.
        row: a row of the case table.

    Returns:
        The picture: (C, *spatial), the channels of all its files in the YAML's order; slices make (C, H, W, Z).

    Raises:
        MaskfoldError: a file cannot be read, holds NaN or infinite values, or its size is not that of the others.
    """
    parts = [_read(comp, files) for files in json.loads(cell(row, "images")).values()]
    sizes = {part.array.shape[1:] for part in parts}
    if len(sizes) > 1:
        raise MaskfoldError(f"The channels of the case {cell(row, 'id')} have the sizes "
                            f"{', '.join('×'.join(map(str, size)) for size in sorted(sizes))}.",
                            "Bring them to one grid, or leave the case out with competition.on_bad_case=skip.")
    if len(parts) == 1:
        return parts[0]
    array = np.concatenate([part.array for part in parts])
    if array.dtype == np.float64:  # 32-bit integers beside floats
        array = array.astype(np.float32)
    return Picture(array, parts[0].spacing, parts[0].affine)


def _read(comp: Competition, files: str | list[str]) -> Picture:
    root = Path(comp.root)
    if isinstance(files, str):
        return read_image(root / files, comp.dimensions)
    slices = [read_image(root / path, 2).array for path in files]
    for path, one in zip(files, slices, strict=True):
        if one.shape != slices[0].shape:
            raise MaskfoldError(f"The slices {root / files[0]} and {root / path} differ in size.",
                                "Bring all slices of a case to one size, or set competition.on_bad_case=skip.")
    return Picture(np.stack(slices, axis=-1), (1.0, 1.0, 1.0))
