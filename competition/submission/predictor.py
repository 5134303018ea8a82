"""Predicts images in memory with the networks of one run, from a folder that needs nothing beside it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import Experiment, load_experiment
from competition.config.postprocess import Postprocess
from competition.data.records import damaged, read_record
from competition.submission.blend import Blend
from competition.submission.given import given
from competition.submission.labels import Labels, label_arrays
from competition.submission.members import Ensemble
from competition.submission.postprocess import postprocess
from competition.training.runs import CvRun

EXPERIMENT, STEPS = "experiment.yaml", "postprocess.json"


class Predictor:
    """The networks of a run's folder, or of what `competition.submission.model.pack` made of one.

    Packages of one's own that `target` names are trusted by `MASKFOLD_TRUST`.

    Args:
        folder: `experiment.yaml`, `postprocess.json`, and for each member `fold_0/weights.safetensors` with its
            `result.json`.

    Raises:
        MaskfoldError: a file is missing or damaged, or a target is not trusted.

    Example:
        >>> Predictor(Path("bundle")).predict([array])  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        exp = here(load_experiment(folder / EXPERIMENT))
        self.settings = _settings(folder / STEPS)
        self.blend = Blend((CvRun(folder, exp, no_cases(), folds_of(folder), folder.name),), (1.0,))
        self._ensemble: Ensemble | None = None

    def predict(self, images: Any) -> list[Labels]:
        """Masks on the grid of each image.

        Args:
            images: see `competition.submission.given.given`.

        Returns:
            One array each, (*spatial), as `maskfold predict` writes it: uint8 or uint16 values of classes, numbers of
            objects with `competition.instances`; (K, *spatial) where classes overlap.

        Raises:
            MaskfoldError: an image cannot be read or predicted.
        """
        exp, comp = self.blend.runs[0].exp, self.blend.comp
        masks: list[Labels] = []
        for image in given(images, exp):
            if self._ensemble is None:  # the first image tells how many channels there are
                self._ensemble = Ensemble(self.blend, image, scratch=Path(tempfile.gettempdir()))
            probabilities, gate = self._ensemble.predict(image)
            found = label_arrays(postprocess(probabilities, comp, self.settings, image, gate), comp)
            masks.append(found[""] if "" in found else np.stack(list(found.values())))
        return masks


def _settings(path: Path) -> Postprocess:
    cure = "Take a whole copy of the run's folder, or of the model."
    try:
        return Postprocess.model_validate(read_record(path, cure)["settings"])
    except (OSError, ValueError, LookupError) as error:  # pydantic's own errors are ValueErrors
        raise damaged(path, error, cure) from error


def here(exp: Experiment) -> Experiment:
    """The experiment on this machine: one device, and another one where the training's is not there."""
    import torch

    wanted = exp.run.accelerator
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(wanted, True)
    return exp.model_copy(
        update={"run": exp.run.model_copy(update={"devices": 1, "accelerator": wanted if there else "auto"})}
    )


def folds_of(folder: Path) -> Any:
    """A table of folds, as far as the members' folders tell it."""
    import pandas as pd

    names = [re.match(r"fold_(\d+)", path.parent.name) for path in sorted(folder.glob("*/result.json"))]
    return pd.DataFrame({"fold": sorted({int(found.group(1)) for found in names if found})}, dtype="int64")


def no_cases() -> Any:
    """A table of cases without a row: none of the training is needed to predict."""
    import pandas as pd

    return pd.DataFrame({"id": []})
