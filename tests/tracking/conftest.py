"""Fixtures of the tracking tests: a toy run in a project with an empty MLflow database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.config.experiment import Experiment
from competition.tracking.store import RunMetadata, find_mlflow_store
from competition.tracking.uploader import RunUploader
from tests.conftest import add_mlflow_database


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty MLflow database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    add_mlflow_database(tmp_path, empty_database)
    return tmp_path


@pytest.fixture
def exp() -> Experiment:
    """A small experiment with two classes and two loss terms."""
    return Experiment.model_validate(
        {
            "competition": {
                "name": "toy",
                "root": "data/toy",
                "dimensions": 2,
                "classes": ["left part", "T1+"],
                "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
            },
            "patch": {"size": [32, 48]},
            "model": {"target": "torch.nn.Identity"},
            "loss": [{"target": "torch.nn.CrossEntropyLoss", "weight": 0.5}, {"target": "monai.losses.DiceLoss"}],
        }
    )


@pytest.fixture
def run_folder(project: Path) -> Path:
    """A run that has just begun, with two folds."""
    folder = project / "mlruns" / "runs" / "toy-unet" / "0123456789ab"
    for number in (0, 1):
        (folder / f"fold_{number}").mkdir(parents=True)
        (folder / f"fold_{number}" / "job.json").write_text("{}")
    (folder / "experiment.yaml").write_text("seed: 12345\n")
    (folder / "cases.csv").write_text("id\na\n")
    (folder / "folds.csv").write_text("id,fold\na,0\n")
    return folder


@pytest.fixture
def delivery(run_folder: Path, exp: Experiment) -> Callable[[], RunUploader]:
    """A function that returns a new `RunUploader` of the run, as a new process would make it."""
    return lambda: RunUploader(
        run_folder, find_mlflow_store(run_folder.parents[3]), RunMetadata.of(run_folder, exp, "cv")
    )


def line(step: int, time: float = 0.0, **metrics: float) -> str:
    """Return a line of `metrics.jsonl`.

    Args:
        step: number of the step and of the epoch.
        time: seconds to add to the usual time stamp of the step.
        **metrics: values of the metrics; two underscores in a name stand for a slash.
    """
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return json.dumps({"step": step, "epoch": step, "time": 1.7e9 + step + time, "metrics": named}) + "\n"


def finish_fold(fold: Path, score: float = 0.75) -> None:
    """Write the files that a finished fold leaves in its folder."""
    (fold / "pictures").mkdir(exist_ok=True)
    (fold / "pictures" / "epoch_0010_a.png").write_bytes(b"png")
    (fold / "curves.png").write_bytes(b"png")
    (fold / "scores.csv").write_text("id,fold,class,score,dice\n")
    for name in ("weights.safetensors", "last.pt"):
        (fold / name).write_bytes(b"weights")
    (fold / "log.txt").write_text("epoch 1\n")
    (fold / "result.json").write_text(
        json.dumps(
            {"fold": 0, "score": score, "dice": {"left part": 0.5, "T1+": None}, "minutes": 1.5, "device": "cpu"}
        )
    )
