"""Write YAML with the reason for each key as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from competition.errors import printable

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
OTHER_TYPES = re.compile(r"(true|false|yes|no|on|off|null|none|y|n|nan|inf)", re.IGNORECASE)
WIDTH = 120
COLUMN = 48  # comments start in this column if the value before them is short enough


@dataclass(frozen=True)
class Line:
    """Hold one key of a YAML file.

    Attributes:
        path: the key, preceded by the keys above it.
        value: value as plain data.
        reason: reason for the value, for a comment; an empty text writes no comment.
    """

    path: tuple[str, ...]
    value: Any
    reason: str = ""


def key_path(dotted: str) -> tuple[str, ...]:
    """Split a dotted key such as `training.epochs` into its parts."""
    return tuple(dotted.split("."))


def to_yaml(lines: Sequence[Line], title: Sequence[str]) -> str:
    """Return keys as YAML; the lines of a section must be adjacent.

    Args:
        lines: the keys with values and reasons.
        title: comment lines at the beginning.
    """
    text = [f"# {_one_line(line)}" for line in title]
    above: tuple[str, ...] = ()
    for line in lines:
        *sections, key = line.path
        for depth, section in enumerate(sections):
            if tuple(sections[: depth + 1]) != above[: depth + 1]:
                text.append(f"{'  ' * depth}{format_value(section)}:")
                above = tuple(sections[: depth + 1])
        above = tuple(sections)
        indent = "  " * len(sections)
        one_line = f"{indent}{format_value(key)}: {format_value(line.value)}"
        if len(one_line) <= WIDTH or not isinstance(line.value, dict):
            text += _with_reason(one_line, indent, line.reason)
            continue
        text += _with_reason(f"{indent}{format_value(key)}:", indent, line.reason)  # one line for each of its keys
        text += [f"{indent}  {format_value(str(name))}: {format_value(item)}" for name, item in line.value.items()]
    return "\n".join(text) + "\n"


def _with_reason(text: str, indent: str, reason: str) -> list[str]:
    """Return a line with its reason as a comment; if the line would be too long, put the comment above it."""
    reason = _one_line(reason)
    if not reason:
        return [text]
    for joined in (f"{text.ljust(COLUMN)}  # {reason}", f"{text}  # {reason}"):
        if len(joined) <= WIDTH:
            return [joined]
    words, above, current = reason.split(), [], f"{indent}#"
    for word in words:
        if len(current) + 1 + len(word) > WIDTH and current.strip() != "#":
            above.append(current)
            current = f"{indent}#"
        current += f" {word}"
    return [*above, current, text]


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def format_value(value: Any) -> str:
    """Return plain data as YAML on one line; quote text that YAML would read as another type or as syntax.

    Example:
        >>> format_value({"id": "on", "images": "{id}.png", "k": 5, "rate": 0.001})
        '{id: "on", images: "{id}.png", k: 5, rate: 1.0e-3}'
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{format_value(str(key))}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and not OTHER_TYPES.fullmatch(text):
        return text
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False)
    )


def _format_float(value: float) -> str:
    if value and abs(value) < 0.01:
        digits, _, exponent = f"{value:e}".partition("e")
        digits = digits.rstrip("0")
        return f"{digits + '0' if digits.endswith('.') else digits}e{int(exponent)}"
    return repr(value)
