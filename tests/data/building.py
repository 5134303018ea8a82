"""What the processes of `test_cache.py` build, in a module of its own: they import it, and the tests need torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.cache import get_or_build
from competition.io import write_array


def build(value: int) -> Callable[[Path], dict[str, Any]]:
    def fill(folder: Path) -> dict[str, Any]:
        write_array(folder / "image.npy", (2, 3, 4), np.int16, (np.full((1, 3, 4), value + i) for i in range(2)))
        return {"value": value}

    return fill


def race(root: str, barrier: Any, value: int) -> None:
    barrier.wait()
    for key in range(30):
        get_or_build(Path(root), f"key{key}", build(value))
