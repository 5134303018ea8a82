"""Map old import paths, which saved files contain, to the modules that replace them.

YAML files name networks by import path (`target: competition.model.unet.UNet`), and MLflow models and user scripts
import `Predictor` and `convert_folder`. `install` adds an import hook, so that such a path loads the new module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "competition.config.errors": "competition.errors",
    "competition.data.dicom": "competition.dicom",
    "competition.data.dicom.convert": "competition.dicom.convert",
    "competition.model": "competition.models",
    "competition.model.unet": "competition.models.unet",
    "competition.submission.given": "competition.export.predictor",
    "competition.submission.model": "competition.export.mlflow_model",
    "competition.submission.predictor": "competition.export.predictor",
    "competition.submission.profiles": "competition.config.profiles",
    "competition.submission.read": "competition.submission.reader",
}


class _Alias(Loader):
    """Load the new module for an old import path, so that both paths give the same module object."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module was executed under its new name. The import system has just replaced its spec by the old name's
        # spec.
        module.__spec__ = self.spec


class _MovedFinder(MetaPathFinder):
    """Find the modules of the old paths in `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Alias(), is_package=True) if fullname in MOVED else None


def install() -> None:
    """Make the old import paths work in this process."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        # Before all other finders, because the old package's path would find a second copy of a module.
        sys.meta_path.insert(0, _MovedFinder())
