"""Read and write JSON records, and parse the lines of a `metrics.jsonl`.

A record is a file that contains one JSON object. Some records contain a digest of their own content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from competition.errors import MaskfoldError
from competition.io import atomic_write, sha256_of_file

RESTORE_HINT = (
    "Restore the file from a backup. Or delete the file, and repeat the command, which writes the file again."
)
# Key of the digests of the record itself and of its tables: {"digests": {"summary.json": …, "scores.csv": …}}
DIGESTS_KEY = "digests"
SUBMISSION_DIGEST = "submission"  # key of the own digest of the JSON next to a submission, which the user may rename
# Maximum of a step and of a time in ms, because every JSON reader represents integers up to this one exactly.
MAX_NUMBER = 2**53


def read_record(path: Path, hint: str = RESTORE_HINT) -> dict[str, Any]:
    """Read a JSON file that contains one object.

    Args:
        path: path of the file.
        hint: what the user can do if the file is damaged.

    Raises:
        FileNotFoundError: the file is missing.
        MaskfoldError: the file is damaged.
    """
    try:
        return parse_json_object(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged_error(path, error, hint) from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, with null for each NaN, because JSON has no NaN.

    A score is NaN if no case defines it: the class is in no truth and no prediction, and `metric.both_empty` is null.

    Raises:
        ValueError: a number is infinite.
    """
    content = (json.dumps(nan_to_none(data), indent=1, allow_nan=False) + "\n").encode()
    atomic_write(path, lambda file: file.write(content), len(content))


