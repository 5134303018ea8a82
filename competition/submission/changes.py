"""What is different between two uploads."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from competition.submission.ledger import Record


def changes(before: Record | None, after: Record) -> list[str]:
    """What an upload changed against the one before it, in words: runs, weights, keys of the YAML, post-processing.

    A run that went and a run that came are taken for each other where they are of one experiment, or where they are the
    only ones; then their keys are compared.
    """
    if before is None:
        return ["first"]
    if after.sha256 and before.sha256 == after.sha256:
        return ["the same file"]
    before, after = _short(before), _short(after)
    words = _runs_words(before, after) if before.runs and after.runs else []
    if after.notebook is not None and after.notebook != before.notebook:
        words.append(f"notebook {after.notebook['kernel']} version {after.notebook['version']}")
    if not words:
        words.append("another file of the same runs" if after.runs and before.runs else "not known")
    return words


def _runs_words(before: Record, after: Record) -> list[str]:
    """What changed between two uploads whose runs are known."""
    words: list[str] = []
    gone = {run["hash"]: run for run in before.runs}
    came = {run["hash"]: run for run in after.runs}
    kept = gone.keys() & came.keys()
    pairs = _pairs([gone[name] for name in gone if name not in kept], [came[name] for name in came if name not in kept])
    for old, new in pairs:
        if old is not None and new is not None:
            words += _pair_words(old, new, before, after)
        elif old is not None:
            words.append(f"− {_name(old)}")
        elif new is not None:
            words.append(f"+ {_name(new)}")
    words += [
        f"weight of {_name(came[name])}: {gone[name]['weight']:g} → {came[name]['weight']:g}"
        for name in came
        if name in kept and abs(gone[name]["weight"] - came[name]["weight"]) > 1e-9
    ]
    if before.postprocess != after.postprocess:
        words.append(f"post-processing: {steps_words(before.postprocess)} → {steps_words(after.postprocess)}")
    return words


def steps_words(settings: dict[str, Any] | None) -> str:
    """The steps of a `postprocess` section in a few words; `none` without any."""
    if not settings:
        return "none"
    steps = settings.get("steps") or []
    found = (
        [f"{cls}: {_steps(several)}" for cls, several in steps.items() if several]
        if isinstance(steps, dict)
        else ([_steps(steps)] if steps else [])
    )
    found += [key for key in ("number", "forbid_overlap") if settings.get(key)]
    return "; ".join(found) or "none"


def _steps(steps: list[dict[str, Any]]) -> str:
    said = []
    for step in steps:
        for name, value in step.items():
            if value is not None and value is not False:
                said.append(name if value is True else f"{name} {json.dumps(value)}")
    return ", ".join(said)


def _pairs(
    gone: list[dict[str, Any]], came: list[dict[str, Any]]
) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    for new in list(came):
        old = next((one for one in gone if one["experiment"] == new["experiment"]), None)
        if old is None and len(gone) == len(came) == 1:
            old = gone[0]
        if old is not None:
            gone, came = [one for one in gone if one is not old], [one for one in came if one is not new]
            pairs.append((old, new))
    return [*pairs, *((old, None) for old in gone), *((None, new) for new in came)]


def _pair_words(old: dict[str, Any], new: dict[str, Any], before: Record, after: Record) -> list[str]:
    """One run in the place of another: its keys where both are known."""
    keys = before.keys.get(old["hash"]), after.keys.get(new["hash"])
    head = f"{_name(old)} → {_name(new)}"
    if keys[0] is None or keys[1] is None:
        return [head]
    found = []
    for key in dict.fromkeys([*keys[0], *keys[1]]):
        one, other = keys[0].get(key), keys[1].get(key)
        if one != other:
            found.append(f"{key}: {one if one is not None else '–'} → {other if other is not None else '–'}")
    weight = [] if abs(old["weight"] - new["weight"]) < 1e-9 else [f"weight {old['weight']:g} → {new['weight']:g}"]
    return [head, *found, *weight]


def _short(record: Record) -> Record:
    """With experiments by their own names, as `unet3d` for `hippocampus-unet3d`."""
    return replace(
        record,
        runs=[
            {**run, "experiment": str(run["experiment"]).removeprefix(f"{record.competition}-")} for run in record.runs
        ],
    )


def _name(run: dict[str, Any]) -> str:
    return f"{run['experiment']}/{run['hash']}"
