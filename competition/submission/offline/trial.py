"""One patch through a bundle in a process of its own: does it run alone, and what does it import?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

# What a bundle never needs. Libraries that would use one of these if it is there (monai) find none.
BARRED = (
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
REFUSED = 3  # exit status of a trial that ended in words: the last line of standard error is JSON, wrong and cure


class Blind(MetaPathFinder):
    """A finder that does not see the barred packages, so that whoever asks whether one is there is told: no."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """What the finder finds, or None."""
        return None if name.split(".")[0] in BARRED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)  # `importlib.metadata` asks finders, too


def main(folder: Path, root: Path, row: Any, onnx: bool) -> list[str]:
    """Predicts the middle of one image with the first network of each run.

    Returns:
        Names of the top-level modules that this process has imported.
    """
    from competition.data.table import load_image
    from competition.submission.members import Ensemble, Loose
    from competition.submission.offline import command, shards  # noqa: F401 (they are imported in earnest)
    from competition.submission.offline.bundle import Bundle
    from competition.submission.offline.lessen import Lessened
    from competition.submission.offline.onnx import take_onnx
    from competition.submission.postprocess import postprocess

    bundle = Bundle.read(folder, root)
    picture = load_image(bundle.blend.comp, row)
    loose = Loose(str(row.id), middle(picture, bundle.blend.runs[0].exp.patch.size))
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        ensemble = Ensemble(bundle.blend, loose, bundle.trust, Path(scratch))
        if onnx:
            take_onnx(ensemble)
        lessened = Lessened(ensemble, lambda: 0.0)
        rung = lessened.rungs[-1]
        lessened.take(type(rung)(rung.tta, tuple(1 for _ in rung.kept)))
        probabilities, gate = ensemble.predict(loose)
        postprocess(probabilities, bundle.blend.comp, bundle.settings, loose, gate)
    return sorted({name.split(".")[0] for name in sys.modules})


def middle(picture: Any, size: Sequence[int]) -> Any:
    """The middle of a picture, of a patch's size at most along its first axes; geometry plays no part here."""
    from competition.data.readers import Picture

    cut = [slice(None)]
    for length, wanted in zip(picture.array.shape[1:], [*size, size[-1]], strict=False):
        first = max(0, (length - wanted) // 2)
        cut.append(slice(first, first + min(length, wanted)))
    return Picture(picture.array[tuple(cut)], picture.spacing, picture.affine)


if __name__ == "__main__":
    from types import SimpleNamespace

    sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]
    words = json.loads(sys.stdin.read())
    from competition.config.errors import MaskfoldError

    try:
        names = main(Path(words["folder"]), Path(words["root"]), SimpleNamespace(**words["row"]), words["onnx"])
    except MaskfoldError as error:
        print(json.dumps({"wrong": error.wrong, "cure": error.cure}), file=sys.stderr)
        sys.exit(REFUSED)
    print(json.dumps(names))
