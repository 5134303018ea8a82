"""Merge an experiment's YAML over the YAML of its base, another experiment (`base: unet3d.yaml`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from competition.config.experiment import Experiment
from competition.config.yaml import KeyPath, YamlDocument, apply_overrides, parse_overrides, read_yaml, value_kind
from competition.errors import MaskfoldError

KEY = "base"
MAX_SHOWN = 200  # characters of a path in a message
MAX_BASES = 20  # maximum number of files from an experiment to its last base


def read_experiment_yaml(file: Path, overrides: Sequence[str] = ()) -> YamlDocument:
    """Read an experiment's YAML, merged over the experiment that its key `base` names.

    `base` is the path of another experiment's YAML, relative to the file that names it. The base may have a base too.
    A path from the command line (`base=other.yaml`) is looked up in the working folder first. Mappings are merged; a
    list or a single value replaces the base's value. There are two more rules:

    - A mapping with another `target` replaces the base's mapping as a whole, because `args` belong to one class.
    - If a key may be null, e.g. `training.clip_gradient`, the value `null` is kept. For any other key, `null` removes
      the base's value, so that the default applies, e.g. `postprocess: null` or `model.args.dropout: null`.

    Args:
        file: the file.
        overrides: `key=value` arguments, of which only `base` is applied.

    Returns:
        The document without the key `base`. The location of each key is the file that sets it.

    Raises:
        MaskfoldError (exit status 2): a file is missing or is not an experiment, or the bases form a cycle.
    """
    document = read_yaml(file)
    apply_overrides(document, [override for override in parse_overrides(overrides) if override.key == KEY])
    return _merge_bases(document, file, [file])


def folder_of(document: YamlDocument, key: KeyPath, default: Path) -> Path:
    """Return the folder of the file that sets a key; `default` if the key was set on the command line."""
    place = document.locate(key)
    return default if place.line is None else Path(place.file).parent


def inline_file(document: YamlDocument, key: KeyPath, default: Path, kind: str) -> Path:
    """Replace the path of a YAML file in the document by the content of this file; return the file's folder.

    Args:
        document: the document.
        key: the key whose value is the path. If its value is not text, nothing changes.
        default: folder for a relative path from the command line, if the working folder does not contain the file.
        kind: the kind of file, for messages, e.g. `a competition`.

    Returns:
        The folder of the file. If nothing changes, the folder of the file that sets the key.

    Raises:
        MaskfoldError (exit status 2): the file does not exist or cannot be read.
    """
    parent: Any = document.tree
    for part in key[:-1]:
        if isinstance(parent, dict):
            parent = parent.get(part)
        else:
            parent = parent[part] if isinstance(parent, list) and isinstance(part, int) else None
    value = parent.get(key[-1]) if isinstance(parent, dict) else None
    if not isinstance(value, str):
        return folder_of(document, key, default)
    file = find_file(document, key, value, default, kind)
    source = read_yaml(file)
    parent[key[-1]] = source.tree
    document.replace_locations(key, source)
    return file.parent


def find_file(document: YamlDocument, key: KeyPath, value: str, default: Path, kind: str) -> Path:
    """Return the YAML file that the value of a key names.

    Args:
        document: the document.
        key: the key.
        value: the path in the YAML, relative to the file that sets the key.
        default: folder for a relative path from the command line, if the working folder does not contain the file.
        kind: the kind of file, for messages, e.g. `a competition`.

    Raises:
        MaskfoldError (exit status 2): the file does not exist.
    """
    place, name = document.locate(key), ".".join(map(str, key))
    path = expand_home(document, key, value)
    file = folder_of(document, key, default) / path
    if place.line is None and file_exists(document, key, path):
        file = path
    if not file_exists(document, key, file):
        raise MaskfoldError(
            f"{place}: {name}: the file {file} does not exist.",
            f"Set {name} to the path of {kind}'s YAML. A path in a YAML is relative to the YAML's folder. A path on "
            "the command line is relative to the working folder.",
            status=2,
        )
    return file


def expand_home(document: YamlDocument, key: KeyPath, value: str) -> Path:
    """Return the path `value` at `key`, with `~` and `~name` replaced by the home folder.

    Raises:
        MaskfoldError (exit status 2): the user of `~name` is unknown.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise MaskfoldError(
            f"{document.locate(key)}: {'.'.join(map(str, key))}: found {value}, but this machine has no such user.",
            "Write the whole path instead of ~NAME.",
            status=2,
        ) from None


def file_exists(document: YamlDocument, key: KeyPath, path: Path) -> bool:
    """Return whether a file or folder that the key `key` names exists.

    Raises:
        MaskfoldError (exit status 2): the path is too long, or a folder above it cannot be searched.
    """
    try:
        return path.exists()
    except OSError as error:
        shown = str(path) if len(str(path)) <= MAX_SHOWN else f"{str(path)[:MAX_SHOWN]}…"
        raise MaskfoldError(
            f"{document.locate(key)}: {'.'.join(map(str, key))}: {shown} cannot be read: {error.strerror}.",
            "Correct the path, or grant access to its folder.",
            status=2,
        ) from error


