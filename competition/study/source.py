"""The experiment that a study searches: its file and the words beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from competition.config import Experiment, load_experiment
from competition.config.lines import COMMAND_LINE, Place, read_document
from competition.config.overrides import apply_overrides, parse_overrides


class Source(NamedTuple):
    """Where an experiment comes from, so that a trial can be loaded like it, with a few words more."""

    file: Path
    overrides: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def load(self, words: Sequence[str] = ()) -> Experiment:
        """The experiment, with further `key=value` words.

        Raises:
            MaskfoldError: they do not fit.
        """
        return load_experiment(self.file, [*self.overrides, *words], self.trust)

    def place(self, *keys: str) -> Place:
        """Where a key of the `study` section stands: a line of the file, or the command line if it changed part of it."""
        document = read_document(self.file)
        apply_overrides(document, [one for one in parse_overrides(self.overrides) if one.key.startswith("study")])
        path = ("study", *keys)
        typed = any(key[: len(path)] == path and place == COMMAND_LINE for key, place in document.places.items())
        return COMMAND_LINE if typed else document.place(path)
