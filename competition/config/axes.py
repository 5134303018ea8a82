"""Determine the order of the array axes in each file format, and convert one order to another.

NIfTI, NRRD and MHA store a volume as (X, Y, Z): column, row, slice. PNG, JPEG and TIFF store (Y, X), row and column,
and stacks of them are (Y, X, Z). A competition has one order: the order of `train.images`. Files with another order
are transposed when they are read. NPY and NPZ files do not store their order: `array_axes` sets it; without
`array_axes` they are assumed to have the order of the case's other files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from competition.config.competition import Competition
from competition.rle_text import RleFormat

# Endings of file names, and of patterns such as `{id}.nii*`.
NIFTI = re.compile(r"\.(nii(\.gz|\.?\*.*)?|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)  # also formats with the same order
NUMPY = re.compile(r"\.np[yz*]\*?$", re.IGNORECASE)
PICTURE = re.compile(r"\.(png|jpe?g|jp2|j2k|bmp|gif|tiff?|tif\*|jp\*g?)$", re.IGNORECASE)


def file_axes(comp: Competition, files: str | Sequence[str]) -> str | None:
    """Return the order of the spatial axes of a file, or of a stack of slices.

    Args:
        comp: the competition; its `dimensions` and `array_axes` are read.
        files: a path or pattern, or the paths of a stack's slices.

    Returns:
        The order, such as `xyz`, `yxz` or `yx`; None for an NPY or NPZ file without `array_axes`, and for a file with
        an unknown extension.
    """
    is_stack = not isinstance(files, str)
    name = files if isinstance(files, str) else files[0]
    if NUMPY.search(name):
        axes = comp.array_axes
    else:
        axes = "xyz" if NIFTI.search(name) else "yxz" if PICTURE.search(name) else None
    if axes is None:
        return None
    plane = axes.replace("z", "")
    if comp.dimensions == 2:
        return plane
    return plane + "z" if is_stack else axes


def competition_axes(comp: Competition) -> str | None:
    """Return the order of axes of a competition's arrays, from the file format of its training images.

    Return None if the format does not determine the order.
    """
    images = comp.train.images
    pattern = images if isinstance(images, str) else next(iter(images.values()))
    return file_axes(comp, [pattern] if "{z}" in pattern else pattern)


def case_axes(comp: Competition, files: str | Sequence[str]) -> str | None:
    """Return the order of axes of a case's arrays, or None if the order is unknown.

    The result is the competition's order, if it is known. Otherwise, it is the order of the case's first channel.

    Args:
        comp: the competition.
        files: path of the first channel, or paths of its slices.
    """
    return competition_axes(comp) or file_axes(comp, files)


def permutation(source: str | None, target: str | None) -> tuple[int, ...] | None:
    """Return the argument of `numpy.transpose` that converts an array from the order `source` to the order `target`.

    Return None if the orders are equal, if one is unknown, or if they have different axes.
    """
    if source is None or target is None or source == target or sorted(source) != sorted(target):
        return None
    return tuple(source.index(axis) for axis in target)


def plausible_array_axes(comp: Competition, partner: str, is_stack: bool) -> list[str]:
    """Return the possible orders of axes of an NPY file whose case also has a file of another format.

    Args:
        comp: the competition.
        partner: name of the case's file in the other format.
        is_stack: whether the NPY files are the slices of a stack.
    """
    orders = ["xyz", "yxz", "zyx"] if NIFTI.search(partner) else ["yxz", "zyx"]
    if is_stack:
        return [axes for axes in orders if axes.endswith("z")]
    return orders if comp.dimensions == 3 else list(dict.fromkeys(axes.replace("z", "") for axes in orders))


def rle_counts_in_pictures(comp: Competition) -> bool:
    """Return whether run lengths number pixels in (row, column) order, although arrays have the order (X, Y).

    Two conditions must hold. First, the training images are 2D images or slices in the order (X, Y), such as NIfTI.
    Second, a table of run lengths replaces the mask files, or the masks or test images are pictures (such as PNG). If
    all files are NIfTI, run lengths use the order of the arrays.
    """
    axes = competition_axes(comp)
    if axes is None or not axes.startswith("xy") or not (comp.dimensions == 2 or "{z}" in str(comp.train.images)):
        return False
    patterns: list[str] = []
    for part in (comp.train.masks, comp.test.images if comp.test else None):
        patterns += [] if part is None else [part] if isinstance(part, str) else part.values()
    return comp.train.rle is not None or any(PICTURE.search(pattern) for pattern in patterns)


def rle_format_of_arrays(comp: Competition, fmt: RleFormat) -> RleFormat:
    """Convert a host's RLE format, which numbers the pixels of pictures, to a format for the arrays of `comp`.

    Pictures have the order (row, column). If the arrays have the order (X, Y), `row` and `column` are exchanged in the
    format. So if an array is encoded in the returned format, the run lengths equal those of the picture that is encoded
    in the host's format.
    """
    if fmt.container != "pairs" or not rle_counts_in_pictures(comp):
        return fmt
    return replace(fmt, order="row" if fmt.order == "column" else "column")
