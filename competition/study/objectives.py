"""What a trial is judged by."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Literal

from competition.config import MaskfoldError
from competition.config.nearest import nearest
from competition.config.study import Study
from competition.study.source import Source
from competition.training.cv import CvSummary
from competition.training.runs import CvRun

TIMED = 5  # cases whose prediction is timed
SMALLER = ("inference_seconds", "minutes", "peak_gib")
KNOWN = ("score", *SMALLER)  # besides dice_<class>


def check_objectives(source: Source, study: Study, classes: list[str]) -> None:
    """Refuses names that nothing measures.

    Raises:
        MaskfoldError: naming those that are known.
    """
    known = [*KNOWN, *(f"dice_{name}" for name in classes)]
    for part, names in (("objectives", study.objectives), ("constraints", study.constraints)):
        for name in names:
            if name not in known:
                raise MaskfoldError(
                    f"{source.place(part)}: study.{part} names {name}, which nothing measures"
                    f"{''.join(f'; the nearest is {near}' for near in nearest(name, known))}.",
                    f"Known are {', '.join(known)}.",
                    status=2,
                )


def directions(study: Study) -> list[Literal["minimize", "maximize"]]:
    """Optuna's word for each objective."""
    return ["minimize" if name in SMALLER else "maximize" for name in study.objectives]


def measure(run: CvRun, summary: CvSummary, study: Study) -> dict[str, float]:
    """Each objective and constraint of a finished trial.

    `score` is the competition's metric out of fold, `dice_<class>` a class's mean Dice, `minutes` the training time of all
    its folds, `peak_gib` the largest fold's memory, `inference_seconds` the mean time that one network takes for a case.

    Raises:
        MaskfoldError: the trial has no score.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys((*study.objectives, *study.constraints)):
        value: Any
        if name == "score":
            value = summary.score
        elif name in ("minutes", "peak_gib"):
            values = [float(fold[name]) for fold in summary.folds]
            value = sum(values) if name == "minutes" else max(values)
        elif name == "inference_seconds":
            value = inference_seconds(run)
        else:
            value = summary.dice.get(name.removeprefix("dice_"))
        if value is None or value != value:
            raise MaskfoldError(
                f"The trial has no {name}: nothing was predicted, or no case has the class.",
                "Look at the run's scores.csv.",
            )
        found[name] = float(value)
    return found


def inference_seconds(run: CvRun) -> float:
    """Mean seconds in which the first member's network predicts one of some cases, preparation included."""
    from competition.submission.blend import Blend
    from competition.submission.members import Ensemble, plain_rows

    rows = plain_rows(run.cases.iloc[:: max(1, len(run.cases) // TIMED)].head(TIMED))
    ensemble = Ensemble(Blend((run,), (1.0,)), rows[0])
    part, _ = ensemble.parts[0]
    del part.networks[1:]
    ensemble.probabilities(rows[0])  # the first one also pays for warming up
    began = time.perf_counter()
    for row in rows:
        ensemble.probabilities(row)
    return (time.perf_counter() - began) / len(rows)


def plain(summary: CvSummary) -> dict[str, Any]:
    """A summary as plain data, without its folds."""
    return {key: value for key, value in asdict(summary).items() if key != "folds"}
