"""Names and values as MLflow accepts them."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 250
LONGEST_PARAMETER = 6000
LONGEST_TAG = 8000
TECHNICAL = frozenset({"epochs", "steps", "minutes", "peak_gib", "threads", "devices"})  # of a fold's result


def mlflow_name(name: str) -> str:
    """A metric's or parameter's name: letters, digits, `_ - . /` and space.

    Where something had to be replaced, four digits that follow from the whole name are added, so that the classes
    `T1+` and `T1*` stay apart.

    Example:
        >>> mlflow_name("val/dice/left ventricle")
        'val/dice/left ventricle'
        >>> mlflow_name("val/dice/T1+")
        'val/dice/T1_-fc19'
    """
    parts = [part if part.strip(".") else "_" for part in re.sub(r"[^\w\-. /]", "_", name).split("/")]
    legal = "/".join(parts)
    if legal == name and len(name) <= LONGEST_NAME:
        return name
    return f"{legal[: LONGEST_NAME - 5]}-{zlib.crc32(name.encode()) & 0xFFFF:04x}"


def metric_name(name: str) -> str:
    """A metric's name in MLflow; time, memory and the like go to its page for system metrics.

    Example:
        >>> metric_name("val/dice"), metric_name("time/epoch_seconds"), metric_name("minutes")
        ('val/dice', 'system/time/epoch_seconds', 'system/minutes')
    """
    technical = name.startswith(("time/", "memory/")) or name in TECHNICAL
    return mlflow_name(f"system/{name}" if technical else name)


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """The leaves of a YAML tree as MLflow parameters, named as on the command line.

    Lists of plain values are one value; lists of sections are numbered. Values longer than MLflow takes are cut; the
    whole of them is in the artifact `experiment.yaml`.

    Example:
        >>> flatten({"optimizer": {"args": {"lr": 0.001}}, "patch": {"size": [40, 56]}, "loss": [{"weight": 1}]})
        {'optimizer.args.lr': '0.001', 'patch.size': '[40, 56]', 'loss.0.weight': '1'}
    """
    leaves: dict[str, str] = {}
    _collect(tree, "", leaves)
    return leaves


def _collect(value: Any, key: str, leaves: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            _collect(inner, f"{key}.{name}" if key else str(name), leaves)
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            _collect(inner, f"{key}.{number}", leaves)
    else:
        leaves[mlflow_name(key)] = shorten(_text(value), LONGEST_PARAMETER)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def shorten(text: str, longest: int) -> str:
    """The text, cut to `longest` characters with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 2] + " …"


def numbers_in(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a result file as metrics: nested names are joined by `_`; text, lists and nulls are left out.

    Example:
        >>> numbers_in({"score": 0.9, "dice": {"anterior": 0.88, "posterior": None}, "device": "cpu"})
        {'score': 0.9, 'dice_anterior': 0.88}
    """
    numbers: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            numbers.update(numbers_in(value, f"{prefix}{name}_"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


def description(result: Mapping[str, Any]) -> str:
    """A sentence for the top of a run's page in MLflow, from its summary with a score."""
    text = f"**{result['score']:.4f}** {result.get('metric', 'score')}"
    if result.get("low") is not None and result.get("high") is not None:
        text += f" (95 % interval {result['low']:.4f} to {result['high']:.4f})"
    return text + (f" on {result['cases']} out-of-fold cases" if result.get("cases") else "")
