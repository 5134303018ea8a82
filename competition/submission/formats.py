"""Write a label file as PNG, TIFF, NIfTI or MHA, then read it back and check that no label has changed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.axes import permutation
from competition.config.competition import Competition
from competition.data.formats.itk import pixel_dtype
from competition.data.formats.tiff import open_tiff
from competition.data.readers import EXTENSIONS, extension_of, read_header, read_labels, row_axes
from competition.errors import MaskfoldError
from competition.io import atomic_write
from competition.submission.label_files import nifti_labels

Labels = NDArray[Any]
ITK_HINT = (
    "Install SimpleITK: pip install SimpleITK. Or set submission.files to another format, for example {id}.nii.gz."
)
AFFINE_TOLERANCE = 1e-4  # mm
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


class FileHeader(NamedTuple):
    """Hold the shape of a label file, in the file format's order of axes, and the name of the dtype, e.g. `uint8`."""

    shape: tuple[int, ...]
    dtype: str


def axes_of_format(path: Path, dimensions: int) -> str:
    """Return the order of axes of a file format: `xyz` for NIfTI and MHA, `yxz` for PNG and TIFF; without z in 2D.

    Args:
        path: path of a file, whose extension determines the format.
        dimensions: number of spatial axes, 2 or 3.
    """
    axes = "xyz" if extension_of(path.name) in (".nii.gz", ".nii", ".mha") else "yxz"
    return axes if dimensions == 3 else axes.replace("z", "")


def check_writer(name: str) -> None:
    """Check that the package for writing a file with this name is installed.

    Raises:
        MaskfoldError: the package is missing (status 2).
    """
    if name.lower().endswith(".mha"):
        try:
            import SimpleITK  # noqa: F401
        except ImportError as error:
            raise MaskfoldError(
                "submission.files: MHA files require SimpleITK, which is not installed.", ITK_HINT, status=2
            ) from error