def nan_to_none(data: Any) -> Any:
    """Return a copy of JSON data with None for each NaN.

    Example:
        >>> nan_to_none({"score": float("nan"), "folds": [0.5, float("nan")]})
        {'score': None, 'folds': [0.5, None]}
    """
    if isinstance(data, dict):
        return {key: nan_to_none(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [nan_to_none(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None if it is NaN or infinite (as an end of a confidence interval may be), for use in JSON."""
    return float(value) if math.isfinite(value) else None


def parse_json_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the content is not JSON (NaN is not JSON), not an object, or nested too deeply.
    """
    try:
        plain = json.loads(content, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(plain, dict):
        raise ValueError(f"found a {type(plain).__name__}, expected an object")
    return plain


def damaged_error(path: Path, error: object, hint: str = RESTORE_HINT) -> MaskfoldError:
    """Return the error for a record that cannot be read or has unexpected content."""
    reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
    return MaskfoldError(f"{path} is damaged: {reason}.", hint)


def _reject_constant(constant: str) -> float:
    raise ValueError(f"found {constant}, which is not JSON")


# Records with a digest of their own content, so that an edited number is not mistaken for a result


def with_own_digest(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of a record that also contains a digest of the record's content.

    Args:
        plain: the record as JSON data; NaN becomes None. If it has the key `digests`, the value contains digests of
            other files.
        name: the key of the digest in `digests`; usually the name of the record's file.

    Example:
        >>> record = with_own_digest({"score": 0.5}, "result.json")
        >>> is_unedited(record, "result.json"), is_unedited({**record, "score": 0.9}, "result.json")
        (True, False)
    """
    content = json.loads(json.dumps(nan_to_none(dict(plain))))  # as the file will be read, e.g. with text as keys
    return {**content, DIGESTS_KEY: {**(content.get(DIGESTS_KEY) or {}), name: _digest(content, name)}}


def is_unedited(plain: Mapping[str, Any], name: str) -> bool:
    """Return whether a record was not edited since it was written; a record without a digest is accepted.

    Args:
        plain: the record, as read from its file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
    """
    digests = plain.get(DIGESTS_KEY)
    expected = digests.get(name) if isinstance(digests, dict) else None
    return expected is None or expected == _digest(plain, name)


def check_unedited(path: Path, plain: Mapping[str, Any], name: str, hint: str) -> None:
    """Check that a record was not edited since it was written; a record without a digest is accepted.

    Args:
        path: the record's file, for the message.
        plain: the record, as read from its file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
        hint: what the user can do if the record was changed.

    Raises:
        MaskfoldError: the record was changed after it was written.
    """
    if not is_unedited(plain, name):
        raise MaskfoldError(f"{path} was edited after Maskfold wrote it: its content does not match its digest.", hint)


def read_unedited_record(path: Path, name: str, hint: str = RESTORE_HINT) -> dict[str, Any]:
    """Read a record, and check that it was not edited.

    Args:
        path: the record's JSON file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
        hint: what the user can do if the record is damaged or was changed.

    Raises:
        FileNotFoundError: the file is missing.
        MaskfoldError: the file is damaged, or was changed after it was written.
    """
    plain = read_record(path, hint)
    check_unedited(path, plain, name, hint)
    return plain


def changed_tables(folder: Path, plain: Mapping[str, Any]) -> list[str]:
    """Return the names of the tables in a record's folder whose content does not match the record's digests.

    A record that was copied from another folder still matches its own digest, but not the tables of this folder. Tables
    that were deleted, e.g. to save space, are not compared.

    Args:
        folder: the folder of the record and its tables.
        plain: the record, as read from its file. Digests of files other than CSV and TSV are ignored.
    """
    digests = plain.get(DIGESTS_KEY)
    return [
        name
        for name, expected in (digests.items() if isinstance(digests, dict) else ())
        if name == Path(name).name and name.endswith((".csv", ".tsv"))
        if (folder / name).is_file() and sha256_of_file(folder / name) != expected
    ]


def _digest(plain: Mapping[str, Any], name: str) -> str:
    """Return the digest of a record's content; if the record contains its own digest, this digest is left out."""
    others = {key: value for key, value in (plain.get(DIGESTS_KEY) or {}).items() if key != name}
    return json_digest({**plain, DIGESTS_KEY: others})


def json_digest(data: Any) -> str:
    """Return the SHA-256 of JSON data as 64 hexadecimal digits, independent of the order of keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# Lines of a `metrics.jsonl`


class MetricsLine(NamedTuple):
    """Hold a line of a `metrics.jsonl`, which training writes.

    Attributes:
        step: number of optimiser steps.
        epoch: number of epochs, which may be a fraction.
        time: seconds since 1970.
        metrics: the metrics by name; only metrics whose values are numbers.
    """

    step: int
    epoch: float
    time: float
    metrics: dict[str, float]


def parse_metrics_line(content: bytes, defaults: Mapping[str, float] = MappingProxyType({})) -> MetricsLine | None:
    """Parse a line of a `metrics.jsonl`; return None if a kill truncated the line, or if it is damaged.

    A metric that is infinite becomes NaN.

    Args:
        content: the line.
        defaults: default values of the keys `step`, `epoch`, `time` and `metrics`. A line that lacks a key without a
            default counts as damaged.
    """
    try:
        plain = {**defaults, **json.loads(content)}
        step, metrics, time = plain["step"], plain["metrics"], float(plain["time"])
        epoch = float(plain["epoch"])
        valid = type(step) is int and 0 <= step < MAX_NUMBER and 0 <= time < MAX_NUMBER / 1000 and math.isfinite(epoch)
        return MetricsLine(step, epoch, time, _to_floats(metrics)) if valid else None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def read_metrics_lines(path: Path) -> list[MetricsLine]:
    """Read the intact lines of a `metrics.jsonl`, in the order of the file.

    A missing step or time becomes 0. The list is empty if the file cannot be read.
    """
    try:
        lines = [parse_metrics_line(line, {"step": 0, "time": 0.0}) for line in path.read_bytes().split(b"\n")]
    except OSError:
        return []
    return [line for line in lines if line is not None]


def _to_floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value) if math.isfinite(value) else math.nan
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
