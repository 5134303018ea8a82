"""Show a table of the folds and trials that run in this project.

The table is made only from the files in the folders of the runs. So it also works over ssh, for runs on Ray, and for
runs that other machines write to a shared folder.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from competition.errors import MaskfoldError
from competition.records import changed_tables, is_unedited, parse_json_object, parse_metrics_line
from competition.runs.fold import MEMBER_FOLDER, RESULT_FILE
from competition.runs.lock import is_alive, read_owner
from competition.text import format_number

if TYPE_CHECKING:
    from rich.console import RenderableType

RUNS_FOLDER = Path("mlruns") / "runs"
OUTPUT_FILE = "output.txt"  # equal to the names in `competition.training.fold_process`, whose imports are heavy
LOG_WIDTH = 160  # columns of the table if the output is not a terminal
TAIL_BYTES = 16_384  # number of bytes at the end of a file that contain its latest line
HEADER = ("fold", "state", "step", "a step", "ends", "score", "memory", "epoch", "last line")
PARTS = {
    "step": re.compile(r"(?:after )?step (\d+ of (?:about )?\d+)"),
    "epoch": re.compile(r"epoch (\d+)"),
    "pace": re.compile(r"([\d.]+ (?:s|min|h)) a step"),
    "ends": re.compile(r"ends about ((?:\d{4}-\d\d-\d\d )?\d\d:\d\d)"),
    "memory": re.compile(r"([\d.]+ GiB)"),
    "activity": re.compile(r"([a-z ]+: \d+ of \d+ cases)"),
}

State = Literal["running", "killed", "stopped", "finished", "starting", "waiting"]


@dataclass(frozen=True)
class MemberStatus:
    """Hold the progress of one fold (trained with one seed) as texts; an unknown value is an empty text.

    Attributes:
        name: name of the folder, e.g. `fold_0_seed_1`.
        state: `waiting` before the first start, `starting` until the fold's process takes the fold's lock, then
            `running`. At the end: `finished`; `stopped` if the process released the lock before the fold was finished;
            `killed` if the process ended without releasing the lock.
        step: number of finished steps and of all steps, e.g. `120 of 500`.
        pace: duration of a step.
        ends: estimated time of day at which training ends.
        score: score of the last validation, or of the finished fold.
        memory: peak memory of the GPU. Without a GPU, peak memory of the process.
        epoch: number of the epoch. While the fold does not train, its current work, e.g. `validating: 3 of 40 cases`.
        silent: seconds since a running fold wrote its last line; None if the fold does not run.
    """

    name: str
    state: State
    step: str = ""
    pace: str = ""
    ends: str = ""
    score: str = ""
    memory: str = ""
    epoch: str = ""
    silent: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """Hold the progress of a run.

    Attributes:
        name: experiment and hash; for a trial of a study, also the number of the trial.
        owner: the process that holds the run's lock; empty if the run is not locked.
        state: `running`, or `killed` if a process ended without releasing the run's or a fold's lock.
        members: the progress of each fold and seed that has a folder.
        machine: load of the GPUs, from the system metrics of the run; empty without a GPU.
    """

    name: str
    owner: str
    state: State
    members: list[MemberStatus]
    machine: str = ""


def watch_command(once: bool, seconds: float, root: Path = Path()) -> None:
    """Run `maskfold watch`; `competition.cli.commands_runs.watch` describes the arguments.

    Raises:
        MaskfoldError: the folder has no runs, or `seconds` is too small.
    """
    if not (root / RUNS_FOLDER).is_dir():
        raise MaskfoldError(
            f"This folder has no runs: {(root / RUNS_FOLDER).absolute()} does not exist.",
            "Change to the folder in which `maskfold cv` or `maskfold study` was started, and run the command there.",
        )
    if seconds < 0.5:
        raise MaskfoldError(f"--seconds: found {seconds:g}, expected at least 0.5.", "Correct --seconds.", status=2)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    if once or not console.is_terminal:
        console.print(_draw(read_active_runs(root)))
        return
    from rich.live import Live

    try:
        with Live(
            _draw(read_active_runs(root)), console=console, auto_refresh=False, vertical_overflow="visible"
        ) as live:
            while True:
                time.sleep(seconds)
                live.update(_draw(read_active_runs(root)), refresh=True)
    except KeyboardInterrupt:
        return  # the folds keep running; the last table stays on the terminal


def read_active_runs(root: Path = Path()) -> list[RunStatus]:
    """Return the runs in which a process works, followed by the runs whose process was killed.

    A run is left out if its folder is deleted during the call or cannot be read.
    """
    found = []
    for folder in sorted((root / RUNS_FOLDER).glob("*/*")):
        try:
            if folder.is_dir() and (status := read_run_status(folder)) is not None:
                found.append(status)
        except OSError:
            continue
    return sorted(found, key=lambda run: run.state != "running")


def read_run_status(folder: Path) -> RunStatus | None:
    """Return the status of a run, or None if the run is not active.

    A run is not active if no process works in it, and no process was killed in it.
    """
    members = [read_member_status(path) for path in _member_folders(folder)]
    owner = read_owner(folder)
    states = {member.state for member in members}
    if owner is not None and is_alive(owner):
        state: State = "running"
    elif "running" in states:
        state = "running"  # the command of the fold has ended, or runs on another machine
    elif owner is not None or "killed" in states:
        state = "killed"
    else:
        return None
    text = "" if owner is None else f"process {owner.process} on {owner.host}"
    return RunStatus(_run_name(folder), text, state, members, _machine(folder / "metrics.jsonl"))


def read_member_status(folder: Path) -> MemberStatus:
    """Return the status of a fold from its lock, its output, its metrics and its result."""
    score, memory, epoch = _last_metrics(folder / "metrics.jsonl")
    if (folder / RESULT_FILE).exists():
        result = _read_json(folder / RESULT_FILE)
        value = result.get("score")
        score = format_number(value) if isinstance(value, int | float) else score
        peak = result.get("peak_gib")
        memory = f"{peak:.1f} GiB" if isinstance(peak, int | float) else memory
        steps = str(result.get("steps", ""))
        return MemberStatus(
            folder.name, "finished", steps, score=score, memory=memory, epoch=str(result.get("epochs", ""))
        )
    owner = read_owner(folder)
    if owner is not None:
        state: State = "running" if is_alive(owner) else "killed"
    else:
        state = _state_without_owner(folder / OUTPUT_FILE)
    parts = _parse_lines(_tail(folder / OUTPUT_FILE))
    is_running = state == "running"
    return MemberStatus(
        folder.name,
        state,
        parts.get("step", ""),
        parts.get("pace", ""),
        parts.get("ends", "") if is_running else "",
        score,
        memory or parts.get("memory", ""),
        (parts.get("activity", "") if is_running else "") or parts.get("epoch", "") or epoch,
        _age(folder / OUTPUT_FILE) if is_running else None,
    )


def _state_without_owner(output: Path) -> State:
    """Return the state of a fold that no process has locked, from the fold's output file.

    If the file is missing, the state is `waiting`. If the file is empty, the state is `starting`: the fold's process
    is still importing libraries and has not taken the lock. Otherwise the state is `stopped`.
    """
    try:
        return "stopped" if output.stat().st_size else "starting"
    except OSError:
        return "waiting"


def _draw(runs: list[RunStatus]) -> RenderableType:
    """Return the table of all active runs; if there are none, return a sentence that says so."""
    if not runs:
        return "No fold runs in this project. `maskfold cv` and `maskfold study` start folds."
    table = Table(
        title=f"{time.strftime('%H:%M:%S')} · Ctrl-C closes this table; the folds continue", title_justify="left"
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("fold", "state") else "right")
    for number, run in enumerate(runs):
        if number:
            table.add_section()
        head = f"{run.name}: {run.owner or 'the command has ended'}"
        if run.state == "killed":
            head = f"{run.name}: {run.owner or 'a process'} was killed; to resume the run, repeat its command"
        table.add_row(head, style="bold" if run.state == "running" else "red")
        if run.machine:
            table.add_row(f"  {run.machine}")
        for member in run.members:
            style = "red" if member.state == "killed" else "dim" if member.state == "finished" else ""
            silent = "" if member.silent is None else f"{member.silent:.0f} s ago"
            cells = (member.step, member.pace, member.ends, member.score, member.memory, member.epoch, silent)
            table.add_row(f"  {member.name}", member.state, *cells, style=style)
    return table


# Files


def _member_folders(folder: Path) -> Iterator[Path]:
    paths = [path for path in folder.iterdir() if path.is_dir() and MEMBER_FOLDER.fullmatch(path.name)]
    return iter(sorted(paths, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split("_")]))


def _run_name(folder: Path) -> str:
    """Return a run's experiment and hash; for a trial of a study, append the trial's number.

    The number is read from the run's name in MLflow, which `shipped.json` contains.
    """
    record = _read_json(folder / "shipped.json")
    try:
        name = str(record["folders"]["."]["name"])
    except (LookupError, TypeError):
        name = ""
    trial = re.match(r"trial \d+", name)
    return f"{folder.parent.name}/{folder.name}" + (f" ({trial.group()})" if trial else "")


def _last_metrics(path: Path) -> tuple[str, str, str]:
    """Return the last score, peak memory and epoch in a fold's `metrics.jsonl`, as texts; a missing value is empty."""
    score = memory = epoch = ""
    for text in reversed(_tail(path)):
        line = parse_metrics_line(text.encode(), {"step": 0, "time": 0.0}) if text.strip() else None
        if line is None:
            continue
        epoch = epoch or f"{line.epoch:.0f}"
        if not score and "val/score" in line.metrics:
            score = format_number(line.metrics["val/score"])
        if not memory and "memory/peak_gib" in line.metrics:
            memory = f"{line.metrics['memory/peak_gib']:.1f} GiB"
        if score and memory:
            break
    return score, memory, epoch


