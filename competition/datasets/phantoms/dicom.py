"""Write synthetic volumes and masks as DICOM: a series with one file per slice, and DICOM-SEG.

Coordinates are DICOM's (x towards the patient's left, y towards the back, z towards the head; mm). Files follow DICOM
PS3.3 A.3 (CT Image); UIDs are derived from the seed and the patient's id, so that a seed gives the same files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.datasets.phantoms.shapes import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID


CT_STORAGE, INTERCEPT = "1.2.840.10008.5.1.4.1.1.2", -1024


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """Describe a grid of slices.

    Attributes:
        shape: number of slices, rows and columns.
        spacing: distance between slices, rows and columns in mm.
        origin: (3,) centre of the first pixel of the first slice, mm.
        axes: (3, 3), one unit vector per row: the directions in which the slice, row and column numbers increase.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: Array
    axes: Array

    @classmethod
    def centred_at(
        cls,
        centre: Array,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        turn: tuple[float, float] = (0.0, 0.0),
    ) -> SliceGrid:
        """Return a grid with its middle at `centre`.

        The grid is rotated about the patient's z axis by `turn[0]` degrees, then about the x axis by `turn[1]` degrees.
        """
        (ca, sa), (cb, sb) = ((np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))) for a in turn)
        about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
        axes = (about_x @ about_z).T[[2, 1, 0]] + 0.0
        middle = (np.array(shape) - 1) / 2 * spacing
        origin = np.round(centre - middle @ axes, 4)
        return cls(shape, spacing, origin, axes)

    def position(self, index: int) -> Array:
        """Return the centre (3,) of the first pixel of a slice, mm."""
        return self.origin + index * self.spacing[0] * self.axes[0]

    def points(self) -> tuple[Array, Array, Array]:
        """Return the x, y and z coordinates of all voxels in mm, as three arrays that broadcast to `shape`."""
        numbers = np.meshgrid(
            *(np.arange(n) * step for n, step in zip(self.shape, self.spacing, strict=True)), indexing="ij", sparse=True
        )
        x, y, z = (
            np.asarray(self.origin[axis] + sum(self.axes[k, axis] * numbers[k] for k in range(3) if self.axes[k, axis]))
            for axis in range(3)
        )
        return x, y, z

    def to_nifti(self, array: Array) -> tuple[Array, Array]:
        """Return an array (slices, rows, columns) as (columns, rows, slices), and its (4, 4) affine to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = (self.axes * np.array(self.spacing)[:, None])[::-1].T
        affine[:3, 3] = self.origin
        return np.ascontiguousarray(array.transpose(2, 1, 0)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@dataclass
class Study:
    """Write the DICOM files of one patient's study into a folder.

    Attributes:
        folder: folder of the files of all series.
        patient: the patient's id.
        rng: random generator for file names and dates.
        seed: seed of the phantoms; UIDs are derived from it and the patient's id.
        series_count: number of series written so far.
    """

    folder: Path
    patient: str
    rng: np.random.Generator
    seed: int
    date: str = ""
    series_count: int = 0
    used_names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.date = f"{self.rng.integers(2015, 2024)}{self.rng.integers(1, 13):02d}{self.rng.integers(1, 29):02d}"

    def uid(self, *parts: object) -> UID:
        """Return a UID that depends only on the seed, the patient and the arguments."""
        from pydicom.uid import generate_uid

        return generate_uid(entropy_srcs=["maskfold phantom", str(self.seed), self.patient, *map(str, parts)])

    def new_dataset(self, sop_class: str, modality: str, series: str, description: str, instance: int) -> Dataset:
        """Return a new DICOM object with the attributes that all objects of a study share."""
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian

        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = UID(sop_class)
        ds.file_meta.MediaStorageSOPInstanceUID = self.uid(series, instance)
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, self.uid(series, instance)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.uid("study"), self.uid(series)
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = self.uid("frame"), ""
        ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = self.date
        ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "101500"
        ds.PatientID, ds.PatientName = self.patient, f"Phantom^{self.patient.rpartition('-')[2]}"
        ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName, ds.AccessionNumber = "", "O", "", ""
        ds.StudyID, ds.StudyDescription = "1", "CT ABDOMEN"
        ds.Modality, ds.SeriesDescription, ds.InstanceNumber = modality, description, instance
        ds.Manufacturer, ds.ManufacturerModelName = "Maskfold", "Phantom"
        ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
        return ds

    def save(self, ds: Dataset) -> None:
        """Write a DICOM object under a random file name."""
        from pydicom import dcmwrite

        name = ""
        while not name or name in self.used_names:
            name = f"{self.rng.integers(16**8):08X}"
        self.used_names.add(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        dcmwrite(self.folder / name, ds, enforce_file_format=True)


def write_series(
    study: Study,
    name: str,
    description: str,
    grid: SliceGrid,
    array: Array,
    kind: tuple[str, ...],
    backwards: bool = False,
    intercept: int = INTERCEPT,
) -> None:
    """Write a volume with one file per slice; the file names do not show the order of the slices.

    Args:
        study: the study to which the series is added.
        name: name of the series, unique in the study.
        description: SeriesDescription.
        grid: grid of the volume.
        array: (slices, rows, columns), Hounsfield units or label values.
        kind: value of ImageType.
        backwards: whether instances are numbered from the last slice to the first.
        intercept: value of RescaleIntercept.
    """
    study.series_count += 1
    number = study.series_count
    stored = np.clip(np.rint(array) - intercept, -32768, 32767).astype("<i2")
    count = len(stored)
    for index in study.rng.permutation(count).tolist():
        instance = count - index if backwards else index + 1
        ds = study.new_dataset(CT_STORAGE, "CT", name, description, instance)
        ds.SeriesNumber, ds.AcquisitionNumber, ds.ImageType = number, 1, list(kind)
        ds.BodyPartExamined, ds.PatientPosition, ds.KVP = "ABDOMEN", "HFS", "120"
        ds.SliceThickness = decimal_string(grid.spacing[0])
        ds.ImageOrientationPatient = [decimal_string(v) for v in (*grid.axes[2], *grid.axes[1])]
        ds.ImagePositionPatient = [decimal_string(v) for v in grid.position(index)]
        ds.PixelSpacing = [decimal_string(grid.spacing[1]), decimal_string(grid.spacing[2])]
        ds.Rows, ds.Columns = stored.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(intercept), "1", "HU" if intercept else "US"
        ds.WindowCenter, ds.WindowWidth = ("40", "400") if intercept else ("0.5", "1")
        ds.add_new("PixelData", "OW", stored[index].tobytes())
        study.save(ds)


def decimal_string(value: float) -> Any:
    """Return a number as a DICOM decimal string of at most 16 characters."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)


