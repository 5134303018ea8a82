"""Trials without training: the scores of their folds are a function of the learning rate.

This module can also be run as a program, so that several processes can work on a study.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BEST = 0.003  # the learning rate that scores highest
YAML = """\
competition: competition.yaml
folds: {k: 2}
patch: {size: [32, 32]}
model: {target: monai.networks.nets.BasicUNet, args: {features: [4, 4, 8, 8, 8, 4], dropout: 0.1}}
loss: {target: monai.losses.DiceCELoss}
optimizer: {target: torch.optim.AdamW, args: {lr: 1.0e-3}}
study:
  trials: 6
  sampler: random
  pruner: none
  space:
    optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
"""


class QuickExecutor:
    """Write the results of folds without training.

    Args:
        score: function that returns the score of a case, from the experiment, the number of the fold, and the index of
            the case in the fold.
        delay: seconds that a fold takes.
    """

    def __init__(self, score: Callable[[Any, int, int], float], delay: float = 0.0) -> None:
        self.score, self.delay = score, delay

    def run(self, jobs: Sequence[Any], say: Callable[[str], None], alive: Callable[[], None] = lambda: None) -> None:
        from competition.runs.fold import FoldResult
        from competition.runs.run import load_run

        for job in jobs:
            run = load_run(job.run)
            job.folder.mkdir(parents=True, exist_ok=True)
            ids = run.folds.loc[run.folds["fold"] == job.fold, "id"].tolist()
            lines = []
            for place, case in enumerate(ids):
                value = self.score(run.exp, job.fold, place)
                lines += [
                    {
                        "id": case,
                        "fold": job.fold,
                        "class": name,
                        "score": value,
                        "dice": value,
                        "iou": value,
                        "tp": 1,
                        "fp": 1,
                        "fn": 1,
                    }
                    for name in run.exp.competition.classes
                ]
            with open(job.folder / "metrics.jsonl", "w") as file:
                for epoch in (1, 2):
                    value = float(np.mean([line["score"] for line in lines])) * epoch / 2
                    print(
                        json.dumps({"step": epoch, "epoch": epoch, "time": 0, "metrics": {"val/score": value}}),
                        file=file,
                    )
                    file.flush()
                    _look(alive)
            time.sleep(self.delay)
            pd.DataFrame(lines).to_csv(job.folder / "scores.csv", index=False)
            result = FoldResult(
                fold=job.fold,
                seed=job.seed,
                score=0.5,
                dice={},
                epochs=2,
                steps=2,
                minutes=1.0,
                peak_gib=run.exp.optimizer.args["lr"] * 100,
                threads=1,
                precision="",
                device="cpu",
                torch="",
                stopped="done",
            )
            (job.folder / "result.json").write_text(json.dumps(asdict(result)))
            _look(alive)


def _look(alive: Callable[[], None]) -> None:
    """Call `alive` in such a way that it polls now, although it usually waits between two polls."""
    if hasattr(alive, "_last_poll"):
        alive._last_poll = 0.0
    alive()


def by_rate(exp: Any, fold: int, place: int) -> float:
    """Return a score that is highest if the learning rate is `BEST`; see `QuickExecutor` for the arguments."""
    away = abs(np.log10(exp.optimizer.args["lr"] / BEST))
    return float(0.9 - 0.2 * away + 0.01 * ((7 * place + fold) % 5))


class Silent:
    """Replace `MlflowSync`, and upload nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def set_status(self, status: str) -> None: ...


def install(
    patch: Callable[[str, Any], None], score: Callable[[Any, int, int], float] = by_rate, delay: float = 0.0
) -> None:
    """Replace training, preprocessing and MLflow by the classes above.

    Args:
        patch: function that replaces an object, given its full name and the new object.
        score: see `QuickExecutor`.
        delay: see `QuickExecutor`.
    """
    patch("competition.training.executors.make_executor", lambda exp: QuickExecutor(score, delay))
    patch("competition.tracking.sync.MlflowSync", Silent)
    patch("competition.training.cross_validate.prepare_run", lambda run, context=None, **_: run.write() or run)


def write_experiment(root: Path, text: str = YAML) -> Path:
    """Write the experiment and its competition to the folder of a demo's data, and return the experiment's path."""
    from tests.conftest import ROOT

    path = root / "unet2d.yaml"
    competition = (ROOT / "experiments" / "demo2d" / "competition.yaml").read_text()
    (root / "competition.yaml").write_text(competition.replace("root: data/demo2d", f"root: {root}"))
    path.write_text(text)
    return path


def main(file: str, storage: str, count: str, delay: str) -> None:
    """Run trials of a study: `python -m tests.study.quick FILE STORAGE COUNT DELAY`.

    Args:
        file: YAML file of the experiment.
        storage: storage of the study; empty for the default.
        count: number of trials.
        delay: seconds that a fold takes.
    """
    import importlib

    def patch(name: str, value: Any) -> None:
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)

    install(patch, delay=float(delay))
    from competition.study.space import ExperimentSource
    from competition.study.study import open_study, run_study

    search = open_study(ExperimentSource(Path(file)), storage or None)
    run_study(search, int(count), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
