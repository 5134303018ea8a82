"""Fixtures for all tests: small competitions and an empty MLflow database, made once for all pytest workers."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests without Python's garbage collector, and exclude all existing objects from later collections.

    Imports and rewritten assertions make millions of objects that are never freed. If the collector examined them again
    and again, this would take a quarter of the time in which a worker starts, and seconds of its tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Let Python free the objects that were excluded from garbage collection, unless this process is a worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker ends without freeing what it imported
        gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests that use `warm_servers` in one worker, so that a single server imports the libraries.

    See `tests.warm`.
    """
    for item in items:
        if "warm_servers" in getattr(item, "fixturenames", ()) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("serial"))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once("name", make)`: return a folder that `make(folder)` fills once for all pytest workers.

    Tests must not change the folder. A test that changes files first copies them.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = base / "once" / name, base / "once" / f"{name}.complete"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # a killed worker may have left it incomplete
                make(folder)
                complete.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def demo2d(once: Callable[..., Path]) -> Path:
    """A 2D demo competition of 10 training and 3 test pictures."""
    from competition.datasets.demo import make_demo

    return once("demo2d", lambda folder: make_demo("2d", folder, seed=3, cases=10, test_cases=3))


@pytest.fixture(scope="session")
def demo3d(once: Callable[..., Path]) -> Path:
    """A 3D demo competition of 6 training and 2 test volumes."""
    from competition.datasets.demo import make_demo

    return once("demo3d", lambda folder: make_demo("3d", folder, seed=3, cases=6, test_cases=2))


@pytest.fixture(scope="session")
def empty_database(once: Callable[..., Path]) -> Path:
    """An empty database `mlflow.db`. Tests copy this file, because MLflow takes seconds to make its tables."""
    from competition.tracking.store import DATABASE_FILE, MLRUNS, connect_mlflow, find_mlflow_store

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            connect_mlflow(find_mlflow_store(folder)).search_experiments()

    return once("mlflow", make) / MLRUNS / DATABASE_FILE


def add_mlflow_database(project: Path, empty_database: Path) -> None:
    """Copy the empty database into a project's folder, to the path where a command would make a database."""
    (project / "mlruns").mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_database, project / "mlruns" / "mlflow.db")


# Overrides for a toy network, by number of dimensions. The windows are so small that function calls take more time than
# the arithmetic. The batches of prediction are therefore large.
TINY = {
    2: [
        "patch.size=[32,32]",
        "inference.batch_size=32",
        "model.target=monai.networks.nets.BasicUNet",
        "model.args={features: [4, 4, 8, 8, 8, 4], norm: [group, {num_groups: 2}]}",
    ],
    3: [
        "patch.size=[16,16,16]",
        "inference.batch_size=16",
        "inference.overlap=0.25",
        "model.target=monai.networks.nets.BasicUNet",
        "model.args={features: [4, 4, 4, 4, 4, 4], norm: [group, {num_groups: 2}]}",
    ],
}


@pytest.fixture
def tiny(demo2d: Path, demo3d: Path) -> Callable[..., Any]:
    """`tiny(2, "training.epochs=2")`: load the shipped 2D or 3D demo experiment with a toy network, two folds and fp32.

    Further arguments are overrides of the experiment.
    """
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
                "inference.tta=[]",  # with flips, prediction takes most of a fold's time; tests of flips set this key
                *TINY[dimensions],
                *overrides,
            ],
            trust,
        )

    return make


# Modules with fixtures, which use this file's constants. Neither of them imports a large library, because the main
# process of pytest-xdist also imports this file, and the workers wait for it.
from tests.finished_runs import finished, nuclei, serial_scoring  # noqa: E402, F401
from tests.warm import warm, warm_folds, warm_servers  # noqa: E402, F401