# DICOM-SEG

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


def write_segmentation(
    study: Study, source: str, grid: SliceGrid, mask: Array, backwards: bool, all_frames: bool
) -> None:
    """Write a DICOM-SEG with one segment, `Spleen`, on the grid of a series.

    Args:
        study: the study to which the file is added.
        source: name of the series on which the mask was drawn.
        grid: grid of the series `source`.
        mask: (slices, rows, columns), 0 or not 0.
        backwards: whether the instances of `source` are numbered from the last slice to the first, as in
            `write_series`; the frames have the same order.
        all_frames: whether slices without the segment also have a frame.

    Raises:
        ValueError: the mask is empty.
    """
    from pydicom.pixels.utils import pack_bits

    frames = [k for k in range(len(mask)) if all_frames or mask[k].any()]
    if not mask.any():
        raise ValueError(f"the mask of {study.patient} is empty")
    if backwards:
        frames.reverse()
    study.series_count += 1
    ds = study.new_dataset(SEGMENTATION_STORAGE, "SEG", "seg", "Segmentation", 1)
    ds.SeriesNumber, ds.ImageType = study.series_count, ["DERIVED", "PRIMARY"]
    _describe(study, ds)
    instances = {k: study.uid(source, len(mask) - k if backwards else k + 1) for k in range(len(mask))}
    references = [
        _item(ReferencedSOPClassUID=CT_STORAGE, ReferencedSOPInstanceUID=instances[k]) for k in sorted(frames)
    ]
    ds.ReferencedSeriesSequence = [_item(SeriesInstanceUID=study.uid(source), ReferencedInstanceSequence=references)]
    ds.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=[
                _item(ImageOrientationPatient=[decimal_string(v) for v in (*grid.axes[2], *grid.axes[1])])
            ],
            PixelMeasuresSequence=[
                _item(
                    SliceThickness=decimal_string(grid.spacing[0]),
                    SpacingBetweenSlices=decimal_string(grid.spacing[0]),
                    PixelSpacing=[decimal_string(grid.spacing[1]), decimal_string(grid.spacing[2])],
                )
            ],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        _frame_item(number, grid, k, instances[k]) for number, k in enumerate(frames, 1)
    ]
    ds.NumberOfFrames, (ds.Rows, ds.Columns) = len(frames), mask.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.add_new("PixelData", "OB", pack_bits((mask[frames] != 0).astype(np.uint8), pad=True))
    study.save(ds)


def _describe(study: Study, ds: Dataset) -> None:
    """Add the attributes that describe the segment, the creator and the frame dimensions of a DICOM-SEG."""
    ds.SegmentationType, ds.LossyImageCompression = "BINARY", "00"
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "SEGMENTATION", "", ""
    ds.SegmentSequence = [
        _item(
            SegmentNumber=1,
            SegmentLabel="Spleen",
            SegmentAlgorithmType="MANUAL",
            SegmentedPropertyCategoryCodeSequence=[_code_item("123037004", "Anatomical Structure")],
            SegmentedPropertyTypeCodeSequence=[_code_item("78961009", "Spleen")],
        )
    ]
    organization = study.uid("dimensions")
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    ds.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=0x0062000B,
            FunctionalGroupPointer=0x0062000A,
            DimensionDescriptionLabel="Segment Number",
        ),
        _item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=0x00200032,
            FunctionalGroupPointer=0x00209113,
            DimensionDescriptionLabel="Image Position",
        ),
    ]


def _frame_item(number: int, grid: SliceGrid, index: int, instance: str) -> Dataset:
    source = _item(
        ReferencedSOPClassUID=CT_STORAGE,
        ReferencedSOPInstanceUID=instance,
        PurposeOfReferenceCodeSequence=[_code_item("121322", "Source image for image processing operation", "DCM")],
    )
    return _item(
        FrameContentSequence=[_item(DimensionIndexValues=[1, number])],
        PlanePositionSequence=[_item(ImagePositionPatient=[decimal_string(v) for v in grid.position(index)])],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=1)],
        DerivationImageSequence=[
            _item(SourceImageSequence=[source], DerivationCodeSequence=[_code_item("113076", "Segmentation", "DCM")])
        ],
    )


def _code_item(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**elements: object) -> Dataset:
    """Return an item of a DICOM sequence with the attributes `elements`."""
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
