"""Preprocessed cases for tests, written by Maskfold's own code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from competition.config.experiment import Experiment
from competition.data.cache import get_or_build
from competition.data.geometry import Geometry
from competition.data.preprocessing import write_image, write_mask


def experiment(dimensions: int, size: list[int], **sections: Any) -> Experiment:
    """Return a minimal experiment of two exclusive classes.

    Args:
        dimensions: number of spatial dimensions.
        size: patch size.
        **sections: top-level keys to add or replace; `patch` only adds keys to the patch size.
    """
    competition = {
        "name": "toy",
        "root": ".",
        "dimensions": dimensions,
        "classes": ["disc", "ring"],
        "train": {"images": "{id}.npy", "masks": "{id}_mask.npy"},
    }
    patch = {"size": size, **sections.pop("patch", {})}
    return Experiment.model_validate(
        {
            "competition": competition,
            "patch": patch,
            "model": {"target": "torch.nn.Identity"},
            "loss": {"target": "torch.nn.CrossEntropyLoss"},
            **sections,
        }
    )


def prepared_case(root: Path, name: str, image: np.ndarray, mask: np.ndarray, exp: Experiment) -> Path:
    """Preprocess a case, and return its folder in the cache.

    Args:
        root: folder of the cache.
        name: id of the case.
        image: image (C, *spatial).
        mask: label image (1, *spatial) or class masks (K, *spatial).
        exp: the experiment.
    """

    def build(folder: Path) -> dict[str, Any]:
        picture: Any = SimpleNamespace(array=image, spacing=(1.0,) * (image.ndim - 1), affine=None)
        record = write_image(folder, picture, exp, name)
        write_mask(folder, mask, Geometry.from_dict(record["geometry"]), exp, name)
        return record

    return get_or_build(root, name, build)
