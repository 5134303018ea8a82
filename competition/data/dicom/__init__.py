"""DICOM folders to NIfTI volumes and masks: `convert_folder` is all that other rooms need."""

from competition.data.dicom.convert import Conversion, convert_folder

__all__ = ["Conversion", "convert_folder"]
