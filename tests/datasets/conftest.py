"""A fixture with small data sets of phantoms, which are made once for all pytest workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition.datasets.phantoms import make_phantom

COUNTS = {"spleen": (4, 1), "spine": (6, 2), "a02025": (16, 4), "hipmri": (4, None)}


@pytest.fixture(scope="session")
def phantoms(once: Callable[..., Path]) -> dict[str, Path]:
    """The folder of the phantoms of each data set in `COUNTS`, by name."""

    def make(layout: str) -> Path:
        cases, test_cases = COUNTS[layout]
        return once(layout, lambda folder: make_phantom(layout, folder, seed=2, cases=cases, test_cases=test_cases))

    return {layout: make(layout) for layout in COUNTS}
