"""Writing a drawn volume as a DICOM series: one file for each slice, as a scanner's archive exports it.

Coordinates are DICOM's (x towards the patient's left, y towards the back, z towards the head; mm). What is written follows
DICOM PS3.3 A.3 (CT Image), with UIDs made from the phantom's name, so that a seed gives the same files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.data.phantoms.shapes import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

CT, INTERCEPT = "1.2.840.10008.5.1.4.1.1.2", -1024


@dataclass(frozen=True, eq=False)
class Stack:
    """A grid of slices.

    Attributes:
        shape: slices, rows, columns.
        spacing: mm between slices, rows and columns.
        origin: (3,) mm, the centre of the first slice's first pixel.
        axes: (3, 3), in rows: where slices, row numbers and column numbers grow to, unit vectors.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: Array
    axes: Array

    @classmethod
    def around(cls, centre: Array, shape: tuple[int, int, int], spacing: tuple[float, float, float],
               turn: tuple[float, float] = (0.0, 0.0)) -> Stack:
        """A grid with its middle at `centre`, turned about the patient's z and then x axis (degrees)."""
        (ca, sa), (cb, sb) = ((np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))) for a in turn)
        about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
        axes = (about_x @ about_z).T[[2, 1, 0]] + 0.0
        middle = (np.array(shape) - 1) / 2 * spacing
        origin = np.round(centre - middle @ axes, 4)
        return cls(shape, spacing, origin, axes)

    def position(self, index: int) -> Array:
        """(3,) mm, the centre of a slice's first pixel."""
        return self.origin + index * self.spacing[0] * self.axes[0]

    def points(self) -> tuple[Array, Array, Array]:
        """x, y and z of all voxels, three arrays that broadcast to `shape`."""
        numbers = np.meshgrid(*(np.arange(n) * step for n, step in zip(self.shape, self.spacing, strict=True)),
                              indexing="ij", sparse=True)
        x, y, z = (np.asarray(self.origin[axis] + sum(self.axes[k, axis] * numbers[k] for k in range(3) if self.axes[k, axis]))
                   for axis in range(3))
        return x, y, z

    def nifti(self, array: Array) -> tuple[Array, Array]:
        """The array (slices, rows, columns) as (columns, rows, slices), and its (4, 4) affine to NIfTI's mm."""
        affine = np.eye(4)
        affine[:3, :3] = (self.axes * np.array(self.spacing)[:, None])[::-1].T
        affine[:3, 3] = self.origin
        return np.ascontiguousarray(array.transpose(2, 1, 0)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@dataclass
class Study:
    """One study of one patient, in its folder.

    Attributes:
        folder: all its files, of all series.
        patient: the patient's id.
        rng: names of files, dates.
        seed: of the phantoms; identifiers are made from it and the patient's id.
    """

    folder: Path
    patient: str
    rng: np.random.Generator
    seed: int
    day: str = ""
    series: int = 0
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.day = f"{self.rng.integers(2015, 2024)}{self.rng.integers(1, 13):02d}{self.rng.integers(1, 29):02d}"

    def uid(self, *what: object) -> UID:
        """A unique identifier, the same for the same words."""
        from pydicom.uid import generate_uid

        return generate_uid(entropy_srcs=["maskfold phantom", str(self.seed), self.patient, *map(str, what)])

    def dataset(self, sop_class: str, modality: str, series: str, description: str, instance: int) -> Dataset:
        """A new object with what all objects of a study have."""
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
        ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = self.day
        ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "101500"
        ds.PatientID, ds.PatientName = self.patient, f"Phantom^{self.patient.rpartition('-')[2]}"
        ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName, ds.AccessionNumber = "", "O", "", ""
        ds.StudyID, ds.StudyDescription = "1", "CT ABDOMEN"
        ds.Modality, ds.SeriesDescription, ds.InstanceNumber = modality, description, instance
        ds.Manufacturer, ds.ManufacturerModelName = "Maskfold", "Phantom"
        ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
        return ds

    def save(self, ds: Dataset) -> None:
        """Write an object under a name that says nothing."""
        from pydicom import dcmwrite

        name = ""
        while not name or name in self.taken:
            name = f"{self.rng.integers(16**8):08X}"
        self.taken.add(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        dcmwrite(self.folder / name, ds, enforce_file_format=True)


def write_series(study: Study, name: str, description: str, stack: Stack, array: Array, kind: tuple[str, ...],
                 backwards: bool = False, intercept: int = INTERCEPT) -> None:
    """Write a volume, one file per slice, in an order that its names do not tell.

    Args:
        study: where to.
        name: of the series, unique in the study.
        description: SeriesDescription.
        stack: the grid.
        array: (slices, rows, columns), Hounsfield units or label values.
        kind: ImageType.
        backwards: whether instances are numbered from the last slice to the first.
        intercept: RescaleIntercept.
    """
    study.series += 1
    number = study.series
    stored = np.clip(np.rint(array) - intercept, -32768, 32767).astype("<i2")
    count = len(stored)
    for index in study.rng.permutation(count).tolist():
        instance = count - index if backwards else index + 1
        ds = study.dataset(CT, "CT", name, description, instance)
        ds.SeriesNumber, ds.AcquisitionNumber, ds.ImageType = number, 1, list(kind)
        ds.BodyPartExamined, ds.PatientPosition, ds.KVP = "ABDOMEN", "HFS", "120"
        ds.SliceThickness = decimal(stack.spacing[0])
        ds.ImageOrientationPatient = [decimal(v) for v in (*stack.axes[2], *stack.axes[1])]
        ds.ImagePositionPatient = [decimal(v) for v in stack.position(index)]
        ds.PixelSpacing = [decimal(stack.spacing[1]), decimal(stack.spacing[2])]
        ds.Rows, ds.Columns = stored.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(intercept), "1", "HU" if intercept else "US"
        ds.WindowCenter, ds.WindowWidth = ("40", "400") if intercept else ("0.5", "1")
        ds.add_new("PixelData", "OW", stored[index].tobytes())
        study.save(ds)


def decimal(value: float) -> Any:
    """A number as DICOM's decimal string of 16 characters at most."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
