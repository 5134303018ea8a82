"""Convert DICOM folders to NIfTI volumes and masks; `convert_folder` in `convert.py` does all steps."""

from competition.dicom.convert import Conversion, convert_folder

__all__ = ["Conversion", "convert_folder"]
