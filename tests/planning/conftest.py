"""A fixture that makes a small data set and runs `maskfold init` on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.planning.choice import Ask
from competition.planning.init import Initialised, Options, initialise

Start = Callable[..., Initialised]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`start(maker, layout=2)`: make a data set in `data/<name>` of an empty working folder, and run `init` on it.

    `maker` is a function of `tests.planning.phantoms`; further arguments are options of `maskfold init`.
    """
    monkeypatch.chdir(tmp_path)

    def run(
        maker: Callable[[Path], None], ask: Ask | None = None, folder: str | None = None, **options: Any
    ) -> Initialised:
        root = Path("data") / (folder or maker.__name__)
        if not root.exists():
            root.mkdir(parents=True)
            maker(root)
        return initialise(root, Options(**options), ask, lambda rows, _: rows)

    return run