def _merge_bases(document: YamlDocument, file: Path, chain: list[Path]) -> YamlDocument:
    """Merge a document over its base; `chain` lists the files from the experiment to this document."""
    if KEY not in document.tree:
        return document
    place, value = document.locate((KEY,)), document.tree[KEY]
    if value is None:
        del document.tree[KEY]
        return document
    if not isinstance(value, str) or not value:
        raise MaskfoldError(
            f"{place}: base: found {'empty text' if value == '' else 'a ' + value_kind(value)}, expected the path of "
            "an experiment's YAML.",
            "Write for example base: unet3d.yaml.",
            status=2,
        )
    base_file = find_file(document, (KEY,), value, file.parent, "an experiment")
    files = [*chain, base_file]
    if base_file.resolve() in [path.resolve() for path in chain]:
        raise MaskfoldError(
            f"{place}: base: found a cycle, in which each experiment names the next one as its base: "
            f"{' -> '.join(map(str, files))}.",
            "Remove `base` from one of these files.",
            status=2,
        )
    if len(files) > MAX_BASES:
        raise MaskfoldError(
            f"{place}: base: found a chain of more than {MAX_BASES} files, beginning with {chain[0]}, expected at "
            f"most {MAX_BASES}.",
            "Merge the keys of some of these files.",
            status=2,
        )
    base = read_yaml(base_file)
    if not {"competition", KEY} & base.tree.keys() and {"dimensions", "classes"} <= base.tree.keys():
        raise MaskfoldError(
            f"{place}: base: {base_file} describes a competition, expected an experiment.",
            f"Set base to the YAML of an experiment. To name a competition, write competition: {value}.",
            status=2,
        )
    del document.tree[KEY]
    base = _merge_bases(base, base_file, files)
    if isinstance(document.tree.get("competition"), dict):
        inline_file(base, ("competition",), base_file.parent, "a competition")
    document.tree = _merged(base, document, base.tree, document.tree, ())
    return document


def _merged(base: YamlDocument, own: YamlDocument, below: Any, above: Any, path: KeyPath) -> dict[Any, Any]:
    """Return the experiment's mapping at a key, merged over the base's mapping at the same key.

    Args:
        base: document of the base, for the locations of its keys.
        own: document of the experiment. This function adds the locations of the keys that come from the base.
        below: the base's mapping.
        above: the experiment's mapping.
        path: the key of both mappings.
    """
    result: dict[Any, Any] = {}
    for key, value in below.items():
        here = (*path, key)
        if key not in above:
            result[key] = value
            _take_locations(base, own, here)
        elif above[key] is None:
            if _may_be_null(here):
                result[key] = None
        elif isinstance(value, dict) and isinstance(above[key], dict) and not _has_other_target(value, above[key]):
            result[key] = _merged(base, own, value, above[key], here)
        else:
            result[key] = above[key]
    for key, value in above.items():
        here = (*path, key)
        if key in below or (value is None and _is_section(here)):
            continue
        result[key] = _merged(base, own, {}, value, here) if isinstance(value, dict) else value
    return result


def _take_locations(base: YamlDocument, own: YamlDocument, path: KeyPath) -> None:
    """Copy the file and line of a key, and of all keys below it, from the base."""
    own.locations[path] = base.locate(path)  # even if the key was merged (`<<`) and has no location
    own.locations |= {key: place for key, place in base.locations.items() if key[: len(path)] == path}


def _has_other_target(below: dict[Any, Any], above: dict[Any, Any]) -> bool:
    return "target" in below and "target" in above and below["target"] != above["target"]


# Keys that may be null, by the schema


def _may_be_null(path: KeyPath) -> bool:
    """Return whether null is an allowed value of a key, e.g. of `gate`; False for arguments and unknown keys."""
    return NoneType in _types_at(path)


def _is_section(path: KeyPath) -> bool:
    """Return whether a key that is set to null gets its default value.

    This is the case if the schema has the key and does not allow null as a value.
    """
    types = _types_at(path)
    return bool(types) and Any not in types and NoneType not in types


def _types_at(path: KeyPath) -> list[Any]:
    """Return the types that the value of a key may have; an empty list for an unknown key."""
    types: list[Any] = [Experiment]
    for part in path:
        types = [found for one in types for found in _types_below(one, part)]
    return types


def _types_below(one: Any, part: str | int) -> list[Any]:
    if isinstance(one, type) and issubclass(one, BaseModel):
        fields: dict[str, Any] = {field.alias or name: field.annotation for name, field in one.model_fields.items()}
        return _members(fields[part]) if part in fields else []
    if get_origin(one) is dict:
        return _members(get_args(one)[1])
    return []


def _members(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows: the members of a union, without the limits in `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]
