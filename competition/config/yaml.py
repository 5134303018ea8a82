"""Read YAML files and `key=value` overrides as plain data, with the file and line of each key."""

# This module does not use ruamel.yaml (0.19). Its loader with line numbers accepts the tag `!!python/name:os.system`,
# converts 2001-01-01 to a date and numbers to its own classes, and does not limit nested aliases, so that 511 bytes
# become a billion values. It takes 14 ms for experiments/nuclei/unet2d.yaml, `read_yaml` 9 ms (python
# benchmarks/libraries.py yaml).

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from competition.errors import MaskfoldError
from competition.text import format_count

KeyPath = tuple[str | int, ...]

MAX_NODES = 100_000  # a limit, because nested aliases expand a small file exponentially
MAX_DEPTH = 40  # levels of mappings and lists; OmegaConf and pydantic descend one level with several calls
MAX_BYTES = 2**22  # maximum size of a file; a resolved experiment has a few kilobytes
MAX_REMEMBERED = 2**16  # characters; the result of parsing a longer text is not cached

FLOAT_PATTERN = re.compile(
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
# Types of plain scalars in the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema). PyYAML follows
# YAML 1.1, in which `1e-3` is text, `no` is false, `010` is eight and `1:30` is ninety.
SCALAR_TYPES = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (FLOAT_PATTERN, "-+.0123456789"),
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "merge": (re.compile(r"^<<$"), "<"),
}
TAG_PREFIX = "tag:yaml.org,2002:"
ALLOWED_TAGS = {TAG_PREFIX + name for name in (*SCALAR_TYPES, "str", "seq", "map")}
# Keys joined by dots; brackets contain a list index, or a key that itself contains dots.
KEY_PATTERN = re.compile(r"[^\s.=\[\]]+(?:\.[^\s.=\[\]]+|\[[^\s=\[\]]+\])*")
KEY_PART_PATTERN = re.compile(r"[^.\[\]]+|\[([^\[\]]+)\]")


class PlainDataLoader(yaml.SafeLoader):
    """Load YAML 1.2 that contains only plain data: numbers, text, booleans, null, lists and mappings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _name, (_pattern, _first) in SCALAR_TYPES.items():
    PlainDataLoader.add_implicit_resolver(TAG_PREFIX + _name, _pattern, list(_first))


class SourceLocation(NamedTuple):
    """Hold the file and line in which a key is set; the line is None for a key from the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}, line {self.line}"


COMMAND_LINE = SourceLocation("command line")


@dataclass
class YamlDocument:
    """Hold plain data from YAML, and the location of each key.

    Attributes:
        tree: the data.
        file: the file from which the data were read, or `command line`.
        locations: file and line of each key. Keys that were merged with `<<` have no location.
    """

    tree: Any
    file: str
    locations: dict[KeyPath, SourceLocation] = field(default_factory=dict)

    def locate(self, path: KeyPath) -> SourceLocation:
        """Return the location of a key.

        If the key has no location, return the location of the nearest parent that has one.
        """
        for length in range(len(path), -1, -1):
            if path[:length] in self.locations:
                return self.locations[path[:length]]
        return SourceLocation(self.file, 1)

    def replace_locations(self, path: KeyPath, source: YamlDocument) -> None:
        """Copy the locations of the key `path` and of all keys below it from the document `source`.

        Error messages then name the file and line from which the value now comes.
        """
        self.locations = {key: place for key, place in self.locations.items() if key[: len(path)] != path}
        for length in range(1, len(path)):
            self.locations.setdefault(path[:length], source.locate(()))
        self.locations[path] = source.locate(())
        self.locations |= {path + key: place for key, place in source.locations.items()}


