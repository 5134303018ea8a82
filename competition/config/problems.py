"""What pydantic found wrong, in the words of the YAML's author: place, key, what was expected, what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.lines import Document, KeyPath
from competition.config.nearest import nearest, one_of

SIMPLE = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "truth values"),
    Path: ("a path", "paths"),
}
LIMITS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} or fewer entries",
    "string_pattern_mismatch": "text of the form {pattern}",
    "finite_number": "a finite number",
}
SHOWN_KEYS = 12
SHOWN_LETTERS = 60
SHOWN_LINES = 50  # of a file that is no YAML of ours thousands would follow, each after a search for the nearest key


@dataclass
class Problem:
    """One of pydantic's errors, and what the model says about its key.

    Attributes:
        error: the error.
        path: the key's path in the data; pydantic's also names the branches of unions.
        expected: the branches that the key's value may be of.
        section: the model that the key belongs to.
        branches: for each union on the way, its path and the branch that failed.
    """

    error: ErrorDetails
    path: KeyPath = ()
    expected: list[Any] = field(default_factory=list)
    section: type[BaseModel] | None = None
    branches: list[tuple[KeyPath, list[Any], str]] = field(default_factory=list)

    @property
    def is_shape(self) -> bool:
        """Whether the value is of another kind than expected, rather than too large or wrong inside."""
        return self.error["type"].endswith("_type") or self.error["type"] == "literal_error"


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> MaskfoldError:
    """Turn all of pydantic's errors into one that names each key's place.

    Args:
        error: what `model.model_validate(document.tree)` raised.
        model: the model.
        document: the data.

    Returns:
        The error, of status 2.
    """
    found = [_locate(one, model) for one in error.errors(include_url=False)]
    problems = _one_branch(found)
    lines = list(dict.fromkeys(_line(problem, document) for problem in problems[:SHOWN_LINES]))
    if len(lines) == 1:
        return MaskfoldError(f"{lines[0]}.", "Correct it and run again.", status=2)
    listed = "".join(f"\n  {line}." for line in lines) + (
        f"\n  … and {len(problems) - SHOWN_LINES} more." if len(problems) > SHOWN_LINES else ""
    )
    count = len(lines) + max(0, len(problems) - SHOWN_LINES)
    return MaskfoldError(f"{document.file}: {count} keys are wrong.{listed}\n", "Correct them and run again.", status=2)


def _locate(error: ErrorDetails, model: type[BaseModel]) -> Problem:
    """Follow pydantic's location through the model."""
    problem = Problem(error, expected=[model])
    for part in error["loc"]:
        if len(problem.expected) > 1:
            problem.branches.append((problem.path, problem.expected, str(part)))
            problem.expected = [_branch(problem.expected, str(part))]
            continue
        above = problem.expected[0]
        problem.section = None
        if isinstance(above, type) and issubclass(above, BaseModel):
            problem.section = above
            problem.expected = next(
                (_branches(info.annotation) for name, info in above.model_fields.items() if part in (name, info.alias)),
                [Any],
            )
        else:
            problem.expected = _branches((get_args(above) or (Any,))[-1])  # a list's items, a mapping's values
        problem.path += (part,)
    return problem


def _one_branch(problems: list[Problem]) -> list[Problem]:
    """Of a union's branches keep the one that was meant; where none fits, say so once.

    A branch was not meant if the value is of another kind altogether: text where a list is expected.
    """
    misfits = {
        (path, branch)
        for problem in problems
        for path, _, branch in problem.branches
        if problem.is_shape and problem.path == path
    }
    kept = []
    for problem in problems:
        unmeant = next(
            ((path, expected) for path, expected, branch in problem.branches if (path, branch) in misfits), None
        )
        if unmeant is None:
            kept.append(problem)
            continue
        path, expected = unmeant
        others = {branch for other in problems for where, _, branch in other.branches if where == path}
        if all((path, branch) in misfits for branch in others):
            problem.expected = expected
            kept.append(problem)
    return kept


