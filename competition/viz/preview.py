"""Read images for figures: reduce a large TIFF while reading it, and read all other images as for training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.axes import file_axes, permutation
from competition.config.competition import Competition
from competition.data.content.unchanged import unchanged_files
from competition.data.formats.tiff import PALETTE, WHITE_IS_ZERO, check_tiff_size, lacks_decoder, open_tiff
from competition.data.image_types import Image, convert_decoder_errors
from competition.data.readers import EXTENSIONS, exif_orientation, extension_of, get_column, load_image, row_axes
from competition.viz.reduction import reduce_image, reduction_step

LARGE_FILE = 2**28  # minimum size of a TIFF's pixels in bytes for which strips or tiles are read one by one


def load_picture(comp: Competition, row: Any) -> Image:
    """Read the image of a case to draw it.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        The result of `load_image`. If the image is a single large 2D TIFF, the result is instead the average over
        squares whose edge length is `reduction_step`, as float32, so that the whole image is never in memory.

    Raises:
        MaskfoldError: the image cannot be read; see `load_image`.
    """
    channels = list(json.loads(get_column(row, "images")).values())
    if comp.dimensions == 2 and len(channels) == 1 and isinstance(channels[0], str):
        path = Path(comp.root) / channels[0]
        is_in_order = permutation(file_axes(comp, channels[0]), row_axes(comp, row)) is None
        if is_in_order and EXTENSIONS.get(extension_of(path.name)) == "tiff":
            with convert_decoder_errors(path):
                array = _read_reduced(path, comp.applies_exif)
            if array is not None:
                spacing = tuple(json.loads(get_column(row, "spacing")))
                return Image(array, spacing, has_spacing=True)
    return load_image(comp, row)


def load_unchanged_picture(comp: Competition, row: Any) -> Image:
    """Read the image of a case with `load_picture`, and check that its files have not changed since the run began.

    Raises:
        ChangedDataError: a file has changed.
        MaskfoldError: the image cannot be read; see `load_image`.
    """
    with unchanged_files(comp, row, truth=False):
        return load_picture(comp, row)


def _read_reduced(path: Path, exif: bool) -> NDArray[np.float32] | None:
    """Read the channels (C, rows, columns) of a large TIFF, reduced for drawing.

    If the TIFF is small, or this function does not support its format, return None.

    Args:
        path: the TIFF file.
        exif: whether images are rotated by their EXIF orientation. If so, a TIFF that has to be rotated is not
            supported.
    """
    import tifffile

    with open_tiff(path) as file:
        series = file.series[0]
        page, step = series.keyframe, reduction_step(series.shape[:2])
        is_plain = len(series.pages) == 1 and series.axes in ("YX", "YXS") and np.dtype(series.dtype).kind in "uif"
        if not is_plain or page.photometric in (WHITE_IS_ZERO, PALETTE) or (exif and exif_orientation(path) != 1):
            return None
        if step == 1 or math.prod(series.shape) * np.dtype(series.dtype).itemsize < LARGE_FILE:
            return None
        check_tiff_size(path, series)
        if page.is_memmappable:
            array = np.atleast_3d(tifffile.memmap(path, mode="r", series=0))
            return np.asarray(reduce_image(np.moveaxis(array, -1, 0), step), np.float32)
        try:
            return _sum_segments(page, step)
        except ValueError as error:  # tifffile lacks the decoder, but `load_image` has other decoders
            if not lacks_decoder(page, error):
                raise
            return None


def _sum_segments(page: Any, step: int) -> NDArray[np.float32]:
    """Average a TIFF page over squares of `step` × `step` pixels, with one strip or tile in memory at a time."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    rows, columns = np.arange(0, height, step), np.arange(0, width, step)
    sums = np.zeros((len(rows), len(columns), samples), np.float32)
    for segment, (_, _, top, left, _), _ in page.segments(maxworkers=1):
        if segment is None:  # the pixels of a missing tile are 0
            continue
        part = segment[0, : height - top, : width - left]
        for axis, first in ((0, top), (1, left)):
            starts = np.maximum(np.arange(first // step, -(-(first + part.shape[axis]) // step)) * step - first, 0)
            part = np.add.reduceat(part, starts, axis=axis, dtype=np.float32)
        sums[top // step : top // step + part.shape[0], left // step : left // step + part.shape[1]] += part
    sizes = np.outer(np.diff([*rows, height]), np.diff([*columns, width])).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(sums / sizes[..., None], -1, 0))
