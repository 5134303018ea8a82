"""Finished runs without training: initialised networks, and out-of-fold predictions derived from the true masks."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # see the imports of tests/conftest.py
    import numpy as np

    from competition.runs.run import Run

    Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def soft(truth: np.ndarray, outputs: int, noise: float, generator: np.random.Generator) -> np.ndarray:
    """Return probabilities that are correct except for noise.

    Args:
        truth: label image (1, *spatial).
        outputs: number P of channels of the probabilities.
        noise: strength of the noise.
        generator: random generator.

    Returns:
        Probabilities (P, *spatial) float16.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    planes = np.stack([truth[0] == number for number in range(outputs)]).astype(np.float32)
    blurred = np.stack([gaussian_filter(plane, 1.0) for plane in planes])
    random = np.stack([gaussian_filter(generator.normal(size=plane.shape), 1.5) for plane in planes])
    values = np.exp(4 * blurred + noise * 10 * random)
    return (values / values.sum(axis=0)).astype(np.float16)


def is_shared(root: Path) -> bool:
    """Return whether the competition in a folder is one that all tests share; see the fixture `once`."""
    return Path(root).parent.name == "once"


def run_key(exp: Any, *more: object) -> str:
    """Return a short hash of an experiment and of further values on which a run depends."""
    from competition.config.loading import resolve_config

    return hashlib.sha256(json.dumps([resolve_config(exp), *map(str, more)]).encode()).hexdigest()[:16]


def copy_of_run(folder: Path, make: Callable[[], Run], once: Callable[..., Path], key: str) -> Run:
    """Return a copy of a run that is made only once for all tests.

    Args:
        folder: folder into which the run is copied; the working folder.
        make: function that makes the run below its working folder.
        once: the fixture `once`.
        key: name of the run for `once`.
    """

    def build(place: Path) -> None:
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            (place / "run.pickle").write_bytes(pickle.dumps(make()))

    made = once(key, build)
    # Let the copies have new modification times, because Maskfold finds the latest of several runs by these times.
    shutil.copytree(made / "mlruns", folder / "mlruns", dirs_exist_ok=True, copy_function=shutil.copy)
    return pickle.loads((made / "run.pickle").read_bytes())


@pytest.fixture
def serial_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score the cases of a run in this process, because the start of worker processes would take seconds."""
    monkeypatch.setattr("competition.postprocessing.evaluation.MAX_SERIAL_CASES", 1000)


@pytest.fixture
def finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, once: Callable[..., Path], serial_scoring: None
) -> Callable[..., Run]:
    """`finished(exp, "demo2d-unet2d", noise=0.3)`: make a finished run in `tmp_path`, which becomes the working folder.

    See `finish_run` for the arguments.
    """
    monkeypatch.chdir(tmp_path)

    def make(exp: Any, name: str = "demo2d-tiny", noise: float = 0.3, spoil: Spoil | None = None, seed: int = 0) -> Run:
        def build() -> Run:
            return finish_run(exp, name, noise, spoil, seed)

        if spoil is not None or not is_shared(exp.competition.root):
            return build()
        return copy_of_run(tmp_path, build, once, f"finished-{run_key(exp, name, noise, seed)}")

    return make


def finish_run(exp: Any, name: str, noise: float, spoil: Spoil | None = None, seed: int = 0) -> Run:
    """Write a finished run below the working folder, and return it.

    Args:
        exp: the experiment.
        name: name of the experiment in the run's path.
        noise: strength of the noise in the out-of-fold predictions, see `soft`.
        spoil: function that changes each prediction, with probabilities and random generator as arguments.
        seed: seed of weights and noise.
    """
    import numpy as np
    import torch

    from competition.data.masks import load_mask
    from competition.models.build import build_network
    from competition.runs.checkpoint import save_weights
    from competition.runs.oof import OofStore
    from competition.training.cross_validate import open_run, summarize_run

    run = open_run(exp, name)
    run.write()
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for fold, member in run.members():
        folder = run.member_folder(fold, member)
        folder.mkdir(parents=True)
        save_weights(
            folder / "weights.safetensors", build_network(exp, exp.patch.slices or 1, pretrained=False).state_dict()
        )
        store = OofStore(folder / "oof", exp.inference.store)
        for row in run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == fold, "id"])].itertuples(
            index=False
        ):
            found = soft(load_mask(exp.competition, row), exp.output_channels, noise, generator)
            store.write(row.id, found if spoil is None else spoil(found, generator))
        _score(run, fold, member)
    summarize_run(run)
    return run


def _score(run: Run, fold: int, member: int) -> None:
    """Write the scores and the result of a fold and seed, computed from its out-of-fold predictions."""
    import pandas as pd
    import torch

    from competition.records import write_json
    from competition.runs.fold import FoldResult
    from competition.runs.oof import OofStore
    from competition.training.evaluator import Evaluator
    from competition.training.soup_selection import fold_scores

    folder = run.member_folder(fold, member)
    result = FoldResult(
        fold=fold,
        seed=member,
        score=0.5,
        dice={},
        epochs=1,
        steps=1,
        minutes=0.1,
        peak_gib=0.1,
        threads=1,
        precision="32-true",
        device="cpu",
        torch=torch.__version__,
        stopped="",
    )
    ids = run.folds.loc[run.folds["fold"] == fold, "id"]
    judge = Evaluator(
        run.exp, run.cases[run.cases["id"].isin(ids)], {}, torch.device("cpu"), torch.no_grad, lambda: None
    )
    store = OofStore(folder / "oof", run.exp.inference.store)
    lines = []
    for row in judge.iter_cases():
        lines += judge.score(store.read(row.id), row, fold)[0]
    pd.DataFrame(lines).to_csv(folder / "scores.csv", index=False)
    write_json(folder / "result.json", asdict(result))
    assert len(fold_scores(run, fold, [result])) == len(lines)


@pytest.fixture
def nuclei(tmp_path: Path) -> Callable[..., Any]:
    """`nuclei("postprocess.tune=true")`: load an experiment of `tests.discs` with a toy network and two folds.

    The arguments are overrides of the experiment.
    """
    from competition.config.loading import load_experiment
    from tests.conftest import TINY
    from tests.discs import make_discs

    def make(*overrides: str) -> Any:
        root = tmp_path / "discs"
        if not root.exists():
            make_discs(root)
        return load_experiment(
            root / "unet2d.yaml", ["folds.k=2", "training.epochs=1", "training.precision=fp32", *TINY[2], *overrides]
        )

    return make
