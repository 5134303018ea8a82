"""Small phantoms of each layout, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition.datasets.phantoms import make_phantom

COUNTS = {"spleen": (4, 1), "spine": (6, 2), "a02025": (16, 4), "hipmri": (4, None)}


@pytest.fixture(scope="package")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders by layout."""
    root = tmp_path_factory.mktemp("phantoms")
    for layout, (cases, test_cases) in COUNTS.items():
        assert make_phantom(layout, root / layout, seed=2, cases=cases, test_cases=test_cases) is True
    return {layout: root / layout for layout in COUNTS}