def read_yaml(path: Path) -> YamlDocument:
    """Read a YAML file that holds one mapping.

    Raises:
        MaskfoldError (exit status 2): the file is missing, empty, not YAML or not a mapping, or it has a duplicate key
            or a tag that is not allowed, such as `!!python/object`.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading from a device might never end
            raise MaskfoldError(f"{path} is not a regular file.", "Give a YAML file.", status=2)
        if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
            raise MaskfoldError(
                f"{path} has {size / 2**20:.1f} MiB, expected at most {MAX_BYTES // 2**20} MiB, the limit for YAML "
                "files.",
                "Give the YAML of an experiment or a competition. Move lists of cases or weights to a CSV.",
                status=2,
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MaskfoldError(f"{path} does not exist.", "Give the path of an existing YAML file.", status=2) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise MaskfoldError(
            f"{path} cannot be read: {reason}.",
            "Give a YAML file in UTF-8 that you have permission to read, not a folder.",
            status=2,
        ) from error
    document = parse_yaml(text, str(path))
    if document.tree is None:
        raise MaskfoldError(
            f"{path} is empty.",
            "Write the keys of the experiment or of the competition into this file; docs/yaml.md lists them.",
            status=2,
        )
    if not isinstance(document.tree, dict):
        raise MaskfoldError(
            f"{path}, line 1: expected lines of `key: value` (a mapping), found a {value_kind(document.tree)}.",
            "Write one `key: value` per line.",
            status=2,
        )
    return document


def parse_yaml(text: str, file: str | None = None) -> YamlDocument:
    """Parse YAML text to a document.

    Args:
        text: the text.
        file: name of the text's source, for messages; None means the command line.

    Raises:
        MaskfoldError (exit status 2): the text is not YAML, or has a duplicate key or a tag that is not allowed, such
            as `!!python/object`.
    """
    if len(text) > MAX_REMEMBERED:
        return _parse(text, file)
    found = _parse_once(text, file)
    return YamlDocument(copy.deepcopy(found.tree), found.file, dict(found.locations))  # the caller may change it


def _parse(text: str, file: str | None) -> YamlDocument:
    document = YamlDocument(None, file or COMMAND_LINE.file)
    try:
        loader = PlainDataLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _NodeChecker(document, has_lines=file is not None).visit(node, ())
            document.tree = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = SourceLocation(document.file, mark.line + 1 if mark is not None and file is not None else None)
        raise MaskfoldError(
            f"{place}: not valid YAML, {error.problem or error.context}.", _syntax_hint(error), status=2
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason, hint = getattr(error, "reason", error), "Save the file as plain UTF-8 text."
        if isinstance(error, RecursionError):
            reason, hint = "it is nested too deeply", f"Use at most {MAX_DEPTH} levels of mappings and lists."
        raise MaskfoldError(f"{document.file}: not valid YAML, {reason}.", hint, status=2) from error
    return document


# A trial of a study reads the files of its run, which stay the same, about a dozen times.
_parse_once = functools.lru_cache(maxsize=64)(_parse)


def value_kind(value: Any) -> str:
    """Return the kind of a YAML value: mapping, list, text or single value."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list):
        return "list"
    return "text" if isinstance(value, str) else "single value"


