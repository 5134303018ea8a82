"""From YAML files and `key=value` words to `Competition` and `Experiment`, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.config.lines import FLOAT, TAG, Document, KeyPath, read_document
from competition.config.overrides import apply_overrides, parse_overrides
from competition.config.problems import explain
from competition.config.trust import check_path

Model = TypeVar("Model", bound=BaseModel)


def load_experiment(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] | None = ()) -> Experiment:
    """Load an experiment's YAML, with the competition that it names.

    The competition's path is relative to the file that names it; on the command line (`competition=other.yaml`) it is
    relative to the working folder first. `competition.root` is looked for in the working folder, then beside the YAML
    that says it, and becomes absolute. `folds.file`, `init_from` and a file of `encoder_weights` are looked for in the
    same places.

    Args:
        path: the file.
        overrides: `key=value` words; a value is YAML and replaces what the file says.
        trust: packages that a `target` may come from, besides the known ones. None looks at no target: for reading
            what a finished run did.

    Returns:
        The experiment. Nothing but configuration is imported; `competition.config.target.check_targets` looks at the
        classes themselves.

    Raises:
        MaskfoldError: status 2; it lists everything that is wrong, each with its file, line and key.

    Example:
        >>> load_experiment("experiments/demo2d/unet2d.yaml", ["training.epochs=3"])  # doctest: +SKIP
    """
    file = Path(path)
    document = read_document(file)
    if "competition" not in document.tree and {"dimensions", "classes"} <= document.tree.keys():
        raise MaskfoldError(
            f"{file} describes a competition, not an experiment on it.",
            "Name a YAML file that says `competition: …`, `model: …` and so on.",
            status=2,
        )
    words = parse_overrides(overrides)
    apply_overrides(document, [word for word in words if word.key == "competition"])
    folder = _inline(document, file.parent)
    _inline_extras(document, file.parent)
    _start_from_defaults(document, [word.key for word in words])
    apply_overrides(document, [word for word in words if word.key != "competition"])
    _inline_extras(document, file.parent)
    _find_root(document, ("competition", "root"), folder)
    _find_file(document, ("competition", "train", "cases"), folder)
    for key in (("folds", "file"), ("init_from",), ("encoder_weights",), *_keys(document, ("pseudo", "from"))):
        _find_file(document, key, file.parent)
    exp = _validate(Experiment, document)
    if trust is not None:
        _check_trust(exp, document, trust)
    return exp


def load_competition(path: str | Path, overrides: Sequence[str] = ()) -> Competition:
    """Load a competition's YAML.

    Args:
        path: the file.
        overrides: `key=value` words, e.g. `root=/elsewhere`.

    Returns:
        The competition; its `root` is absolute.

    Raises:
        MaskfoldError: status 2; see `load_experiment`.
    """
    file = Path(path)
    document = read_document(file)
    if "competition" in document.tree:
        raise MaskfoldError(
            f"{file} describes an experiment, not a competition.",
            "Name the file after its key `competition`.",
            status=2,
        )
    apply_overrides(document, parse_overrides(overrides))
    _find_root(document, ("root",), file.parent)
    _find_file(document, ("train", "cases"), file.parent)
    return _validate(Competition, document)


def resolved(exp: Experiment) -> dict[str, Any]:
    """An experiment as plain data with every default written out and the competition inside.

    Loading it again gives an equal experiment.

    Returns:
        Mappings, lists, text, numbers, booleans and None only.
    """
    plain: dict[str, Any] = exp.model_dump(by_alias=True)
    extras = (
        plain["extra"] if isinstance(plain["extra"], list) else [plain["extra"]] if plain["extra"] is not None else []
    )
    for section in (plain, *extras):
        section["competition"]["root"] = str(section["competition"]["root"])
    return plain


def write_yaml(data: Any, path: Path) -> None:
    """Write plain data as YAML, whole or not at all: beside, fsync, rename.

    Args:
        data: mappings, lists, text, numbers, booleans and None.
        path: the file; a former one is replaced.

    Raises:
        MaskfoldError: `data` holds something else.
        OSError: the folder cannot be written to.
    """
    try:
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    except yaml.representer.RepresenterError as error:
        raise MaskfoldError(
            f"{path} cannot be written: {error.args[-1]!r} is not plain data.",
            "Use numbers, text, lists and mappings only.",
            status=2,
        ) from error
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        error.filename = str(path)  # which file, a full disk does not say
        raise
    finally:
        beside.unlink(missing_ok=True)


class _Dumper(yaml.SafeDumper):
    """Quotes all text that a reader of YAML 1.1 or 1.2 would take for something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent(self, data: Any) -> None:
        """A key a line at the top, however short the values are."""
        node = self.represent_data(data)
        if isinstance(node, yaml.MappingNode):
            node.flow_style = False
        self.serialize(node)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text with an unusual line break is escaped; PyYAML would write the break itself."""
        return self.represent_scalar(TAG + "str", data, style='"' if re.search("[\x85\u2028\u2029]", data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(TAG + "float", FLOAT, list("-+.0123456789"))


def _inline(document: Document, folder: Path, key: KeyPath = ("competition",)) -> Path:
    """Put a competition in the place of its path; returns the folder of the file that says it."""
    holder, value = _value(document, key)
    if not isinstance(value, str):
        return folder
    place, name = document.place(key), ".".join(map(str, key))
    named = Path(value).expanduser()
    file = folder / named
    if place.line is None and named.exists():
        file = named
    if not file.exists():
        raise MaskfoldError(
            f"{place}: {name}: {file} does not exist.",
            "Name the competition's YAML by its path relative to the experiment's file.",
            status=2,
        )
    other = read_document(file)
    holder[key[-1]] = other.tree
    document.replace(key, other)
    return file.parent


def _inline_extras(document: Document, folder: Path) -> None:
    """Put the other competitions of `extra` in the place of their paths."""
    for key in _keys(document, ("extra",)):
        home = _inline(document, folder, (*key, "competition"))
        _find_root(document, (*key, "competition", "root"), home)
        _find_file(document, (*key, "competition", "train", "cases"), home)


def _keys(document: Document, key: KeyPath) -> list[KeyPath]:
    """The key itself, or those of its items where it is a list."""
    _, value = _value(document, key)
    return [(*key, number) for number in range(len(value))] if isinstance(value, list) else [key]


def _start_from_defaults(document: Document, keys: Sequence[str]) -> None:
    """Let `optimizer.args.lr=…` change the default optimiser where the file names none."""
    for key in keys:
        section, _, rest = key.partition(".")
        default = Experiment.model_fields[section].default if section in Experiment.model_fields else None
        if rest and section not in document.tree and isinstance(default, BaseModel):
            document.tree[section] = default.model_dump(by_alias=True)


def _value(document: Document, key: KeyPath) -> tuple[Any, Any]:
    """The mapping or list that holds a key, and the key's value."""
    node = holder = document.tree
    for part in key:
        holder = node
        if isinstance(node, list) and isinstance(part, int):
            node = node[part]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return holder, node


