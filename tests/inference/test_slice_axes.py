"""2.5D predictions along each axis: those of the transposed volume, their mean, views, and presence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from competition import large_arrays
from competition.config.experiment import Experiment, PreprocessingConfig
from competition.data.geometry import Geometry
from competition.errors import MaskfoldError
from competition.inference.presence import presence_on_file_grid
from competition.inference.sliding_window import predict_image, predict_image_with_presence
from competition.inference.tta import TTAView, count_passes, tta_views
from tests.inference.networks import Local, experiment

SHAPES = [(20, 13, 37), (1, 13, 9), (30, 2, 5), (4, 5, 1)]  # also thinner than the slices, the patch or a block
HALF = 2.0**-11  # the distance of neighbouring float16 values below 1


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


def along(axes: list[int], **keys: Any) -> Experiment:
    exp = experiment(3, (16, 8), slices=3, overlap=0.5, batch_size=3, **keys)
    return exp.model_copy(update={"patch": exp.patch.model_copy(update={"axes": axes})})


def transposed(network: nn.Module, array: np.ndarray, axis: int, **keys: Any) -> np.ndarray:
    """The prediction of the volume whose last axis is `axis`, turned back."""
    found = predict_image([network], np.moveaxis(array, axis + 1, -1), along([2], **keys))
    return np.moveaxis(found, -1, axis + 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tta", [[], ["flip"]])
def test_an_axis_is_that_of_the_transposed_volume(shape: tuple[int, ...], axis: int, tta: list[str]) -> None:
    array, network = image(*shape), Local(6, 3, 2)
    found = predict_image([network], array, along([axis], tta=tta))
    assert found.dtype == np.float16 and found.shape == (3, *shape) and found.flags.c_contiguous
    np.testing.assert_array_equal(found, transposed(network, array, axis, tta=tta))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [[0, 1, 2], [0, 2]])
def test_several_axes_are_averaged(shape: tuple[int, ...], axes: list[int]) -> None:
    array, networks = image(*shape), [Local(6, 3, 2, seed) for seed in (0, 1)]
    keys: dict[str, Any] = {"tta": ["flip"], "comp": {"labels": "overlapping", "classes": ["a", "b", "c"]}}
    found = predict_image(networks, array, along(axes, **keys))
    each = [
        np.mean([transposed(network, array, axis, **keys).astype(np.float64) for network in networks], axis=0)
        for axis in axes
    ]
    assert found.dtype == np.float16 and found.shape == (3, *shape)
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=0, atol=HALF)
    assert len({one.tobytes() for one in each}) == len(axes), "the axes differ"


def test_the_mean_of_known_logits() -> None:
    """The network returns the previous slice: each axis shifts the volume by one voxel along itself."""

    class Previous(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(batch[:, :1]), batch[:, :1], -batch[:, :1]], dim=1)

    array = image(5, 4, 3)
    shifted = [np.take(array[0], np.maximum(np.arange(n) - 1, 0), axis) for axis, n in enumerate(array.shape[1:])]
    logits = [np.stack([np.zeros_like(one), one, -one]) for one in shifted]
    expected = np.mean([np.exp(one) / np.exp(one).sum(0) for one in logits], axis=0)
    np.testing.assert_allclose(predict_image([Previous()], array, along([0, 1, 2])), expected, atol=HALF)


def test_large_volumes_are_summed_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    array, network, exp = image(20, 13, 37), Local(6, 3, 2), along([0, 1, 2])
    expected, made = predict_image([network], array, exp), []
    real = large_arrays.empty

    def record(shape: Any, dtype: Any) -> np.ndarray:
        made.append(real(shape, dtype))
        return made[-1]

    monkeypatch.setattr(large_arrays, "empty", record)
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "0.01")
    found = predict_image([network], array, exp)
    assert [one.dtype.name for one in made] == ["float32", "float16"]
    assert all(isinstance(one.base, np.memmap) for one in made)
    np.testing.assert_array_equal(found, expected)


def test_non_finite_values_are_an_error_along_any_axis() -> None:
    broken = Local(6, 3, 2)
    broken.layer.weight.data.fill_(float("nan"))
    for axes in ([0], [0, 1, 2]):
        with pytest.raises(MaskfoldError, match="non-finite"):
            predict_image([broken], image(4, 5, 6), along(axes))


# Views


def test_flips_name_axes_of_the_volume() -> None:
    exp = along([0, 1, 2], tta=["flip"], flip=[0, 2])
    views = {axis: {view.flips for view in tta_views(exp, axis)} for axis in exp.patch.axes}
    assert views == {0: {(), (1,)}, 1: {(), (0,), (1,), (0, 1)}, 2: {(), (0,)}}
    assert count_passes(exp) == 8
    one = along([0, 1, 2], tta=["flip"], flip=[0])
    assert [tta_views(one, axis) for axis in (0, 1, 2)] == [[TTAView()], *[[TTAView(), TTAView((0,))]] * 2]
    auto = along([1], tta="auto", flip=[2], preset="light")
    assert tta_views(auto) == tta_views(auto, 1) == [TTAView(), TTAView((1,))]


@pytest.mark.parametrize(
    ("axes", "flip", "tta", "preset"),
    [
        ([0], [0], ["flip"], "none"),
        ([0], [0], "auto", "light"),
        ([0, 1, 2], False, ["flip"], "none"),
        ([0, 1, 2], [], ["flip"], "none"),
        ([0, 1, 2], True, ["rotate90"], "none"),  # the patch is no square
    ],
)
def test_views_that_cannot_be_are_refused(axes: list[int], flip: Any, tta: Any, preset: str) -> None:
    with pytest.raises(MaskfoldError) as caught:
        count_passes(along(axes, flip=flip, tta=tta, preset=preset))
    assert caught.value.status == 2


def test_a_flipped_network_sees_the_flipped_volume_along_each_axis() -> None:
    array, network = image(9, 7, 11), Local(6, 3, 2)
    found = predict_image([network], array, along([0, 1, 2], tta=["flip"], flip=[2]))
    flipped = predict_image([network], np.ascontiguousarray(array[..., ::-1]), along([0, 1]))[..., ::-1]
    plain = predict_image([network], array, along([0, 1]))
    third = predict_image([network], array, along([2]))
    expected = (plain.astype(np.float64) + flipped + third) / 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * HALF)


# Presence


class Mean(nn.Module):
    """Presence logits from the mean of the middle slice of the first channel."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, batch: torch.Tensor) -> Any:
        middle = batch[:, 1:2]
        mean = self.factor * middle.mean((1, 2, 3))
        return torch.cat([middle, middle, middle], 1), torch.stack([mean, -mean], 1)


