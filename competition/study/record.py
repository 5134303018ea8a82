"""A study as plain data: `trials.json` in its folder, from which its page is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError
from competition.data.records import damaged, read_record
from competition.study.objectives import SMALLER
from competition.study.trial import REASON
from competition.training.find import TRIALS

if TYPE_CHECKING:
    from competition.study.search import Search

AGAIN = "Run the same `maskfold study` again: it writes it."


def write_trials(search: Search) -> list[dict[str, Any]]:
    """Every trial as plain data, also as `trials.json` in the study's folder, with the objectives and the best.

    Returns:
        Of each trial `number`, `state` (Optuna's word, in lower case), `values`, `minutes`, `params`, `reason` (why it
        failed, was pruned, or may not be the best), `run` (its folder) and `own` (whether it is the YAML as it is).
    """
    from competition.study.search import allowed, best
    from competition.training.checkpoint import write_json

    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "values": trial.values,
            "minutes": (trial.duration.total_seconds() / 60) if trial.duration else None,
            "params": trial.params,
            "reason": trial.user_attrs.get(REASON) or _beyond(search, trial),
            "run": trial.user_attrs.get("run"),
            "own": bool(trial.user_attrs.get("own")),
        }
        for trial in search.trials
    ]
    complete = any(trial.state.name == "COMPLETE" and allowed(trial) for trial in search.finished)
    front = len(search.study.objectives) > 1
    numbers = [trial.number for trial in best(search, None if front else 1)] if complete else []
    write_json(search.folder / TRIALS, {"objectives": search.study.objectives, "best": numbers, "trials": rows})
    return rows


def read_trials(folder: Path) -> dict[str, Any]:
    """What `write_trials` wrote: `objectives`, the numbers of the `best` trials, and `trials`.

    Raises:
        MaskfoldError: no trial has ended yet, or the file cannot be read.
    """
    path = folder / TRIALS
    try:
        record = read_record(path, AGAIN)
    except FileNotFoundError:
        raise MaskfoldError(
            f"No trial of the study {folder} has ended yet.",
            "Let `maskfold study` finish one; it writes the page itself when it ends.",
        ) from None
    try:
        if not all({"number", "state", "values", "params"} <= trial.keys() for trial in record["trials"]):
            raise ValueError("a trial lacks its number, state, values or params")
        record["objectives"] = [str(name) for name in record["objectives"]]
        record.setdefault("best", _best(record))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(path, error, AGAIN) from error
    return record


def _best(record: dict[str, Any]) -> list[int]:
    """The best trial in a file that does not name it, which also knows of no constraints."""
    complete = [trial for trial in record["trials"] if trial["state"] == "complete"]
    if not complete or len(record["objectives"]) > 1:
        return []
    sign = 1 if record["objectives"][0] in SMALLER else -1
    return [min(complete, key=lambda trial: sign * trial["values"][0])["number"]]


def _beyond(search: Search, trial: Any) -> str | None:
    """Which bounds a complete trial does not keep."""
    if trial.state.name != "COMPLETE":
        return None
    broken = [
        f"{name} is {excess + search.study.constraints[name]:.4g}, above {search.study.constraints[name]:g}"
        for name, excess in trial.constraints.items()
        if excess > 0 and name in search.study.constraints
    ]
    return ", ".join(broken) or None
