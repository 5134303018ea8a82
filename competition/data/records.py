"""What the project writes down for itself as JSON, read as if anybody could have damaged it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from competition.config.errors import MaskfoldError

MOST = 2**53  # of a step and of a time in ms: whole numbers that every program takes as they are
AGAIN = "Copy it back from elsewhere, or delete it: the same command makes it again."


def parsed(content: bytes | str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ValueError: it is no JSON (NaN is none either), no object, or nested too deeply.
    """
    try:
        plain = json.loads(content, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(plain, dict):
        raise ValueError(f"it holds a {type(plain).__name__} and no object")
    return plain


def read_record(path: Path, cure: str = AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        MaskfoldError: it is damaged.
    """
    try:
        return parsed(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged(path, error, cure) from error


def damaged(path: Path, error: object, cure: str = AGAIN) -> MaskfoldError:
    """The error for a record that cannot be read, or does not hold what it should."""
    why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
    return MaskfoldError(f"{path} is damaged: {why}.", cure)


class Line(NamedTuple):
    """A line of a `metrics.jsonl`: time in s since 1970, metrics as numbers; one that is no number is left out."""

    step: int
    epoch: float
    time: float
    metrics: dict[str, float]


def journal_line(content: bytes, silent: Mapping[str, float] = MappingProxyType({})) -> Line | None:
    """A line of a `metrics.jsonl`; None for one that a kill cut in two, or a disk made unreadable.

    A metric that is not finite becomes nan.

    Args:
        content: the line.
        silent: what holds where the line does not say it; nothing: all of a line's keys have to be there.
    """
    try:
        plain = {**silent, **json.loads(content)}
        step, metrics, time = plain["step"], plain["metrics"], float(plain["time"])
        epoch = float(plain["epoch"])
        sound = type(step) is int and 0 <= step < MOST and 0 <= time < MOST / 1000 and math.isfinite(epoch)
        return Line(step, epoch, time, _numbers(metrics)) if sound else None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def journal_lines(path: Path) -> list[Line]:
    """The lines of a `metrics.jsonl` that can be read, for readers who can do without step and time (then 0); none where
    it is not there."""
    try:
        found = [journal_line(line, {"step": 0, "time": 0.0}) for line in path.read_bytes().split(b"\n")]
    except OSError:
        return []
    return [line for line in found if line is not None]


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) if math.isfinite(value) else math.nan for name, value in metrics.items()
            if isinstance(value, int | float)}


def _refuse(word: str) -> float:
    raise ValueError(f"it holds {word}")
