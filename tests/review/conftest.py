"""A fixture for tests of the review: a run on a demo competition in whose masks faults were planted.

Its out-of-fold predictions have errors like those of a real network.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from competition.datasets.demo import make_demo
from competition.runs.run import Run
from tests.report.conftest import _make
from tests.review.planted import plant_faults


@dataclass(frozen=True)
class PlantedRun:
    """A finished run on a competition with planted faults.

    Attributes:
        run: the run.
        planted: kind of the fault of each changed case, by the case's id.
    """

    run: Run
    planted: dict[str, str]


def ordinary_probabilities(truth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return probabilities (3, H, W) float16 with errors like those of a real network.

    Outlines are inexact, some objects have low probabilities, some are missed or have the wrong class, and some do not
    exist.

    Args:
        truth: (H, W) labels without faults.
        generator: source of the errors.
    """
    seen = truth.copy()
    certainty = np.full(truth.shape, 5.0)
    for value in (1, 2):
        objects, count = cc3d.connected_components((truth == value).astype(np.uint8), return_N=True)
        for number in range(1, count + 1):
            draw = generator.random()
            if draw < 0.03:  # the object is missed, with low certainty
                seen[objects == number] = 0
                certainty[objects == number] = 0.7
            elif draw < 0.06:  # the object has the wrong class, with low certainty
                seen[objects == number] = 3 - value
                certainty[objects == number] = 0.6
            elif draw < 0.14:
                certainty[objects == number] = 1.5
    for _ in range(generator.poisson(0.6)):  # an object that does not exist
        row, column = (int(generator.integers(8, length - 8)) for length in truth.shape)
        disc = cv2.circle(np.zeros(truth.shape, np.uint8), (column, row), 6, 1, -1) > 0
        seen[disc] = generator.integers(1, 3)
        certainty[disc] = 0.7
    wobble = gaussian_filter(generator.normal(size=truth.shape), 2.0) * 6.0
    planes = np.stack([gaussian_filter((seen == number).astype(np.float32), 1.2) for number in range(3)])
    planes[0] += 0.25 * wobble
    values = np.exp(gaussian_filter(certainty, 1.0) * planes)
    return (values / values.sum(axis=0)).astype(np.float16)


@pytest.fixture
def planted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, once: Callable[..., Path], serial_scoring: None
) -> PlantedRun:
    """A run with planted faults in `tmp_path`, which becomes the working folder.

    Its data set is shared by all tests and must not be changed.
    """
    from competition.config.loading import load_experiment
    from tests.conftest import ROOT, TINY

    def build(place: Path) -> None:
        place.mkdir()
        data = place / "data"
        make_demo("2d", data, seed=5, cases=40, test_cases=2)
        clean = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (data / "masks").glob("*.png")}
        faults = plant_faults(data)

        def predict(truth: np.ndarray, row: Any, generator: np.random.Generator) -> np.ndarray:
            height, width = truth.shape[1:]
            return ordinary_probabilities(clean[row.id][:height, :width], generator)

        exp = load_experiment(
            ROOT / "experiments" / "demo2d" / "unet2d.yaml",
            [f"competition.root={data}", "folds.k=4", "training.precision=fp32", *TINY[2]],
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            run = _make(exp, "demo2d-planted", 0.0, predict, 0, 1000.0)
        (place / "made.pickle").write_bytes(pickle.dumps(run))
        (place / "faults.json").write_text(json.dumps(faults))

    place = once("planted", build)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "mlruns", tmp_path / "mlruns", copy_function=shutil.copy)
    return PlantedRun(
        pickle.loads((place / "made.pickle").read_bytes()), json.loads((place / "faults.json").read_text())
    )