def _find_root(document: Document, key: KeyPath, folder: Path) -> None:
    """Make the path at `key` absolute: in the working folder, or else in the YAML's, or else as if in the former."""
    holder, value = _value(document, key)
    if isinstance(value, str) and value:
        named = Path(value).expanduser()
        found = folder / named if not named.exists() and (folder / named).exists() else named
        holder[key[-1]] = os.path.abspath(found)


def _find_file(document: Document, key: KeyPath, folder: Path) -> None:
    """Look for the file at `key` beside the YAML if the working folder does not have it."""
    holder, value = _value(document, key)
    if isinstance(value, str) and value and not Path(value).exists() and (folder / value).exists():
        holder[key[-1]] = str(folder / value)


def _validate(model: type[Model], document: Document) -> Model:
    try:
        return model.model_validate(document.tree)
    except ValidationError as error:
        raise explain(error, model, document) from None


def _check_trust(exp: Experiment, document: Document, trust: Sequence[str]) -> None:
    """Look at the words of every `target`; whether the class exists is seen when it is imported."""
    targets: list[tuple[KeyPath, str]] = [(("model",), exp.model.target), (("optimizer",), exp.optimizer.target)]
    several = isinstance(exp.loss, list)
    targets += [(("loss", number) if several else ("loss",), loss.target) for number, loss in enumerate(exp.losses)]
    targets += [
        (("augment", "transforms", number), transform.target)
        for number, transform in enumerate(exp.augment.transforms or [])
    ]
    for section, target in targets:
        key = (*section, "target")
        check_path(target, f"{document.place(key)}: {'.'.join(map(str, key))}", trust)