def write_labels(path: Path, labels: Labels, source: Path, row: Any, comp: Competition) -> None:
    """Write a label file with the geometry of the case's image; then read it and compare values and geometry.

    Args:
        path: path of the file; its folder is created.
        labels: (*spatial) integers, in the case's order of axes.
        source: an image file of the case, whose geometry (e.g. affine, spacing) is used.
        row: row of the case table.
        comp: the competition.

    Raises:
        MaskfoldError: a required package is missing, the file's format cannot hold the values, or the values or
            geometry that are read back differ.
    """
    check_writer(path.name)
    extension, dims = extension_of(path.name), comp.dimensions
    order = permutation(row_axes(comp, row), axes_of_format(path, dims))
    stored = labels if order is None else labels.transpose(order)
    stored = stored if stored.flags.c_contiguous else large_arrays.copy(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = None
    if extension == ".png":
        _write_png(path, stored)
    elif extension in (".tif", ".tiff"):
        _write_tiff(path, stored, source)
    elif extension == ".mha":
        _write_mha(path, stored, source, row, order)
    else:
        image = nifti_labels(stored, source, row, order)
        affine = image.affine
        plain = image.to_bytes()
        content = gzip.compress(plain, 6, mtime=0) if extension == ".nii.gz" else plain
        atomic_write(path, lambda file: file.write(content))
    _check_written(path, stored, affine, dims)


def _check_written(path: Path, expected: Labels, affine: Any, dims: int) -> None:
    """Read a label file and compare it with the array that was written.

    Args:
        path: path of the file.
        expected: the array, in the order of axes of the format.
        affine: 4×4 affine that the file must have; None if the format stores none.
        dims: number of spatial axes.

    Raises:
        MaskfoldError: the values or the affine differ.
    """
    found, found_affine = (_read_mha(path), None) if extension_of(path.name) == ".mha" else read_labels(path, dims)
    same_affine = affine is None or (
        found_affine is not None and np.allclose(affine, found_affine, atol=AFFINE_TOLERANCE)
    )
    if not same_affine or not large_arrays.are_equal(found, expected):
        raise MaskfoldError(
            f"The label file {path.name} was written, but reading it gives other values or another affine.",
            f"Please report this error with the shape {expected.shape} and the type {expected.dtype}.",
        )


def _write_png(path: Path, labels: Labels) -> None:
    import cv2

    if labels.dtype.name not in ("uint8", "uint16"):
        raise MaskfoldError(
            f"PNG files can hold only uint8 or uint16, but {path.name} has {labels.dtype}.",
            "Set submission.files to a name that ends in .tif.",
        )
    atomic_write(path, lambda file: file.write(cv2.imencode(".png", labels)[1].tobytes()))


def _write_tiff(path: Path, labels: Labels, source: Path) -> None:
    """Write a TIFF file: a picture (H, W), or a volume (H, W, Z) as Z pages.

    If the image of the case is a TIFF file too, its resolution is copied.
    """
    from tifffile import TiffWriter, imwrite

    pages = labels if labels.ndim == 2 else np.moveaxis(labels, -1, 0)
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack"}
    if extension_of(source.name) in (".tif", ".tiff"):
        from tifffile import TiffFile

        with TiffFile(source) as file:
            tags: Any = file.pages[0].tags  # type: ignore[union-attr]
            if all(name in tags for name in ("XResolution", "YResolution", "ResolutionUnit")):
                (x, x_unit), (y, y_unit) = tags["XResolution"].value, tags["YResolution"].value
                if x_unit and y_unit:
                    options |= {
                        "resolution": (x / x_unit, y / y_unit),
                        "resolutionunit": int(tags["ResolutionUnit"].value),
                    }
    # `imwrite` opens the file itself, because it needs a seekable file. The file need not be written atomically,
    # because the caller renames the complete folder.
    if labels.ndim == 2 or labels.shape[1] > 1:
        imwrite(path, pages, **options)
        return
    # Given a volume that is one voxel wide, `imwrite` would write all pages as the rows of one page. So write each page
    # by itself, and state the shape of the volume in the description of the first page, as `imwrite` does.
    with TiffWriter(path) as writer:
        for number, page in enumerate(pages):
            description = json.dumps({"shape": pages.shape}) if number == 0 else None
            writer.write(page, metadata=None, description=description, **options)


def _write_mha(path: Path, labels: Labels, source: Path, row: Any, order: tuple[int, ...] | None) -> None:
    """Write a MetaImage file (MHA) with the origin, spacing and direction of the case's image.

    Args:
        path: path of the file.
        labels: (X, Y, Z) or (X, Y) integers.
        source: an image file of the case.
        row: row of the case table, whose spacing is used if the image has no geometry of its own.
        order: permutation from the case's order of axes to that of the format; None if they are the same.
    """
    import SimpleITK

    image = SimpleITK.GetImageFromArray(labels.T)  # (Z, Y, X)
    if EXTENSIONS.get(extension_of(source.name)) == "itk":
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(source))
        reader.ReadImageInformation()
        # The file may have another axis: the only slice of a picture, or the channels of a volume.
        axes, stored = labels.ndim, reader.GetDimension()
        image.SetOrigin(reader.GetOrigin()[:axes])
        image.SetSpacing(reader.GetSpacing()[:axes])
        direction = np.reshape(reader.GetDirection(), (stored, stored))[:axes, :axes]
        if abs(np.linalg.det(direction)) > 1e-6:
            image.SetDirection(direction.ravel().tolist())
    elif labels.ndim == 3 and source.name.lower().endswith((".nii", ".nii.gz")):
        set_geometry(image, read_header(source, 3).affine)
    else:
        spacing = json.loads(row.spacing)
        image.SetSpacing(tuple(spacing if order is None else [spacing[axis] for axis in order]))
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def set_geometry(image: Any, affine: Any) -> None:
    """Set the origin, spacing and direction of a SimpleITK volume from an affine in NIfTI's coordinates (RAS, mm).

    If the affine is None, nothing is set.
    """
    if affine is None:
        return
    matrix = np.asarray(affine, np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = RAS_TO_LPS[:, None] * matrix[:3, :3] / spacing
    image.SetOrigin(tuple(RAS_TO_LPS * matrix[:3, 3]))
    image.SetSpacing(tuple(spacing))
    image.SetDirection(tuple(direction.reshape(-1)))


def _read_mha(path: Path) -> Labels:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))).T


def read_file_header(path: Path, dimensions: int) -> FileHeader:
    """Return the shape and dtype of a label file; the shape has the format's order of axes.

    Raises:
        MaskfoldError: the file cannot be read, or it has several channels.
    """
    check_writer(path.name)
    header = read_header(path, dimensions, labels=True)
    if header.channels != 1:
        raise MaskfoldError(
            f"{path.name} has {header.channels} channels, expected 1, because it is a label file.",
            "Set submission.sample to label files with one channel.",
        )
    return FileHeader(tuple(header.shape), _stored_type(path) or header.dtype)


def _stored_type(path: Path) -> str | None:
    """Return the name of the dtype that an MHA, TIFF or NIfTI file stores; None for other formats."""
    extension = extension_of(path.name)
    if extension == ".mha":
        return pixel_dtype(path).name
    if extension in (".tif", ".tiff"):
        with open_tiff(path) as file:
            dtype = np.dtype(file.series[0].dtype)
        return "uint8" if dtype.kind == "b" else dtype.newbyteorder("=").name
    if extension in (".nii.gz", ".nii"):
        import nibabel

        image: Any = nibabel.load(path)
        return str(image.get_data_dtype().newbyteorder("=").name)
    return None
