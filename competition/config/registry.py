"""Registry of the named entries that a package contributes, such as metrics."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from competition.text import join_or, nearest_names

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name, from the modules of one package.

    A module of the package adds its entries while it is imported. The first lookup imports all modules of the package,
    so a new entry is one new file, and code that needs no entry does not import them. The package may lie above the
    code that looks a name up, because it is named by text.

    Args:
        kind: what an entry is, for messages: `metric`.
        package: the package that contains the entries: `competition.metrics`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry.

        Raises:
            ValueError: the name belongs to another entry.
        """
        if name in self._entries:
            raise ValueError(f"two entries have the {self.kind} name {name!r}")
        self._entries[name] = entry

    @contextmanager
    def temporary(self, name: str, entry: Entry) -> Iterator[Entry]:
        """Add an entry for the time of a `with` block, for tests."""
        self.names()
        self.add(name, entry)
        try:
            yield entry
        finally:
            del self._entries[name]

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        if not self._complete:
            self._complete = True  # first, since the modules imported here may look a name up themselves
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
            except BaseException:
                self._complete = False  # so that the next lookup reports the same error
                raise
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """Return the entry of a name.

        Raises:
            ValueError: there is no such entry; the message has the known names and the nearest of them.
        """
        if name not in self._entries:
            known = self.names()
            if name not in self._entries:
                near = nearest_names(name, known)
                hint = f" (nearest: {near[0]})" if near else ""
                raise ValueError(f"expected {join_or(known)}, found the text {name!r}{hint}")
        return self._entries[name]
