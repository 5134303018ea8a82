"""Register named entries that other packages add, such as metrics and post-processing steps."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from competition.text import join_or, nearest_names

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Map names to entries. The module that defines an entry adds it to the registry.

    A module adds its entries while it is imported, and the first lookup imports the module. Until then, the registry
    stores only the module's name, because the module may itself import the module that contains the registry.

    Args:
        kind: the noun for an entry in messages, e.g. `metric`.
        package: the package or module that contains the built-in entries; all modules of a package are imported.
        modules: the module of each built-in entry, instead of `package`; a module is imported when its entry is looked
            up.
        ordered: whether names keep the order in which they were added; otherwise they are sorted.

    Example:
        >>> from competition.config.experiment import SCHEDULES
        >>> SCHEDULES.names()
        ['plateau', 'cosine', 'poly', 'onecycle', 'constant']
    """

    def __init__(
        self, kind: str, package: str = "", *, modules: Mapping[str, str] | None = None, ordered: bool = False
    ) -> None:
        self.kind, self.package, self.modules, self.ordered = kind, package, dict(modules or {}), ordered
        self._entries: dict[str, Entry] = {}
        self._complete = not package

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that adds a function or class under this name, and returns it unchanged."""

        def add(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry.

        Raises:
            ValueError: another entry already has the name.
        """
        if name in self._entries:
            raise ValueError(f"two entries have the {self.kind} name {name!r}")
        self._entries[name] = entry

    @contextmanager
    def temporary(self, name: str, entry: Entry) -> Iterator[Entry]:
        """Add an entry for the duration of a `with` block; tests use this method."""
        self._import_package()
        self.add(name, entry)
        try:
            yield entry
        finally:
            del self._entries[name]

    def names(self) -> list[str]:
        """Return all names, in the order of the entries if the registry is ordered, otherwise alphabetically."""
        self._import_package()
        known = dict.fromkeys((*self.modules, *self._entries))
        return list(known) if self.ordered else sorted(known)

    def check(self, name: str) -> str:
        """Return the name if the registry has an entry of this name. Pydantic uses this method as a validator.

        Raises:
            ValueError: no entry has this name; the message lists the known names and the most similar one.
        """
        known = self.names()
        if name not in known:
            near = nearest_names(name, known)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ValueError(f"expected {join_or(known)}, found the text {name!r}{hint}")
        return name

    def get(self, name: str) -> Entry:
        """Return the entry with this name.

        Raises:
            ValueError: no entry has this name; the message lists the known names and the most similar one.
        """
        if name not in self._entries:
            self.check(name)
            if name in self.modules:
                importlib.import_module(self.modules[name])
        return self._entries[name]

    def _import_package(self) -> None:
        """Import the modules of the built-in entries, once."""
        if self._complete:
            return
        self._complete = True  # set before the imports, because the imported modules may look up names
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                importlib.import_module(f"{self.package}.{module.name}")
        except BaseException:
            self._complete = False  # the next lookup tries the imports again, and reports the same error
            raise