def _machine(path: Path) -> str:
    """Return a text with the memory and load of each GPU, from the latest system metrics of a run."""
    for text in reversed(_tail(path)):
        line = parse_metrics_line(text.encode(), {"step": 0, "time": 0.0}) if text.strip() else None
        if line is None:
            continue
        numbers = {
            match.group(1): value
            for name, value in line.metrics.items()
            if (match := re.fullmatch(r"system/gpu_(\d+)_memory_usage_megabytes", name))
        }
        loads = {number: line.metrics.get(f"system/gpu_{number}_utilization_percentage") for number in numbers}
        return " · ".join(
            f"GPU {number}: {megabytes / 1024:.1f} GiB"
            + (f", {loads[number]:.0f} % busy" if loads[number] is not None else "")
            for number, megabytes in sorted(numbers.items())
        )
    return ""


def _parse_lines(lines: list[str]) -> dict[str, str]:
    """Return the parts of a fold's progress by name, each from the last line that contains it.

    The names are the keys of `PARTS`; a part that no line contains is left out. The part `activity` is also left out
    if a later line contains another part, because the activity has then ended.
    """
    parts: dict[str, str] = {}
    for line in reversed(lines):
        found = {name: match.group(1) for name, pattern in PARTS.items() if (match := pattern.search(line))}
        if parts:
            found.pop("activity", None)  # an activity counts only if it is in the latest line with progress
        parts = {**found, **parts}
        if {"step", "pace", "ends", "memory"} <= parts.keys():
            break
    return parts


def _tail(path: Path) -> list[str]:
    """Return the last complete lines of a file; an empty list if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return lines[1 if start else 0 : -1]


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = parse_json_object(path.read_bytes())
    except (OSError, ValueError, json.JSONDecodeError):
        return {}
    return plain if is_unedited(plain, path.name) and not changed_tables(path.parent, plain) else {}