def _line(problem: Problem, document: Document) -> str:
    error, path = problem.error, problem.path
    kind = error["type"]
    if kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        path = _named_in(message, path, document) or path
        said = not path or message.startswith(f"`{_dotted(path)}`")
        return f"{document.place(path)}: {message}" if said else f"{document.place(path)}: {_dotted(path)}: {message}"
    before = f"{document.place(path)}: {_dotted(path)}"
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{before} is not a known key{_known_keys(problem)}"
    if kind == "missing":
        return f"{before} is missing, expected {describe(problem.expected)}"
    found = describe_value(error["input"])
    if problem.is_shape:
        return f"{before}: expected {describe(problem.expected)}, found {found}{_nearest_word(problem)}"
    limit = LIMITS[kind].format(**error.get("ctx", {})) if kind in LIMITS else error["msg"]
    return f"{before}: expected {limit}, found {found}"


def describe(branches: list[Any]) -> str:
    """What a key's value may be, in words.

    Example:
        >>> describe([int, list[int]])
        'an integer or a list of integers'
    """
    return one_of(dict.fromkeys(_describe(_bare(branch)) for branch in branches))


def describe_value(value: Any) -> str:
    """What was found, in a few words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    short = text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "…"
    if isinstance(value, str):
        return f"the text {short}"
    if isinstance(value, dict):
        return "a mapping" + (
            f" with {one_of(map(str, list(value)[:4])).replace(' or ', ' and ')}" if len(value) <= 4 and value else ""
        )
    return f"the list {short}" if isinstance(value, list) else short


def _describe(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in SIMPLE:
        return SIMPLE[annotation][0]
    if origin is Literal:
        return one_of(str(arg) for arg in args)
    if origin is list:
        return f"a list of {_plural(_bare(args[0]))}"
    if annotation is Competition:
        return "the path of a competition's YAML"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping"
    return "a value"


def _plural(annotation: Any) -> str:
    if annotation in SIMPLE:
        return SIMPLE[annotation][1]
    if get_origin(annotation) is Literal:
        return f"words out of ({', '.join(map(str, get_args(annotation)))})"
    return "lists" if get_origin(annotation) is list else "mappings"


def _bare(annotation: Any) -> Any:
    """An annotation without its limits."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _branches(annotation: Any) -> list[Any]:
    """The kinds of value that an annotation allows, besides null."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return [_bare(one) for one in get_args(annotation) if one is not NoneType]
    return [annotation]


def _branch(branches: list[Any], label: str) -> Any:
    """The branch of a union that pydantic's location names: `int`, `list[int]`, `literal['full']`, `Loss`."""
    for branch in branches:
        name = getattr(get_origin(branch) or branch, "__name__", "")
        if label.split("[")[0] in (name, "literal" if get_origin(branch) is Literal else name):
            return branch
    return branches[0]


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path) or "the file"


def _named_in(message: str, path: KeyPath, document: Document) -> KeyPath | None:
    """The key that one of our own messages begins with, in backticks: `patch.size` needs …"""
    if not message.startswith("`"):
        return None
    words = message.split("`")[1].split(":")[0].split(".")
    named = (*path, *words)
    return named if named in document.places else None


def _known_keys(problem: Problem) -> str:
    """The key that was meant: in this section, or of this name in a section below."""
    if problem.section is None:
        return ""
    key, known = str(problem.path[-1]), _keys(problem.section)
    if near := nearest(key, known):
        return f", the nearest is {near[0]}"
    prefix = "".join(f"{part}." for part in problem.path[:-1])
    below = [
        f"{prefix}{name}.{key}"
        for name, info in problem.section.model_fields.items()
        for branch in _branches(info.annotation)
        if isinstance(branch, type) and issubclass(branch, BaseModel) and key in _keys(branch)
    ]
    if below:
        return f"; perhaps {one_of(below)} is meant"
    return f"; known are {', '.join(known[:SHOWN_KEYS])}{', …' if len(known) > SHOWN_KEYS else ''}"


def _keys(section: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in section.model_fields.items()]


def _nearest_word(problem: Problem) -> str:
    """The nearest of the allowed words."""
    words = [str(arg) for branch in problem.expected if get_origin(branch) is Literal for arg in get_args(branch)]
    value = problem.error["input"]
    near = nearest(value, words) if isinstance(value, str) and len(words) > 1 else []
    return f"; the nearest is {near[0]}" if near else ""
