"""Convert pydantic errors to messages about the YAML.

A message contains the location, the key, the expected and the found value, and the nearest known key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from competition.config.competition import Competition
from competition.config.postprocess import StepConfig
from competition.config.yaml import KeyPath, YamlDocument
from competition.errors import MaskfoldError
from competition.text import format_count, join_or, nearest_names

TYPE_NAMES = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "truth values"),
    Path: ("a path", "paths"),
}
LIMIT_TEXTS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} or fewer entries",
    "string_pattern_mismatch": "text of the form {pattern}",
    "finite_number": "a finite number",
}
MAX_SHOWN_KEYS = 12
MAX_SHOWN_CHARACTERS = 60
# Maximum number of problems in a message. A YAML file of another program would cause thousands of errors, each with a
# search for the nearest key.
MAX_SHOWN_ERRORS = 50


@dataclass
class Problem:
    """Hold one pydantic error, and what the schema says about the key that caused the error.

    Attributes:
        error: the error.
        path: the key's path in the YAML. Pydantic's `loc` also contains names of union members, which this path omits.
        expected: the types that the key's value may have.
        section: the model class that has the key as a field; None if no model has it.
        union_members: one entry for each key along the path whose type is a union: (path of the key, types of the
            union, type for which pydantic reported the error).
    """

    error: ErrorDetails
    path: KeyPath = ()
    expected: list[Any] = field(default_factory=list)
    section: type[BaseModel] | None = None
    union_members: list[tuple[KeyPath, list[Any], str]] = field(default_factory=list)

    @property
    def is_type_error(self) -> bool:
        """Whether the value has the wrong type, rather than the wrong size or content."""
        return self.error["type"].endswith("_type") or self.error["type"] == "literal_error"


def format_validation_error(error: ValidationError, model: type[BaseModel], document: YamlDocument) -> MaskfoldError:
    """Convert all pydantic errors to one `MaskfoldError` that locates each key.

    Args:
        error: the error raised by `model.model_validate(document.tree)`.
        model: the schema that was checked, `Competition` or `Experiment`.
        document: the YAML document that does not fit the schema.

    Returns:
        The error, with status 2.
    """
    problems = _select_union_members([_locate(details, model) for details in error.errors(include_url=False)])
    lines = list(dict.fromkeys(_format_problem(problem, document) for problem in problems[:MAX_SHOWN_ERRORS]))
    if len(lines) == 1:
        return MaskfoldError(f"{lines[0]}.", "Correct this key, then repeat the command.", status=2)
    hidden = max(0, len(problems) - MAX_SHOWN_ERRORS)
    listed = "".join(f"\n  {line}." for line in lines) + (
        f"\n  … and {format_count(hidden, 'more key')}." if hidden else ""
    )
    return MaskfoldError(
        f"{document.file}: {len(lines) + hidden} invalid keys.{listed}\n",
        "Correct these keys, then repeat the command.",
        status=2,
    )


def _locate(error: ErrorDetails, model: type[BaseModel]) -> Problem:
    """Return a pydantic error with the key to which it refers, and with the types and section of this key."""
    problem = Problem(error, expected=[model])
    for part in error["loc"]:
        if len(problem.expected) > 1:
            problem.union_members.append((problem.path, problem.expected, str(part)))
            problem.expected = [_find_member(problem.expected, str(part))]
            continue
        parent = problem.expected[0]
        problem.section = None
        if isinstance(parent, type) and issubclass(parent, BaseModel):
            problem.section = parent
            problem.expected = [Any]
            for name, info in _fields(parent).items():
                if part in (name, info.alias):
                    problem.expected = _union_members(info.annotation)
                    break
        else:
            # The type of a list's items, or of a mapping's values.
            problem.expected = _union_members((get_args(parent) or (Any,))[-1])
        problem.path += (part,)
    return problem


def _select_union_members(problems: list[Problem]) -> list[Problem]:
    """Drop the errors about types that the user did not mean, for keys that allow several types.

    For a key with several types (a union), pydantic reports the errors of every type. The user did not mean a type if
    the value has another type, e.g. text instead of a list. If the value has none of the types, the errors are
    kept, and each of them names all allowed types.
    """
    mismatches = {
        (path, member)
        for problem in problems
        for path, _, member in problem.union_members
        if problem.is_type_error and problem.path == path
    }
    kept = []
    for problem in problems:
        mismatch = next(
            ((path, members) for path, members, member in problem.union_members if (path, member) in mismatches), None
        )
        if mismatch is None:
            kept.append(problem)
            continue
        union_path, members = mismatch
        failed_members = {member for other in problems for path, _, member in other.union_members if path == union_path}
        if all((union_path, member) in mismatches for member in failed_members):
            problem.expected = members
            kept.append(problem)
    return kept


def _format_problem(problem: Problem, document: YamlDocument) -> str:
    error, path = problem.error, problem.path
    kind = error["type"]
    if kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        path = _path_in_message(message, path, document) or path
        names_key = not path or message.startswith(f"`{_dotted(path)}`")
        location = document.locate(path)
        return f"{location}: {message}" if names_key else f"{location}: {_dotted(path)}: {message}"
    prefix = f"{document.locate(path)}: {_dotted(path)}"
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{prefix} is not a known key{_suggest_keys(problem)}"
    if kind == "missing":
        return f"{prefix} is missing, expected {format_expected(problem.expected)}"
    found = format_found(error["input"])
    if problem.is_type_error:
        return f"{prefix}: expected {format_expected(problem.expected)}, found {found}{_suggest_value(problem)}"
    limit = LIMIT_TEXTS[kind].format(**error.get("ctx", {})) if kind in LIMIT_TEXTS else error["msg"]
    return f"{prefix}: expected {limit}, found {found}"


def format_expected(branches: list[Any]) -> str:
    """Return a readable description of the allowed types.

    Example:
        >>> format_expected([int, list[int]])
        'an integer or a list of integers'
    """
    return join_or(dict.fromkeys(_describe(_strip_annotated(branch)) for branch in branches))


def format_found(value: Any) -> str:
    """Return a short description of a value."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    short = text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
    if isinstance(value, str):
        return f"the text {short}"
    if isinstance(value, dict):
        keys = f" with {join_or(map(str, value)).replace(' or ', ' and ')}" if 0 < len(value) <= 4 else ""
        return f"a mapping{keys}"
    return f"the list {short}" if isinstance(value, list) else short


