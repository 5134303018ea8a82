"""Read each family of file formats: PNG, JPEG, JPEG 2000, BMP and GIF; NIfTI; NumPy; TIFF; NRRD and MHA.

Each family has a Python module with two functions: one reads the header of an image file, the other checks the declared
size and then reads the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from competition.data.formats.arrays import numpy_header, numpy_pixels
from competition.data.formats.itk import itk_header, itk_pixels
from competition.data.formats.nifti import nifti_header, nifti_pixels
from competition.data.formats.raster import raster_header, raster_pixels
from competition.data.formats.tiff import tiff_header, tiff_pixels
from competition.data.image_types import Header


class FileFormat(NamedTuple):
    """Hold the two functions that read the header and the pixels of files of one family of formats."""

    header: Callable[..., Header]
    pixels: Callable[..., Any]


READERS = {
    "raster": FileFormat(raster_header, raster_pixels),
    "tiff": FileFormat(tiff_header, tiff_pixels),
    "nifti": FileFormat(nifti_header, nifti_pixels),
    "itk": FileFormat(itk_header, itk_pixels),
    "numpy": FileFormat(numpy_header, numpy_pixels),
}
