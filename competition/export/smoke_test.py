"""Predict one patch with a bundle in a separate process, to check that the bundle runs and to list its imports."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

# Packages that a bundle does not need. They are hidden, because libraries such as monai import some of them only if
# they are installed, and they would then seem to be required.
HIDDEN_PACKAGES = (
    "albumentations",
    "kaggle",
    "lightning",
    "matplotlib",
    "mlflow",
    "onnx",
    "onnxscript",
    "optuna",
    "pytorch_lightning",
    "ray",
    "rich",
    "sklearn",
    "sqlalchemy",
    "tensorboard",
    "torchmetrics",
    "typer",
    "zarr",
)
# Exit status after a MaskfoldError; the last line of standard error is then JSON with `message` and `hint`.
ERROR_STATUS = 3


class ImportBlocker(MetaPathFinder):
    """Hide the packages in `HIDDEN_PACKAGES` from Python's import system.

    Args:
        finder: the import finder that this object replaces, and that it calls for all other packages.
    """

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Return the spec of a module from the wrapped finder; None for a module of a hidden package."""
        return None if name.split(".")[0] in HIDDEN_PACKAGES else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)  # `importlib.metadata` uses the other methods of finders


def smoke_test(folder: Path, root: Path, row: Any, onnx: bool) -> list[str]:
    """Predict the middle of one image with the first network of each run of a bundle.

    Args:
        folder: folder of the bundle.
        root: the competition's data folder.
        row: row of the case table, with the case to predict.
        onnx: whether to predict with onnxruntime.

    Returns:
        Names of the top-level modules that this process has imported.
    """
    from competition.context import Context
    from competition.data.readers import load_image
    from competition.ensembling.ensemble import EnsemblePredictor, InMemoryCase
    from competition.export import runtime, runtime_prediction  # noqa: F401 (run.py imports them)
    from competition.export.onnx import use_onnx_networks
    from competition.export.runtime_cases import Bundle
    from competition.export.time_limit import DegradableEnsemble
    from competition.postprocessing.pipeline import postprocess

    bundle = Bundle.read(folder, root)
    image = load_image(bundle.ensemble.comp, row)
    case = InMemoryCase(str(row.id), crop_middle(image, bundle.ensemble.runs[0].exp.patch.size))
    with TemporaryDirectory() as scratch:
        predictor = EnsemblePredictor(bundle.ensemble, case, Context(bundle.trust), Path(scratch))
        if onnx:
            use_onnx_networks(predictor)
        reducible = DegradableEnsemble(predictor, lambda: 0.0)
        last = reducible.levels[-1]
        reducible.set_level(type(last)(last.tta, tuple(1 for _ in last.networks)))
        probabilities, presence = predictor.predict(case)
        postprocess(probabilities, bundle.ensemble.comp, bundle.settings, case, presence)
    return sorted({name.split(".")[0] for name in sys.modules})


def crop_middle(image: Any, size: Sequence[int]) -> Any:
    """Return the middle part of an image, which is at most as large as a patch.

    The spacing and the affine stay as they are.

    Args:
        image: the image.
        size: patch size.
    """
    from competition.data.image_types import Image

    cut = [slice(None)]
    for length, patch_length in zip(image.array.shape[1:], [*size, size[-1]], strict=False):
        first = max(0, (length - patch_length) // 2)
        cut.append(slice(first, first + min(length, patch_length)))
    return Image(image.array[tuple(cut)], image.spacing, image.affine)


if __name__ == "__main__":
    sys.meta_path[:] = [ImportBlocker(finder) for finder in sys.meta_path]
    request = json.loads(sys.stdin.read())
    from competition.errors import MaskfoldError

    try:
        names = smoke_test(
            Path(request["folder"]), Path(request["root"]), SimpleNamespace(**request["row"]), request["onnx"]
        )
    except MaskfoldError as error:
        print(json.dumps({"message": error.message, "hint": error.hint}), file=sys.stderr)
        sys.exit(ERROR_STATUS)
    print(json.dumps(names))
