"""Functions that write DICOM files for tests: series of single slices, and segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR_ENHANCED, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.66.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = tuple(np.linalg.qr(np.array([[0.9, 0.2], [0.3, 0.8], [-0.2, 0.5]]))[0].T.reshape(-1))


def uid(*parts: object) -> str:
    """Return a DICOM UID that is determined by the arguments."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def volume(shape: tuple[int, int, int] = (6, 5, 4), seed: int = 0) -> np.ndarray:
    """Return a volume (X, Y, Z) int16 of random stored values, in which all slices differ."""
    return np.random.default_rng(seed).integers(-500, 1500, shape).astype(np.int16)


def positions(
    count: int,
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, ...] = (-40.0, 12.5, -300.0),
    step: float = 2.5,
) -> np.ndarray:
    """Return the positions of equidistant slices: (count, 3) in mm, in LPS coordinates.

    Args:
        count: number of slices.
        orientation: ImageOrientationPatient; the slices are stacked along its normal.
        origin: position of the first slice.
        step: distance of neighbouring slices in mm.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(origin) + np.arange(count)[:, None] * step * normal


def header(patient: str = "P1", study: str = "study", series: str = "series", **changes: Any) -> Dataset:
    """Return a CT header without geometry and pixels.

    Args:
        patient: PatientID.
        study: text from which the UIDs of study and frame of reference are derived.
        series: text from which the UID of the series is derived.
        **changes: values of DICOM keywords; None deletes a keyword.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet, dataset.SOPClassUID, dataset.Modality = "ISO_IR 192", CT, "CT"
    dataset.PatientID, dataset.PatientName = patient, "Roe^Jane"
    dataset.StudyDate, dataset.PatientBirthDate = "20190407", "19501231"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(patient, study), uid(patient, study, series)
    dataset.FrameOfReferenceUID = uid(patient, study, "frame")
    dataset.SeriesNumber, dataset.SeriesDescription, dataset.ImageType = 1, "Abdomen", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    change(dataset, changes)
    return dataset


def change(dataset: Dataset, changes: dict[str, Any]) -> None:
    """Set DICOM keywords of a dataset; the value None deletes a keyword."""
    for keyword, value in changes.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)


def save(dataset: Dataset, path: Path) -> Path:
    """Write a dataset as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def set_pixels(dataset: Dataset, array: np.ndarray) -> None:
    """Set an integer array (…, rows, columns) as the pixels of a dataset."""
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(array.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(array).tobytes()


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    places: np.ndarray | None = None,
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (0.7, 0.8),
    rescale: list[tuple[float, float]] | None = None,
    backwards: bool = False,
    prefix: str = "IM",
    tag: str = "",
    **changes: Any,
) -> list[Path]:
    """Write a series of slices, one file per slice.

    Args:
        folder: folder for the files.
        array: stored values (X, Y, Z).
        places: positions (Z, 3) of the slices in mm; equidistant by default.
        orientation: ImageOrientationPatient.
        spacing: PixelSpacing: distance of the rows, then of the columns, in mm.
        rescale: slope and intercept of each slice; by default, the slices have no such tags.
        backwards: whether file names and instance numbers decrease along the positions.
        prefix: beginning of the file names.
        tag: part of the SOPInstanceUIDs, to make them differ between two series with the same SeriesInstanceUID.
        **changes: see `header`.

    Returns:
        The files, in the order of the slices.
    """
    count = array.shape[2]
    places = positions(count, orientation) if places is None else places
    paths = []
    for z in range(count):
        dataset = header(**changes)
        number = count - z if backwards else z + 1
        dataset.SOPInstanceUID = uid(dataset.SeriesInstanceUID, tag, z)
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in places[z]]
        dataset.ImageOrientationPatient = [f"{value:.12g}" for value in orientation]
        dataset.PixelSpacing = [str(value) for value in spacing]
        dataset.SliceThickness = "2.5"
        if rescale is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = (str(value) for value in rescale[z])
        change(dataset, {key: value for key, value in changes.items() if key not in ("patient", "study", "series")})
        set_pixels(dataset, array[:, :, z].T)
        paths.append(save(dataset, folder / f"{prefix}{number:04d}"))
    return paths


def item(**values: Any) -> Dataset:
    """Return an item of a DICOM sequence with these keywords."""
    dataset = Dataset()
    change(dataset, values)
    return dataset


def frame_item(
    place: np.ndarray, orientation: tuple[float, ...], spacing: tuple[float, float], segment: int | None = None
) -> Dataset:
    """Return the functional groups of one frame of a multi-frame file.

    Args:
        place: position (3,) of the frame in mm.
        orientation: ImageOrientationPatient.
        spacing: PixelSpacing.
        segment: number of the segment; None if the frame belongs to no segment.
    """
    group = item(
        PlanePositionSequence=Sequence([item(ImagePositionPatient=[f"{value:.10g}" for value in place])]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[f"{value:.12g}" for value in orientation])]),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[str(value) for value in spacing], SliceThickness="2.5")]),
    )
    if segment is not None:
        group.SegmentIdentificationSequence = Sequence([item(ReferencedSegmentNumber=segment)])
    return group


def write_segmentation(
    path: Path,
    frames: list[tuple[int, np.ndarray, np.ndarray]],
    labels: dict[int, str],
    *,
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (0.7, 0.8),
    image_series: str | None = None,
    fractional: int = 0,
    **changes: Any,
) -> Path:
    """Write a DICOM segmentation.

    Args:
        path: the file.
        frames: segment number, position (3,) in mm, and pixels (rows, columns) of each frame. The pixels are 0 and 1
            for a binary segmentation, otherwise 0 to `fractional`.
        labels: label of each segment, by its number.
        orientation: ImageOrientationPatient of all frames.
        spacing: PixelSpacing of all frames.
        image_series: SeriesInstanceUID of the referenced images; None for no reference.
        fractional: MaximumFractionalValue; 0 to write a binary segmentation.
        **changes: see `header`.
    """
    dataset = header(
        **{
            "series": "seg",
            "SOPClassUID": SEG,
            "Modality": "SEG",
            "SeriesNumber": 9,
            "SeriesDescription": "Segmentation",
            **changes,
        }
    )
    dataset.SOPInstanceUID = uid(dataset.SeriesInstanceUID, path.name)
    dataset.SegmentSequence = Sequence(
        [
            item(SegmentNumber=number, SegmentLabel=label, SegmentAlgorithmType="MANUAL")
            for number, label in labels.items()
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [frame_item(place, orientation, spacing, number) for number, place, _ in frames]
    )
    if image_series:
        dataset.ReferencedSeriesSequence = Sequence([item(SeriesInstanceUID=image_series)])
    pixels = np.stack([array for _, _, array in frames]).astype(np.uint8)
    set_pixels(dataset, pixels)
    dataset.NumberOfFrames = len(frames)
    dataset.SegmentationType = "FRACTIONAL" if fractional else "BINARY"
    if fractional:
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", fractional
    else:
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        dataset.PixelData = pack_bits(pixels.reshape(-1))
    return save(dataset, path)


def expected_affine(places: np.ndarray, orientation: tuple[float, ...], spacing: tuple[float, float]) -> np.ndarray:
    """Return the affine (4, 4) that maps (column, row, slice) to RAS coordinates in mm.

    It is computed from the slices' positions by equation C.7.6.2.1-1 of the DICOM standard.
    """
    affine = np.eye(4)
    affine[:3, 0] = np.array(orientation[:3]) * spacing[1]
    affine[:3, 1] = np.array(orientation[3:]) * spacing[0]
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    affine[:2] *= -1
    return affine
