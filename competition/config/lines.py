"""YAML text as plain data that knows on which line each key stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from competition.config.errors import MaskfoldError

KeyPath = tuple[str | int, ...]

MOST_NODES = 100_000  # aliases of aliases make a small file huge
MOST_BYTES = 2**22  # of a file; a resolved experiment has some kilobytes

FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
# What a plain word means, after the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema). PyYAML's own
# rules are those of 1.1, where `1e-3` is text, `no` is false, `010` is eight and `1:30` is ninety.
MEANINGS = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (FLOAT, "-+.0123456789"),
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "merge": (re.compile(r"^<<$"), "<"),
}
TAG = "tag:yaml.org,2002:"
TAGS = {TAG + name for name in (*MEANINGS, "str", "seq", "map")}


class Loader(yaml.SafeLoader):
    """Makes plain data only: numbers, text, true and false, null, lists and mappings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _name, (_pattern, _first) in MEANINGS.items():
    Loader.add_implicit_resolver(TAG + _name, _pattern, list(_first))


class Place(NamedTuple):
    """Where a key was written; without a line it is the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}, line {self.line}"


COMMAND_LINE = Place("command line")


@dataclass
class Document:
    """Plain data and where each of its keys was written.

    Attributes:
        tree: the data.
        file: the file it was read from, or `command line`.
        places: where a key stands; absent for keys that came through a merge (`<<`).
    """

    tree: Any
    file: str
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath) -> Place:
        """Where a key stands, or else the nearest key above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(self.file, 1)

    def replace(self, path: KeyPath, other: Document) -> None:
        """Note that what stands at `path` now comes from another document."""
        self.places = {key: place for key, place in self.places.items() if key[: len(path)] != path}
        for length in range(1, len(path)):
            self.places.setdefault(path[:length], other.place(()))
        self.places[path] = other.place(())
        self.places |= {path + key: place for key, place in other.places.items()}


def read_document(path: Path) -> Document:
    """Read a YAML file that holds one mapping.

    Raises:
        MaskfoldError: status 2; the file is missing, empty, no YAML or no mapping, a key stands twice, or a tag asks for
            more than plain data.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a device may never end
            raise MaskfoldError(f"{path} is no file.", "Name a YAML file.", status=2)
        if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
            raise MaskfoldError(
                f"{path} has {size:,} bytes, and YAML files of up to {MOST_BYTES:,} are read.",
                "Name a YAML file.",
                status=2,
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MaskfoldError(f"{path} does not exist.", "Name a YAML file that does.", status=2) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise MaskfoldError(f"{path} cannot be read: {reason}.", "Name a readable YAML file.", status=2) from error
    document = parse(text, str(path))
    if document.tree is None:
        raise MaskfoldError(f"{path} is empty.", "Write the experiment or the competition into it.", status=2)
    if not isinstance(document.tree, dict):
        raise MaskfoldError(
            f"{path}, line 1: the file holds a {kind_of(document.tree)} where a mapping is expected.",
            "Write it as lines of `key: value`.",
            status=2,
        )
    return document


def parse(text: str, file: str | None = None) -> Document:
    """Read YAML text; without a file it comes from the command line.

    Raises:
        MaskfoldError: status 2; see `read_document`.
    """
    document = Document(None, file or COMMAND_LINE.file)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _Walk(document, numbered=file is not None).visit(node, ())
            document.tree = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(document.file, mark.line + 1 if mark is not None and file is not None else None)
        raise MaskfoldError(
            f"{place}: not valid YAML, {error.problem or error.context}.", _cure(error), status=2
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "reason", error)
        raise MaskfoldError(
            f"{document.file}: not valid YAML, {reason}.", "Write it anew as plain UTF-8 text.", status=2
        ) from error
    return document


def kind_of(value: Any) -> str:
    """What a piece of YAML is, in a word."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list):
        return "list"
    return "text" if isinstance(value, str) else "single value"


class _Walk:
    """One pass over the nodes: notes each key's line, and refuses what would be lost or run."""

    def __init__(self, document: Document, *, numbered: bool) -> None:
        self.document = document
        self.numbered = numbered
        self.above: list[yaml.Node] = []
        self.count = 0

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Visit a node and all below it."""
        self.document.places.setdefault(path, self._place(node))
        self.count += 1
        if node in self.above or self.count > MOST_NODES:
            self._refuse(node, "an alias (`*`) makes the file endless", "Write the value out where it is needed")
        if node.tag not in TAGS:
            self._refuse(
                node, f"the tag `{_short(node.tag)}` is refused, since YAML is read as plain data", "Leave the tag out"
            )
        self.above.append(node)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index))
        elif "${" in node.value:
            self._refuse(
                node, f"`{node.value}` looks like an interpolation, which is not known here", "Write the value itself"
            )
        self.above.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[tuple[str, str], Place] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS or key.tag == TAG + "null":
                self._refuse(key, "a key is no plain word", "Put a word before the colon, in quotes if it has to be")
            word = (key.tag, key.value)
            if word in first:
                where = f", first on line {first[word].line}" if self.numbered else ""
                self._refuse(key, f"the key `{key.value}` stands twice{where}", "Keep one of them")
            first[word] = self._place(key)
            name = key.value if key.tag == TAG + "merge" else Loader("").construct_object(key)
            self.document.places[(*path, name)] = self._place(key)
            self.visit(value, (*path, name))

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.document.file, node.start_mark.line + 1) if self.numbered else COMMAND_LINE

    def _refuse(self, node: yaml.Node, wrong: str, cure: str) -> NoReturn:
        raise MaskfoldError(f"{self._place(node)}: {wrong}.", f"{cure}.", status=2)


def _short(tag: str) -> str:
    return tag.replace(TAG, "!!", 1)


def _cure(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return "Indent with spaces instead of tabs."
    if error.problem_mark is not None and "alias" in f"{error.context} {error.problem}":
        return "Put text that begins with * or & in quotes."
    return "Look at that place and just before it: indentation, colons, brackets, and text with {, [, *, # or a colon needs quotes."
