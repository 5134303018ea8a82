"""`key=value` on the command line: the same keys and the same values as in the YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from competition.config.errors import MaskfoldError
from competition.config.lines import Document, KeyPath, parse

# A word, then words after dots; brackets hold the index of a list or a key that has dots itself.
KEY = re.compile(r"[^\s.=\[\]]+(?:\.[^\s.=\[\]]+|\[[^\s=\[\]]+\])*")
PART = re.compile(r"[^.\[\]]+|\[([^\[\]]+)\]")


class Override(NamedTuple):
    """One `key=value`."""

    key: str
    value: Document


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Read `key=value` words; a value is YAML, under the rules of the files.

    Raises:
        MaskfoldError: status 2; a word is no `key=value`, or its value no YAML.

    Example:
        >>> [(key, value.tree) for key, value in parse_overrides(["folds.run=[0,1]", "optimizer.args.lr=1e-3"])]
        [('folds.run', [0, 1]), ('optimizer.args.lr', 0.001)]
    """
    overrides = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise MaskfoldError(
                f"command line: `{word}` is no key=value.",
                "Write it like training.epochs=3 or folds.run=[0,1], without spaces around the =.",
                status=2,
            )
        try:
            value = parse(text)
        except MaskfoldError as error:
            raise MaskfoldError(f"{error.wrong.rstrip('.')}, in `{word}`.", error.cure, status=2) from error
        overrides.append(Override(key, value))
    return overrides


def apply_overrides(document: Document, overrides: Sequence[Override]) -> None:
    """Set keys of a document, one after the other; a value that is a mapping or a list replaces what was there.

    Raises:
        MaskfoldError: status 2; a key counts beyond the end of a list.
    """
    if not overrides:
        return
    from omegaconf import OmegaConf

    config = OmegaConf.create(document.tree)
    for key, value in overrides:
        path = _path(config, key)
        OmegaConf.update(config, key, value.tree, merge=False)
        document.replace(path, value)
    document.tree = OmegaConf.to_container(config, resolve=False)


def _path(config: Any, key: str) -> KeyPath:
    """The keys and indices on the way to `key`."""
    from omegaconf import DictConfig, ListConfig

    path: KeyPath = ()
    node = config
    for match in PART.finditer(key):
        part = match[1] or match[0]
        if isinstance(node, ListConfig):
            if not part.isdecimal() or int(part) >= len(node):
                name = ".".join(str(above) for above in path)
                raise MaskfoldError(
                    f"command line: {key} does not exist, since {name} is a list of {len(node)}.",
                    f"Count its items from 0, or set the whole list with {name}=[…].",
                    status=2,
                )
            path, node = (*path, int(part)), node[int(part)]
        else:
            path, node = (*path, part), node.get(part) if isinstance(node, DictConfig) else None
    return path
