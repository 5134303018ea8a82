"""`explore` finds copies that are mirrored or turned, says so, and does not call other images copies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from competition.data import duplicates
from competition.data.duplicates import find_near_duplicates, make_thumbnail
from competition.explore import explore
from tests.explore.planted import picture, sound, write
from tests.explore.test_faults import remarks
from tests.host import competition

SIZE = (75, 101)  # no multiples of a thumbnail's side
VIEWS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]


def turn(array: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    """Turn the last two axes by quarters, then mirror the last one."""
    turned = np.rot90(array, quarters, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if mirrored else turned)


@pytest.mark.parametrize(("quarters", "mirrored"), VIEWS)
def test_a_turned_copy_is_found_and_called_turned(quarters: int, mirrored: bool) -> None:
    images = [picture(seed, SIZE)[0] for seed in range(12)]
    copy = np.clip(turn(images[3], quarters, mirrored) * 1.05 + 4, 0, 255).astype(np.uint8)
    (pair,) = find_near_duplicates([make_thumbnail(one[None], symmetric=True) for one in (*images, copy)], turned=True)
    assert (pair.first, pair.second) == (3, 12) and pair.correlation > 0.98
    assert pair.turned == ((quarters, mirrored) != (0, False))


def test_explore_reports_a_turned_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sound(tmp_path)
    image, mask = picture(4)  # q_1
    write(root, "turned_1", turn(image, 1, True), turn(mask, 1, True))
    found = explore(competition(root))
    (near,) = remarks(found, "near-duplicate")
    assert re.search(r"q_1 .*turned_1 .* look the same after a rotation or mirroring: the correlation", near)
    monkeypatch.setitem(duplicates.MAX_TURNED, 2, 5)  # more images than this are compared unturned only
    assert remarks(explore(competition(root)), "near-duplicate") == []


def test_a_cluster_of_turned_and_straight_copies_says_that_some_are_turned(tmp_path: Path) -> None:
    root = sound(tmp_path)
    image, mask = picture(4)
    write(root, "bright_1", np.clip(image * 1.05 + 4, 0, 255).astype(np.uint8), mask)
    write(root, "turned_1", turn(image, 2, False), turn(mask, 2, False))
    (near,) = remarks(explore(competition(root)), "near-duplicate")
    assert (
        "look the same, some of them after a rotation or mirroring: the correlation of their thumbnails is up to"
        in near
    )
