"""Classes that stand in a row are found by their order, size and number of objects."""

from __future__ import annotations

import numpy as np

from competition.explore.symmetry import ClassRow, find_row, frequency_map
from competition.explore.types import CaseStats, TruthStats

NAMES = ["top", "middle", "bottom"]


def case(
    number: int, heights: tuple[int | None, ...], sizes: tuple[int, ...] = (4, 4, 4), code: str = "RAS"
) -> CaseStats:
    """Return a case with a cube for each class at a height of the third axis."""
    shift = int(np.random.default_rng(number).integers(-3, 4))
    layers = [np.zeros((32, 32, 60), bool) for _ in heights]
    for layer, height, size in zip(layers, heights, sizes, strict=True):
        if height is not None:
            layer[10 : 10 + size, 10 : 10 + size, height + shift : height + shift + size] = True
    voxels = np.array([int(layer.sum()) for layer in layers])
    objects = [np.array([count] if count else [], np.int64) for count in voxels]
    truth = TruthStats(voxels, int(voxels.sum()), 0, layers[0].size, objects, frequency=frequency_map(layers))
    return CaseStats(f"case_{number}", "train", truth=truth, orientation=code)


def test_vertebrae() -> None:
    assert find_row(NAMES, [case(number, (45, 30, 15)) for number in range(10)]) == ClassRow("S", NAMES)
    upside_down = [case(number, (15, 30, 45), code="RAI") for number in range(10)]
    assert find_row(NAMES, upside_down) == ClassRow("S", NAMES)


def test_a_class_may_be_absent() -> None:
    cases = [case(number, (45, 30, None if number % 3 else 15)) for number in range(12)]
    assert find_row(NAMES, cases) == ClassRow("S", NAMES)


def test_organs_are_no_row() -> None:
    sizes = (20, 4, 4)
    assert find_row(NAMES, [case(number, (35, 30, 15), sizes) for number in range(10)]) is None  # unlike sizes
    swapped = [case(number, (45, 30, 15) if number % 2 else (45, 15, 30)) for number in range(10)]
    assert find_row(NAMES, swapped) is None
    assert find_row(NAMES, [case(number, (45, 30, 15)) for number in range(4)]) is None  # too few cases
