"""What a search for steps found, kept in the run's folder: `postprocess.json` and `postprocess_scores.csv`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from competition.config.postprocess import Postprocess, Step
from competition.data.records import parsed
from competition.scoring.summary import Gain
from competition.submission.tune import Tuned
from competition.training.checkpoint import write_json, write_table
from competition.training.find import finished
from competition.training.job import FoldResult
from competition.training.runs import CvRun

VERSION = 1  # rises when the search changes
FILE, SCORES = "postprocess.json", "postprocess_scores.csv"


def remember(run: CvRun, tuned: Tuned) -> None:
    """Keeps what was found for a run, besides what it was found for."""
    write_table(tuned.rows, run.folder / SCORES)
    plain = {
        "key": _key(run),
        "settings": tuned.settings.model_dump(),
        "found": {name: [step.model_dump() for step in steps] for name, steps in tuned.found.items()},
        **{name: getattr(tuned, name) for name in ("before", "after", "nested", "kept")},
        "gain": tuned.gain._asdict(),
        "gate": None if tuned.gate is None else tuned.gate._asdict(),
    }
    write_json(run.folder / FILE, plain)


def remembered(run: CvRun) -> Tuned | None:
    """What was found for the run as it is now; None where its folds or its `postprocess` have changed since."""
    import pandas as pd

    try:
        plain = parsed((run.folder / FILE).read_bytes())
        if plain["key"] != _key(run):
            return None
        rows = pd.read_csv(run.folder / SCORES, dtype={"id": str}, float_precision="round_trip")
        found = {name: tuple(Step.model_validate(step) for step in steps) for name, steps in plain["found"].items()}
        return Tuned(
            Postprocess.model_validate(plain["settings"]),
            found,
            plain["before"],
            plain["after"],
            plain["nested"],
            Gain(**plain["gain"]),
            plain["kept"],
            rows,
            Gain(**plain["gate"]) if plain.get("gate") else None,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # it can be searched again


def _key(run: CvRun) -> dict[str, Any]:
    results = {f"{fold} {seed}": FoldResult.read(run.member_folder(fold, seed)) for fold, seed in finished(run)}
    members = {name: asdict(result) for name, result in results.items() if result is not None}
    asked = {
        key: value for key, value in run.exp.postprocess.model_dump().items() if key != "number" or value is not None
    }
    return {
        "version": VERSION,
        "postprocess": asked,
        "metric": run.exp.competition.metric.model_dump(),
        "members": {name: [result["score"], result["steps"], result["minutes"]] for name, result in members.items()},
    }
