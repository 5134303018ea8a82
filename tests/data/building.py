"""Functions that the child processes of `test_cache.py` run.

They are in their own module, so that these processes need not import torch, which `test_cache.py` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.cache import get_or_build
from competition.io import write_array


def build(value: int) -> Callable[[Path], dict[str, Any]]:
    """Return a function that writes an array of a cache entry to a folder and returns the entry's record."""

    def fill(folder: Path) -> dict[str, Any]:
        write_array(folder / "image.npy", (2, 3, 4), np.int16, (np.full((1, 3, 4), value + i) for i in range(2)))
        return {"value": value}

    return fill


def race(root: str, barrier: Any, value: int) -> None:
    """Wait for the other processes at a barrier, then get or build 30 entries of the cache in `root`."""
    barrier.wait()
    for key in range(30):
        get_or_build(Path(root), f"key{key}", build(value))