def gated(axes: list[int]) -> Experiment:
    exp = experiment(3, (16, 16), slices=3, batch_size=5)
    exp = Experiment.model_validate({**exp.model_dump(by_alias=True), "gate": {}})
    return exp.model_copy(update={"patch": exp.patch.model_copy(update={"axes": axes})})


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def by_slice(array: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """(2, slices): the expected presence; the windows of 16×16 contain a slice and its padding."""
    others = tuple(other for other in range(3) if other != axis)
    means = factor * array[0].sum(axis=others) / 16**2
    return np.stack([sigmoid(means), sigmoid(-means)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_presence_by_slice_along_one_axis(axis: int) -> None:
    array = 9 * image(12, 11, 13)
    _, gate = predict_image_with_presence([Mean(1.0)], array, gated([axis]))
    np.testing.assert_allclose(gate, by_slice(array, axis, 1.0), rtol=1e-5)


def test_presence_by_case_along_several_axes() -> None:
    """Each network's maxima over slices are averaged over axes, then networks are combined by their log odds."""
    array, networks = 9 * image(12, 11, 13), [Mean(1.0), Mean(-0.5)]
    _, gate = predict_image_with_presence(networks, array, gated([0, 1, 2]))
    each = [np.mean([by_slice(array, a, net.factor).max(axis=1) for a in range(3)], axis=0) for net in networks]
    np.testing.assert_allclose(gate[:, 0], sigmoid(np.mean([np.log(p / (1 - p)) for p in each], axis=0)), rtol=1e-5)
    assert gate.shape == (2, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("orientation", "crop"), [("RAS", "none"), ("PSR", "nonzero"), ("SAL", "nonzero")])
def test_presence_is_mapped_to_the_slices_of_the_file(orientation: str, crop: str, axis: int) -> None:
    generator = np.random.default_rng(2)
    volume = np.zeros((1, 9, 7, 11), np.float32)
    volume[:, 2:8, 1:6, 3:9] = 1 + generator.random((1, 6, 5, 6))
    prepare = PreprocessingConfig(orientation=orientation, spacing=[2.0, 1.5, 0.7], crop=crop)  # type: ignore[arg-type]
    geometry = Geometry.plan(volume, (1.0, 2.0, 1.5), np.diag([1.0, 2.0, 1.5, 1.0]), prepare, background=False)
    gate = generator.random((2, geometry.shape[axis])).astype(np.float32)
    found = presence_on_file_grid(gate, geometry, by_slice=True, axis=axis)
    constant = np.moveaxis(
        np.broadcast_to(gate, (*geometry.shape[:axis], *geometry.shape[axis + 1 :], *gate.shape)), -2, 0
    )
    whole = geometry.inverse(np.ascontiguousarray(np.moveaxis(constant, -1, axis + 1)))
    others = tuple(other + 1 for other in range(3) if other != geometry.axes[axis])
    np.testing.assert_allclose(found, whole.max(axis=others, keepdims=True), atol=1e-6)
