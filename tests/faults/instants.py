"""Draw twenty instants at which a cross-validation is killed, and compare the results of two runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from competition.runs.oof import OofStore
from tests.faults.toy import EPOCHS, STEPS, leftovers, the_run, tracked

# Overrides that together cover fp32 and bf16, the schedules plateau, onecycle and cosine, EMA, gradient accumulation,
# averaged weights and best weights.
CONFIGURATIONS: dict[str, list[str]] = {
    "fp32 plateau accumulate": [
        "training.precision=fp32",
        "schedule={name: plateau, patience: 1, factor: 0.5}",
        "training.accumulate=2",
        "training.ema=0",
        "training.average=2",
    ],
    "bf16 onecycle ema": ["training.precision=bf16", "schedule={name: onecycle}", "training.ema=0.9"],
    "fp32 cosine ema accumulate best": [
        "training.precision=fp32",
        "schedule={name: cosine, warmup: 0.2}",
        "training.ema=0.8",
        "training.accumulate=2",
        "training.weights=best",
        "training.on_nan=restore",
    ],
}


def attempts(seed: int, database: bool) -> list[list[dict[str, Any]]]:
    """Return the kills of twenty starts of a run with two folds, in the format of `tests.faults.kills.arm`.

    The kinds of instants are in the order in which a run reaches them, so that every start is killed. If the command is
    to be killed while a fold trains, the fold waits for this after its first epoch.

    Args:
        seed: seed of the random instants.
        database: whether the run makes MLflow's database.
    """
    draw = random.Random(seed)

    def kill(who: str, at: list[str], most: int = 1, **more: Any) -> list[dict[str, Any]]:
        place, how = draw.choice(at), draw.choice(["before", "after", draw.randint(1, 3000)])
        if place == "fold starts" and how == "after":  # the call ends together with the fold's process
            how = "before"
        return [{"who": who, "at": place, "nth": draw.randint(1, most), "how": how, **more}]

    def held(fold: str) -> list[dict[str, Any]]:
        return [{"who": fold, "at": "step", "nth": STEPS + 1, "how": "hold"}]

    disk = ["checkpoint", "checkpoint renamed", "file synced"]
    return [
        kill("command", ["prepared"], most=6),
        kill("command", ["making the database"], most=20) + held("fold_0")
        if database
        else kill("command", ["run written", "making a run"]) + held("fold_0"),
        kill("fold_0", ["fold starts", "fold begins"]),
        kill("fold_0", ["step"], most=3),
        kill("fold_0", disk, most=2),
        kill("command", ["points", "state"], most=2) + held("fold_0"),  # the runs may have been made before
        kill("fold_0", ["validation", "case"]),
        kill("fold_0", disk, most=2),
        kill("fold_0", ["journal"], both=draw.random() < 0.5),
        kill("fold_0", ["out of fold"], most=2),
        kill("fold_0", ["out of fold renamed"]),
        kill("fold_0", ["scores", "picture", "result"]),
        kill("fold_1", ["fold starts", "fold begins"]),
        kill("fold_1", ["step"], most=3, both=True),
        kill("command", ["state", "files", "look"], most=3) + held("fold_1"),
        kill("fold_1", ["case", "validation"]),
        kill("fold_1", [*disk, "journal"], both=draw.random() < 0.5),
        kill("fold_1", ["weights"]),
        kill("fold_1", ["out of fold", "out of fold renamed"], both=draw.random() < 0.5),
        kill("command", ["summary", "closing"]),
    ]


def expected(kills: list[dict[str, Any]]) -> tuple[int, str]:
    """Return the expected exit status of a command with these kills, and a text that it prints."""
    first = kills[0]
    return (-9, "") if first["who"] == "command" or first.get("both") else (1, "was killed (SIGKILL)")


def differences(one: Path, other: Path) -> list[str]:
    """Return the differences between two projects with one run each, as lines of text; empty if there are none.

    Weights, scores and predictions must be equal bit for bit. Times and memory are ignored.
    """
    first, second = the_run(one), the_run(other)
    found = [
        f"{name} is missing"
        for folder in (first, second)
        for fold in ("fold_0", "fold_1")
        for name in ("weights.safetensors", "result.json")
        if not (folder / fold / name).exists()
    ]
    if found:
        return found
    for fold in ("fold_0", "fold_1"):
        for name in ("weights.safetensors", "scores.csv"):
            if (first / fold / name).read_bytes() != (second / fold / name).read_bytes():
                found.append(f"{fold}/{name}")
        if _lines(first / fold) != _lines(second / fold):
            found.append(f"{fold}/metrics.jsonl")
        stores = [OofStore(folder / fold / "oof") for folder in (first, second)]
        if not stores[0].ids() or stores[0].ids() != stores[1].ids():
            found.append(f"{fold}: cases predicted out of fold")
            continue
        found += [
            f"{fold}: prediction of {case}"
            for case in stores[0].ids()
            if not np.array_equal(stores[0].read(case).view(np.uint16), stores[1].read(case).view(np.uint16))
        ]
    if _summary(first) != _summary(second):
        found.append(f"summary.json: {_summary(first)} and {_summary(second)}")
    return found


def faults(cwd: Path) -> list[str]:
    """Return the faults of a project after all kills, as lines of text; empty if there are none.

    Faults are temporary files, repeated or missing metrics in MLflow or in `metrics.jsonl`, and unfinished MLflow runs.
    """
    run, held = the_run(cwd), tracked(cwd)
    found = [f"left behind: {path}" for path in leftovers(cwd / "mlruns")]
    for place in (".", "fold_0", "fold_1"):
        if [one["status"] for one in held.get(place, [])] != ["FINISHED"]:
            found.append(f"{place} is in MLflow as {held.get(place)}")
    for fold in ("fold_0", "fold_1"):
        journal = [json.loads(line) for line in (run / fold / "metrics.jsonl").read_text().splitlines()]
        wanted = [
            (f"system/{name}" if name.startswith(("time/", "memory/")) else name, line["step"], value)
            for line in journal
            for name, value in line["metrics"].items()
        ]
        names, steps = {name for name, *_ in wanted}, {line["step"] for line in journal}
        points = [
            (name, step, value)
            for one in held.get(fold, [])
            for name, step, value, _ in one["points"]
            if name in names and step in steps
        ]
        for metric in sorted({(name, step) for name, step, _ in [*points, *wanted]}):
            told, kept = [
                [value for name, step, value in values if (name, step) == metric] for values in (points, wanted)
            ]
            if len(kept) != 1 or told != kept:  # seconds too: a line that went to MLflow is never written anew
                found.append(f"{fold}: {metric[0]} of step {metric[1]} is {told} in MLflow, {kept} in the journal")
        if [line["step"] for line in journal if "train/loss" in line["metrics"]] != [
            STEPS * (n + 1) for n in range(EPOCHS)
        ]:
            found.append(f"{fold}: the journal has the steps {[line['step'] for line in journal]}")
    return found


def _lines(folder: Path) -> list[tuple[int, int, dict[str, float]]]:
    """Return step, epoch and metrics of each line of a fold's `metrics.jsonl`, without times and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (
            line["step"],
            line["epoch"],
            {name: value for name, value in line["metrics"].items() if not name.startswith(("time/", "memory/"))},
        )
        for line in lines
    ]


def _summary(folder: Path) -> dict[str, Any]:
    """Return a run's `summary.json` without times, memory, and the digest that depends on them."""
    said = json.loads((folder / "summary.json").read_text())
    assert said["score"] is not None and said["cases"] == 6
    folds = [
        {key: value for key, value in fold.items() if key not in ("minutes", "peak_gib")} for fold in said["folds"]
    ]
    digests = {name: digest for name, digest in said["digests"].items() if name != "summary.json"}  # of minutes, too
    return {**said, "folds": folds, "digests": digests}
