"""Measure the processor time of functions in alternation, for the scripts of this folder."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Ratio(NamedTuple):
    """Hold one row of the table of `all.py`.

    Attributes:
        subject: what is computed, and how much of it.
        seconds: Maskfold's processor seconds.
        rival: the other implementation.
        rival_seconds: the other implementation's processor seconds; nan if it is not installed.
        ratio: median over rounds of Maskfold's time divided by the rival's time in the same round.
    """

    subject: str
    seconds: float
    rival: str
    rival_seconds: float
    ratio: float


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Call functions in alternation, and return the processor seconds of each call, by the name of the function.

    A first round, as warm-up, is not measured. The seconds are those of all threads of this process, so that other load
    hardly changes them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare(subject: str, functions: Mapping[str, Callable[[], object]], rounds: int) -> list[Ratio]:
    """Measure functions in alternation, and return a row of the table for each function but the first.

    Args:
        subject: what is computed, and how much of it.
        functions: functions to compare, by name; the first is Maskfold's, the others are those of its rivals.
        rounds: number of calls of each function.
    """
    own, *rivals = alternate(functions, rounds).items()
    return [
        Ratio(
            subject,
            statistics.median(own[1]),
            name,
            statistics.median(seconds),
            statistics.median(mine / max(other, 1e-9) for mine, other in zip(own[1], seconds, strict=True)),
        )
        for name, seconds in rivals
    ]


def missing(ratios: list[Ratio], rival: str) -> list[Ratio]:
    """Return the table's rows for a rival that is not installed, one for each subject in `ratios`."""
    own = {one.subject: one.seconds for one in ratios}
    return [Ratio(subject, seconds, rival, math.nan, math.nan) for subject, seconds in own.items()]


def format_ratios(ratios: list[Ratio]) -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = ["| what | Maskfold, ms | rival | rival, ms | ratio |", "|---|---:|---|---:|---:|"]
    for one in ratios:
        is_missing = math.isnan(one.rival_seconds)
        time_text = "not installed" if is_missing else _format_ms(one.rival_seconds)
        ratio = "" if is_missing else f"{one.ratio:.2f}"
        lines.append(f"| {one.subject} | {_format_ms(one.seconds)} | {one.rival} | {time_text} | {ratio} |")
    return lines


def _format_ms(seconds: float) -> str:
    """Format seconds as milliseconds: with one decimal, or with two significant digits below 0.1 ms."""
    return f"{1000 * seconds:,.1f}" if seconds >= 1e-4 else f"{1000 * seconds:.2g}"
