"""Maskfold: a competition harness for image segmentation."""

__version__ = "0.1.0"
