"""`maskfold cv`: load, open the run, track it, train it, print the table."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from competition.cli.main import fail
from competition.cli.table import cv_table, left_out
from competition.config import load_experiment

if TYPE_CHECKING:
    from competition.config import Competition
    from competition.training.cv import CvSummary
    from competition.training.runs import CvRun

SHORT = 3.0  # s: a command that only prints a finished run's table is done by then
WIDE = 160  # columns where no terminal says how many there are: a log keeps its tables whole


def cross_validate(file: Path, overrides: list[str], new: bool, trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.cv`."""
    try:
        _cross_validate(file, overrides, new, trust)
    except KeyboardInterrupt as reason:
        why = str(reason) or "Ctrl-C"
        fail(f"stopped ({why}): the same command goes on from the last checkpoint", 143 if "SIGTERM" in why else 130)


def _cross_validate(file: Path, overrides: list[str], new: bool, trust: tuple[str, ...]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    exp = load_experiment(file, overrides, trust)
    signal.signal(signal.SIGTERM, _terminate)

    from competition.data.demo import ensure_demo

    if ensure_demo(exp.competition):
        console.print(f"made the demo competition {exp.competition.name} in {exp.competition.root}")

    from competition.tracking.shipper import Shipper
    from competition.training.cv import prepare_run, run_cv
    from competition.training.lock import alone
    from competition.training.runs import open_run
    from competition.training.seeds import seed_lines
    from competition.training.soup_choice import soup_lines

    run = open_run(exp, f"{exp.competition.name}-{file.stem}", new=new)
    console.print(f"{len(run.cases)} cases", soft_wrap=True)
    for note in _notes(run):
        console.print(f"note: {note}", soft_wrap=True, markup=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    run = prepare_run(run, say, trust)
    say(f"run {run.folder}")
    with alone(run.folder, SHORT, say), Shipper(run.folder, run.exp):
        summary = run_cv(run, say, trust)
        tuned = _tune(run, summary, say)
    console.print(cv_table(summary, run))
    for line in [*seed_lines(summary.seeds), *soup_lines(summary.soup), *tuned, *_baseline(run), *skipped_lines(run)]:
        say(line)
    say(f"Files: {run.folder}")
    say(_next(file, exp.competition, overrides))
    say("or:   make ui   (compare runs on http://127.0.0.1:5000)")


def skipped_lines(run: CvRun) -> list[str]:
    """What a score does not speak of: the cases that were left out."""
    from competition.training.runs import SKIPPED

    ids = [case for case, _ in run.skipped]
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return [f"{left_out(run)}: {', '.join(ids[:5])}{more}; why is in {run.folder / SKIPPED}"] if ids else []


def _next(file: Path, comp: Competition, overrides: list[str]) -> str:
    """What to type after training: where the host wants no file, label files are predicted."""
    named = shlex.join([str(file), *overrides])
    if comp.test is None:
        return f"Next: maskfold report {named}   (one page to look at)"
    if comp.submission.sample is None and comp.submission.profile is None:
        images = comp.test.images if isinstance(comp.test.images, str) else next(iter(comp.test.images.values()))
        folder = comp.root / images.partition("{")[0].rpartition("/")[0]
        return (
            f"Next: maskfold predict {named} --images {shlex.quote(str(folder))} -o submissions/{comp.name}   "
            "(label files of the test cases)"
        )
    return f"Next: maskfold submit {named}   (predicts the test cases and writes the CSV)"


def _tune(run: CvRun, summary: CvSummary, say: Callable[[str], None]) -> list[str]:
    """Where the experiment asks for it and all folds are there: what post-processing is worth."""
    if not run.exp.postprocess.tune or len({result["fold"] for result in summary.folds} - {-1}) < len(run.numbers()):
        return []
    from competition.submission.blend import Blend
    from competition.submission.expected import expect

    say("searching post-processing steps on the out-of-fold predictions; Ctrl-C leaves the run as it is")
    tuned = expect(Blend((run,), (1.0,)), summary.cases, say).tuned
    return tuned.lines() if tuned is not None else []


def _notes(run: CvRun) -> list[str]:
    """What a user should know of the cases before hours go by."""
    left_out = [f"case {case} is left out: {reason}" for case, reason in run.cases.attrs.get("skipped", [])]
    conflicting = run.folds.attrs.get("conflicting", [])
    unlabelled = sum(json.loads(masks).get("rows") == [] for masks in run.cases["masks"])
    if unlabelled:
        left_out.append(
            f"{unlabelled} of {len(run.cases)} cases have no mask in {run.exp.competition.train.rle}; "
            "they count as empty"
        )
    return left_out + [
        f"{', '.join(ids)} have the same image{' but different masks' if ids in conflicting else ''}; they stay in one fold"
        for ids in run.folds.attrs.get("duplicates", [])
    ]


def _baseline(run: CvRun) -> list[str]:
    """On a demo, what a threshold alone would score: a network has to be worth its time."""
    from competition.training.baseline import baseline_lines

    return baseline_lines(run)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("SIGTERM")
