"""Axes of the slices of 2.5D networks: values, refusals, and the run's hash."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from competition.config.experiment import Experiment
from competition.runs.identity.hashing import hashed_settings, run_hash
from tests.prepared import experiment

VOLUME, SLICED = "331c398708d2", "6efe82f9b3ce"  # hashes of the first version without the key


def sliced(**patch: Any) -> Experiment:
    return experiment(3, [8, 8], patch={"slices": 3, **patch}, prepare={"orientation": "RAS"})


def test_slices_lie_along_the_last_axis_by_default() -> None:
    exp = sliced()
    assert exp.patch.axes == [2] and exp.slice_planes == ["axial"] and exp.presence_axis == 2


def test_axes_are_a_set() -> None:
    exp = sliced(axes=[2, 0, 1])
    assert exp == sliced(axes=[0, 1, 2]) and exp.patch.axes == [0, 1, 2]
    assert exp.slice_planes == ["sagittal", "coronal", "axial"] and exp.presence_axis is None


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_patches_lie_in_the_other_axes(axis: int, plane: tuple[int, ...]) -> None:
    exp = sliced(axes=[axis])
    assert exp.patch.plane(axis) == plane and exp.presence_axis == axis


@pytest.mark.parametrize(
    ("dimensions", "patch", "key"),
    [
        (3, {"slices": 3, "axes": []}, "patch.axes"),
        (3, {"slices": 3, "axes": [3]}, "patch.axes.0"),
        (3, {"slices": 3, "axes": [0, -1]}, "patch.axes.1"),
        (3, {"slices": 3, "axes": ["axial"]}, "patch.axes.0"),
        (3, {"slices": 3, "axes": 2}, "patch.axes"),
        (3, {"slices": 3, "axes": [0, 2, 0]}, "`axes`"),
        (3, {"axes": [0]}, "`axes`"),
        (3, {"axes": [0, 1, 2]}, "`axes`"),
        (2, {"axes": [0, 1]}, "`axes`"),
        (2, {"slices": 3, "axes": [0, 1]}, "`patch.slices`"),
    ],
)
def test_wrong_axes_are_refused(dimensions: int, patch: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        experiment(dimensions, [8, 8], patch=patch)
    (error,) = caught.value.errors()
    assert key in (".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ").split(" ")[0])


def test_the_default_changes_no_hash() -> None:
    volume = experiment(3, [8, 8, 8])
    for exp, name in ((volume, VOLUME), (sliced(), SLICED)):
        assert "axes" not in hashed_settings(exp, 2)["patch"] and run_hash(exp, "data") == name
    assert run_hash(sliced(axes=[2]), "data") == SLICED
    assert len({run_hash(sliced(axes=axes), "data", 2) for axes in ([2], [1], [0], [0, 1, 2], [0, 2])}) == 5
