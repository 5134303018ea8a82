"""Small competitions for every room's tests, made once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def demo2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D demo competition of 10 training and 3 test pictures."""
    from competition.datasets.demo import make_demo

    folder = tmp_path_factory.mktemp("demo") / "demo2d"
    make_demo("2d", folder, seed=3, cases=10, test_cases=3)
    return folder


@pytest.fixture(scope="session")
def demo3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D demo competition of 6 training and 2 test volumes."""
    from competition.datasets.demo import make_demo

    folder = tmp_path_factory.mktemp("demo") / "demo3d"
    make_demo("3d", folder, seed=3, cases=6, test_cases=2)
    return folder


TINY = {
    2: [
        "patch.size=[32,32]",
        "model.target=monai.networks.nets.BasicUNet",
        "model.args={features: [4, 4, 8, 8, 8, 4], norm: [group, {num_groups: 2}]}",
    ],
    3: [
        "patch.size=[16,16,16]",
        "model.target=monai.networks.nets.BasicUNet",
        "model.args={features: [4, 4, 4, 4, 4, 4], norm: [group, {num_groups: 2}]}",
    ],
}


@pytest.fixture
def tiny(demo2d: Path, demo3d: Path) -> Callable[..., Any]:
    """`tiny(2, "training.epochs=2")`: the shipped demo experiment with a toy network, two folds, fp32."""
    from competition.config.loading import load_experiment

    def make(dimensions: int, *overrides: str, trust: tuple[str, ...] = ()) -> Any:
        root = demo2d if dimensions == 2 else demo3d
        file = ROOT / "experiments" / f"demo{dimensions}d" / f"unet{dimensions}d.yaml"
        return load_experiment(
            file,
            [
                f"competition.root={root}",
                "folds.k=2",
                "training.epochs=2",
                "training.steps_per_epoch=4",
                "training.batch_size=2",
                "training.precision=fp32",
                "training.budget_minutes=null",
                "training.validate_every=1",
                "training.pictures_every=100",
                "encoder_weights=null",
                *TINY[dimensions],
                *overrides,
            ],
            trust,
        )

    return make


from tests.finished_runs import finished, nuclei  # noqa: E402, F401 (fixtures; they import this file's constants)
