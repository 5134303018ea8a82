"""Convert DICOM folders to NIfTI volumes and masks; `convert_folder` is the only entry point."""

from competition.dicom.convert import Conversion, convert_folder

__all__ = ["Conversion", "convert_folder"]
