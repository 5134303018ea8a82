"""Along which axes the classes have a side of their own."""

from __future__ import annotations

import numpy as np
import pytest

from competition.explore.symmetry import MAP_SIDE, find_sides, frequency_map, turned_to_ras
from competition.explore.types import CaseStats, TruthStats

SHAPE = (40, 40, 24)


def case(number: int, centre: tuple[int, ...], orientation: str | None = None) -> CaseStats:
    """Return a case whose class is a cube around the centre, a few voxels off."""
    rng = np.random.default_rng(number)
    layer = np.zeros(SHAPE[: len(centre)], bool)
    layer[tuple(slice(c + shift - 4, c + shift + 4) for c, shift in zip(centre, rng.integers(-2, 3, len(centre))))] = 1
    voxels = np.array([int(layer.sum())])
    truth = TruthStats(voxels, int(voxels[0]), 0, layer.size, [voxels], frequency=frequency_map([layer]))
    return CaseStats(f"case_{number:03d}", "train", truth=truth, orientation=orientation)


def test_a_map_has_the_share_of_each_cell() -> None:
    layer = np.zeros((120, 13), bool)
    layer[:30] = True
    found = frequency_map([layer, ~layer])
    assert found.shape == (2, MAP_SIDE, MAP_SIDE) and np.allclose(found.sum(axis=0), 1)
    assert (found[0, :3] == 1).all() and (found[0, 3:] == 0).all()


def test_an_organ_on_one_side() -> None:
    """The spleen lies on the left and below the middle; front and back are alike."""
    sides = find_sides([case(number, (10, 20, 8)) for number in range(20)])
    assert [side.has_sides for side in sides] == [True, False, True]


@pytest.mark.parametrize("count", [20, 9])
def test_mirrored_cases_have_no_side(count: int) -> None:
    """Left and right knees: the class lies on either side."""
    sides = find_sides([case(number, (10 if (number // 2) % 2 else 30, 20, 12)) for number in range(4 * count)])
    assert not any(side.has_sides for side in sides)


def test_scattered_objects_have_no_side() -> None:
    rng = np.random.default_rng(0)
    cases = [case(number, tuple(rng.integers(8, 32, 2).tolist())) for number in range(60)]
    assert not any(side.has_sides for side in find_sides(cases))


def test_few_cases_tell_nothing() -> None:
    assert find_sides([case(number, (10, 20, 8)) for number in range(5)]) == []


def test_orientations_are_turned_first() -> None:
    """Files in LPS and in RAS show the same organ at opposite ends of their axes."""
    mixed = [
        case(number, (10, 20, 12) if number % 2 else (30, 20, 12), "RAS" if number % 2 else "LPS")
        for number in range(20)
    ]
    assert find_sides(mixed)[0].has_sides
    frequency = frequency_map([np.arange(24).reshape(2, 3, 4) % 2 == 0])
    assert np.array_equal(turned_to_ras(frequency, "RAS"), frequency)
    assert np.array_equal(turned_to_ras(frequency, "SAL"), np.flip(frequency.transpose(0, 3, 2, 1), 1))


def test_sides_are_along_the_axes_of_the_files_if_preprocessing_turns_no_case() -> None:
    """The side lies along the first axis of the files, and one file has no orientation."""
    cases = [case(number, (10, 20, 12), None if number == 7 else "SAL") for number in range(20)]
    assert [side.has_sides for side in find_sides(cases)] == [True, False, False]
    assert [side.has_sides for side in find_sides([*cases[:7], *cases[8:]])] == [False, False, True]
