"""Writing a mask as DICOM-SEG: one object with a bit for each voxel, a frame for each slice that holds something.

After DICOM PS3.3 A.51 (Segmentation): the grid's orientation and spacing are shared, its positions are per frame, and
each frame says which slice of which series it was drawn on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from competition.data.phantoms.dicom_series import CT, Stack, Study, decimal
from competition.data.phantoms.shapes import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def write_seg(study: Study, source: str, stack: Stack, mask: Array, backwards: bool, all_frames: bool) -> None:
    """Write the mask of one segment, `Spleen`, on a series' grid.

    Args:
        study: where to.
        source: name of the series that it was drawn on.
        stack: that series' grid.
        mask: (slices, rows, columns), 0 and not 0.
        backwards: whether that series' instances are numbered from the last slice to the first, as in `write_series`;
            frames go the same way.
        all_frames: whether slices without the segment have a frame too.

    Raises:
        ValueError: the mask is empty.
    """
    from pydicom.pixels.utils import pack_bits

    frames = [k for k in range(len(mask)) if all_frames or mask[k].any()]
    if not mask.any():
        raise ValueError(f"the mask of {study.patient} is empty")
    if backwards:
        frames.reverse()
    study.series += 1
    ds = study.dataset(SEG, "SEG", "seg", "Segmentation", 1)
    ds.SeriesNumber, ds.ImageType = study.series, ["DERIVED", "PRIMARY"]
    _describe(study, ds)
    instances = {k: study.uid(source, len(mask) - k if backwards else k + 1) for k in range(len(mask))}
    seen = [_item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=instances[k]) for k in sorted(frames)]
    ds.ReferencedSeriesSequence = [_item(SeriesInstanceUID=study.uid(source), ReferencedInstanceSequence=seen)]
    ds.SharedFunctionalGroupsSequence = [_item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[decimal(v) for v in (*stack.axes[2], *stack.axes[1])])],
        PixelMeasuresSequence=[_item(SliceThickness=decimal(stack.spacing[0]), SpacingBetweenSlices=decimal(stack.spacing[0]),
                                     PixelSpacing=[decimal(stack.spacing[1]), decimal(stack.spacing[2])])])]
    ds.PerFrameFunctionalGroupsSequence = [_frame(place, stack, k, instances[k]) for place, k in enumerate(frames, 1)]
    ds.NumberOfFrames, (ds.Rows, ds.Columns) = len(frames), mask.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.add_new("PixelData", "OB", pack_bits((mask[frames] != 0).astype(np.uint8), pad=True))
    study.save(ds)


def _describe(study: Study, ds: Dataset) -> None:
    """What the segment is, who made it, and what numbers the frames."""
    ds.SegmentationType, ds.LossyImageCompression = "BINARY", "00"
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "SEGMENTATION", "", ""
    ds.SegmentSequence = [_item(
        SegmentNumber=1, SegmentLabel="Spleen", SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[_code("123037004", "Anatomical Structure")],
        SegmentedPropertyTypeCodeSequence=[_code("78961009", "Spleen")])]
    organization = study.uid("dimensions")
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    ds.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x0062000B, FunctionalGroupPointer=0x0062000A,
              DimensionDescriptionLabel="Segment Number"),
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00200032, FunctionalGroupPointer=0x00209113,
              DimensionDescriptionLabel="Image Position")]


def _frame(place: int, stack: Stack, index: int, instance: str) -> Dataset:
    source = _item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=instance,
                   PurposeOfReferenceCodeSequence=[_code("121322", "Source image for image processing operation", "DCM")])
    return _item(
        FrameContentSequence=[_item(DimensionIndexValues=[1, place])],
        PlanePositionSequence=[_item(ImagePositionPatient=[decimal(v) for v in stack.position(index)])],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=1)],
        DerivationImageSequence=[_item(SourceImageSequence=[source],
                                       DerivationCodeSequence=[_code("113076", "Segmentation", "DCM")])])


def _code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**elements: object) -> Dataset:
    """One item of a sequence."""
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