class _NodeChecker:
    """Check all nodes of a YAML text, and record the line of each key.

    Unsafe tags, duplicate keys, references to other keys (`${key}`) and aliases that contain themselves are errors.
    """

    def __init__(self, document: YamlDocument, *, has_lines: bool) -> None:
        self.document = document
        self.has_lines = has_lines
        self.ancestors: list[yaml.Node] = []
        self.count = 0

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Check a node and all nodes below it."""
        self.document.locations.setdefault(path, self._location(node))
        self.count += 1
        if len(path) > MAX_DEPTH:
            self._fail(
                node,
                f"not valid YAML: it is nested too deeply, expected at most {MAX_DEPTH} levels",
                "Use fewer levels of mappings and lists",
            )
        if node in self.ancestors:
            self._fail(node, "an alias (`*`) contains itself", "Write the value itself instead of the alias")
        if self.count > MAX_NODES:
            self._fail(
                node,
                f"the file has too many values, expected at most {MAX_NODES:,}; the values of an alias (`*`) "
                "count each time that the file uses the alias",
                "Write fewer values, or use fewer aliases",
            )
        if node.tag not in ALLOWED_TAGS:
            self._fail(
                node,
                f"the tag `{_short(node.tag)}` is not allowed, because Maskfold reads YAML as plain data",
                "Remove the tag",
            )
        self.ancestors.append(node)
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index))
        elif "${" in node.value:
            self._fail(
                node,
                f"`{node.value}`: references to other keys (interpolation) are not supported",
                "Write the value itself instead of the reference",
            )
        self.ancestors.pop()

    def _visit_mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[tuple[str, str], SourceLocation] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in ALLOWED_TAGS or key.tag == TAG_PREFIX + "null":
                self._fail(
                    key, "expected text as the key before the colon, found another value", "Write text before the colon"
                )
            identity = (key.tag, key.value)
            if identity in seen:
                first = f", first on line {seen[identity].line}" if self.has_lines else ""
                self._fail(key, f"duplicate key `{key.value}`{first}", "Keep only one of the two")
            seen[identity] = self._location(key)
            name = key.value if key.tag == TAG_PREFIX + "merge" else PlainDataLoader("").construct_object(key)
            self.document.locations[(*path, name)] = self._location(key)
            self.visit(value, (*path, name))

    def _location(self, node: yaml.Node) -> SourceLocation:
        return SourceLocation(self.document.file, node.start_mark.line + 1) if self.has_lines else COMMAND_LINE

    def _fail(self, node: yaml.Node, problem: str, hint: str) -> NoReturn:
        raise MaskfoldError(f"{self._location(node)}: {problem}.", f"{hint}.", status=2)


def _short(tag: str) -> str:
    return tag.replace(TAG_PREFIX, "!!", 1)


def _syntax_hint(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return "Indent with spaces instead of tabs."
    if error.problem_mark is not None and "alias" in f"{error.context} {error.problem}":
        return "Put text that begins with * or & into quotes."
    return (
        "Check indentation, colons and brackets in this line and the line before. Put text that contains {, "
        "[, *, # or a colon into quotes."
    )


# Overrides


class Override(NamedTuple):
    """Hold one parsed `key=value` argument; the value is a YAML document."""

    key: str
    value: YamlDocument


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse `key=value` arguments. A value is YAML, and the same rules apply as in files.

    Raises:
        MaskfoldError (exit status 2): an argument is not `key=value`, or its value is not YAML.

    Example:
        >>> [(key, value.tree) for key, value in parse_overrides(["folds.run=[0,1]", "optimizer.args.lr=1e-3"])]
        [('folds.run', [0, 1]), ('optimizer.args.lr', 0.001)]
    """
    overrides = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not KEY_PATTERN.fullmatch(key):
            raise MaskfoldError(
                f"command line: found `{word}`, expected an override of the form key=value.",
                "Write for example training.epochs=3 or folds.run=[0,1], without spaces around the =.",
                status=2,
            )
        if len(KEY_PART_PATTERN.findall(key)) > MAX_DEPTH:
            raise MaskfoldError(
                f"command line: the key `{key[:40]}…` is nested too deeply, expected at most {MAX_DEPTH} levels.",
                "Give a key of the YAML.",
                status=2,
            )
        try:
            value = parse_yaml(text)
        except MaskfoldError as error:
            raise MaskfoldError(f"{error.message.rstrip('.')}, in `{word}`.", error.hint, status=2) from error
        overrides.append(Override(key, value))
    return overrides


def apply_overrides(document: YamlDocument, overrides: Sequence[Override]) -> None:
    """Set keys of a document, in order. A mapping or list replaces the previous value and is not merged with it.

    Raises:
        MaskfoldError (exit status 2): a key contains the index of a list item that does not exist.
    """
    if not overrides:
        return
    from omegaconf import OmegaConf

    config = OmegaConf.create(document.tree)
    for key, value in overrides:
        path = _key_path(config, key)
        OmegaConf.update(config, key, value.tree, merge=False)
        document.replace_locations(path, value)
    document.tree = OmegaConf.to_container(config, resolve=False)


def _key_path(config: Any, key: str) -> KeyPath:
    """Return the keys and list indices in a dotted key, such as `folds.run.0`."""
    from omegaconf import DictConfig, ListConfig

    path: KeyPath = ()
    node = config
    for match in KEY_PART_PATTERN.finditer(key):
        part = match[1] or match[0]
        if isinstance(node, ListConfig):
            if not part.isdecimal() or int(part) >= len(node):
                name, items = ".".join(str(parent) for parent in path), format_count(len(node), "item")
                raise MaskfoldError(
                    f"command line: the key {key} does not exist, because {name} is a list of {items}.",
                    f"Use a position from 0 to {len(node) - 1}, or set the whole list with {name}=[…]."
                    if len(node)
                    else f"Set the whole list with {name}=[…].",
                    status=2,
                )
            path, node = (*path, int(part)), node[int(part)]
        else:
            path, node = (*path, part), node.get(part) if isinstance(node, DictConfig) else None
    return path
