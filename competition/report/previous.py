"""The experiment's YAML, and what changed since the best run before it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import yaml

from competition.config import MaskfoldError
from competition.data.records import journal_lines, parsed
from competition.report import markup as html
from competition.report.markup import Html, element, paragraph, section
from competition.report.results import Results
from competition.scoring.score_table import read_scores
from competition.scoring.summary import Gain, gain_interval
from competition.training.runs import CvRun

CLASSES = {"+": "add", "-": "cut", "@": "at"}


@dataclass(frozen=True)
class Previous:
    """An earlier run of the same competition.

    Attributes:
        folder: of the run.
        score: from its `summary.json`.
        cases: how many cases it predicted out of fold.
    """

    folder: Path
    score: float
    cases: int

    @property
    def name(self) -> str:
        """`hippocampus-unet3d/2cb50ff146c0`."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def experiment_section(results: Results) -> Html:
    """The YAML as it was saved, and its difference to that of the previous best run."""
    run = results.run
    mine = (run.folder / "experiment.yaml").read_text(encoding="utf-8", errors="replace")
    best = previous_best(run)
    parts = [element("h3", "Difference to the previous best run")]
    if best is None:
        parts.append(paragraph(f"No earlier finished run of the competition {run.exp.competition.name} has a score."))
    else:
        parts.append(paragraph(_words(results, best)))
        theirs = (best.folder / "experiment.yaml").read_text(encoding="utf-8", errors="replace")
        name = f"{run.name}/{run.folder.name}"
        lines = list(difflib.unified_diff(key_lines(theirs), key_lines(mine), best.name, name, n=2, lineterm=""))
        parts.append(_coloured(lines) if lines else paragraph("The two YAML files say the same."))
    parts += [element("h3", "experiment.yaml, as it was saved"), element("pre", mine)]
    return section("experiment", "Experiment", *parts)


def key_lines(text: str) -> list[str]:
    """A YAML file with one key on each line, so that a difference is one of values and not of line breaks."""
    return list(_key_lines(yaml.safe_load(text), ""))


def _key_lines(plain: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _key_lines(value, indent + "  ")
        else:
            words = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
            words = words.strip().removesuffix("...").strip()  # PyYAML ends a lone scalar with three dots
            yield f"{indent}{key}: {words}"


def previous_best(run: CvRun) -> Previous | None:
    """The run with the best score of those that ended before this one: the same competition and metric, below the same
    folder of runs, all of its members finished."""
    end = ended(run.folder)
    found = []
    for path in sorted(run.folder.resolve().parent.parent.glob("*/*/summary.json")):
        folder = path.parent
        if folder == run.folder.resolve():
            continue
        try:
            summary = parsed(path.read_bytes())
            plain = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
            same = (plain["competition"]["name"], summary["metric"]) == (
                run.exp.competition.name,
                run.exp.competition.metric.name,
            )
            if same and summary["score"] is not None and _whole(folder, plain, summary) and ended(folder) < end:
                found.append(Previous(folder, float(summary["score"]), int(summary["cases"])))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            continue  # a run that is being written, or of another version
    return max(found, key=lambda one: one.score, default=None)


def ended(folder: Path) -> float:
    """When a run's last finished fold wrote its last metrics, in seconds since 1970; copies of a folder keep it."""
    times = [
        _last_time(place.parent / "metrics.jsonl") or place.stat().st_mtime for place in folder.glob("*/result.json")
    ]
    return max(times, default=float("inf"))


def _last_time(path: Path) -> float | None:
    lines = journal_lines(path)
    return lines[-1].time or None if lines else None


def _whole(folder: Path, plain: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Whether every fold and seed that the YAML asks for is finished."""
    import pandas as pd

    wanted = plain["folds"].get("run")
    folds = pd.read_csv(folder / "folds.csv")["fold"]
    numbers = {-1} if wanted == "full" else set(wanted) if wanted is not None else set(folds[folds >= 0].tolist())
    seeds = len(plain["seed"]) if isinstance(plain["seed"], list) else 1
    done = {(result["fold"], result["seed"]) for result in summary["folds"]}
    return {(fold, seed) for fold in numbers for seed in range(seeds)} <= done


def _words(results: Results, best: Previous) -> str:
    text = f"{best.name} scored {best.score:.4f} on {best.cases} cases."
    if results.table is None or isnan(results.score().value):
        return text
    gain, cases = paired(results, best.folder)
    if gain is None:
        return f"{text} It has no case in common with this run, which scored {results.score().value:.4f}."
    ends = "" if isnan(gain.low) else f" (95 % {gain.low:+.4f} to {gain.high:+.4f}, paired bootstrap)"
    return (
        f"{text} On the {cases} cases that both runs predicted, this run's score minus that one's is "
        f"{gain.value:+.4f}{ends}."
    )


def paired(results: Results, folder: Path) -> tuple[Gain | None, int]:
    """This run's score minus another's on the cases that both predicted, and how many there are."""
    exp, mine = results.run.exp, results.rows()
    try:
        theirs = read_scores(folder / "scores.csv")
        both = set(mine["id"]) & set(theirs["id"])
        if not both or set(mine["class"]) != set(theirs["class"]):
            return None, 0
        tables = [rows[rows["id"].isin(both)] for rows in (theirs, mine)]
        cases = results.run.cases
        groups = dict(zip(cases["id"], cases["group"], strict=True)) if exp.competition.group else None
        return gain_interval(tables[0], tables[1], exp.competition.metric, seed=exp.seeds[0], groups=groups), len(both)
    except (OSError, ValueError, KeyError, MaskfoldError):
        return None, 0


def _coloured(lines: list[str]) -> Html:
    def coloured(place: int, line: str) -> Html | str:
        named = place < 2 or line[0] not in CLASSES  # the first two lines name the files
        return line if named else element("span", line, class_=CLASSES[line[0]])

    return element("pre", html.joined([coloured(place, line) for place, line in enumerate(lines)], "\n"))