def _describe(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation][0]
    if origin is Literal:
        return join_or(str(arg) for arg in args)
    if origin is list:
        return f"a list of {_plural(_strip_annotated(args[0]))}"
    if annotation is Competition:
        return "the path of a competition's YAML"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping"
    return "a value"


def _plural(annotation: Any) -> str:
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation][1]
    if get_origin(annotation) is Literal:
        return f"values from ({', '.join(map(str, get_args(annotation)))})"
    return "lists" if get_origin(annotation) is list else "mappings"


def _strip_annotated(annotation: Any) -> Any:
    """Return a type annotation without the limits in `Annotated`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _union_members(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without None."""
    annotation = _strip_annotated(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return [_strip_annotated(member) for member in get_args(annotation) if member is not NoneType]
    return [annotation]


def _find_member(members: list[Any], label: str) -> Any:
    """Return the union member that pydantic's location names: `int`, `list[int]`, `literal['full']`, `LossConfig`."""
    for member in members:
        name = getattr(get_origin(member) or member, "__name__", "")
        if label.split("[")[0] in (name, "literal" if get_origin(member) is Literal else name):
            return member
    return members[0]


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path) or "the file"


def _path_in_message(message: str, path: KeyPath, document: YamlDocument) -> KeyPath | None:
    """Return the key in backticks at the start of a validator's message ("`patch.size` must …"); None without a key."""
    if not message.startswith("`"):
        return None
    parts = message.split("`")[1].split(":")[0].split(".")
    key_path = (*path, *parts)
    return key_path if key_path in document.locations else None


def _suggest_keys(problem: Problem) -> str:
    """Return a hint for an unknown key: a similar key, or a nested section that has this key.

    If there is neither, the hint lists the known keys.
    """
    if problem.section is None:
        return ""
    key, known = str(problem.path[-1]), _keys(problem.section)
    if near := nearest_names(key, known):
        return f" (nearest: {near[0]})"
    prefix = "".join(f"{part}." for part in problem.path[:-1])
    below = [
        f"{prefix}{name}.{key}"
        for name, info in _fields(problem.section).items()
        for member in _union_members(info.annotation)
        if isinstance(member, type) and issubclass(member, BaseModel) and key in _keys(member)
    ]
    if below:
        return f"; did you mean {join_or(below)}"
    return f"; known keys: {', '.join(known[:MAX_SHOWN_KEYS])}{', …' if len(known) > MAX_SHOWN_KEYS else ''}"


def _keys(section: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in _fields(section).items()]


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the keys of a section: its fields, or the keys that a registry defines."""
    return section.yaml_fields() if issubclass(section, StepConfig) else section.model_fields


def _suggest_value(problem: Problem) -> str:
    """Return a hint with the allowed value that is most similar to the value found; an empty text if there is none."""
    values = [str(arg) for member in problem.expected if get_origin(member) is Literal for arg in get_args(member)]
    value = problem.error["input"]
    near = nearest_names(value, values) if isinstance(value, str) and len(values) > 1 else []
    return f" (nearest: {near[0]})" if near else ""
