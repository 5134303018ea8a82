"""Sliding windows against known predictions."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.inference import sliding_window
from competition.inference.sliding_window import predict_image, stack_neighbour_slices, window_starts, window_weights
from tests.inference.networks import Local, Pointwise, experiment


def image(channels: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)


def direct(network: nn.Module, array: np.ndarray, exclusive: bool = True) -> np.ndarray:
    with torch.no_grad():
        logits = network(torch.from_numpy(array)[None])[0]
    return (logits.softmax(0) if exclusive else logits.sigmoid()).numpy()


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 1, 1), (5, 9, 3), (20, 8, 17), (3, 30, 9), (13, 13, 13)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_windows_do_not_change_a_pointwise_network(shape: tuple[int, ...], overlap: float) -> None:
    array, network = image(2, *shape), Pointwise(2, 3, 3)
    found = predict_image([network], array, experiment(overlap=overlap, batch_size=3))
    assert found.dtype == np.float16 and found.shape == (3, *shape)
    np.testing.assert_allclose(found, direct(network, array), atol=1e-3)
    np.testing.assert_allclose(found.astype(np.float32).sum(0), 1, atol=2e-3)


@pytest.mark.parametrize("shape", [(7, 5), (16, 16), (50, 33), (16, 40)])
@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_pictures(shape: tuple[int, ...], labels: str) -> None:
    exclusive = labels == "exclusive"
    array, network = image(3, *shape), Pointwise(3, 2 + exclusive, 2)
    found = predict_image([network], array, experiment(2, (16, 16), {"labels": labels}, overlap=0.25))
    np.testing.assert_allclose(found, direct(network, array, exclusive), atol=1e-3)


def reference(network: nn.Module, array: np.ndarray, patch: tuple[int, ...], overlap: float) -> np.ndarray:
    """Blend with sums and weights of the whole image, then their ratio."""
    shape = array.shape[1:]
    gauss = np.ones(())
    for size in patch:
        gauss = np.multiply.outer(gauss, np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2))
    total, weights = np.zeros((3, *shape)), np.zeros(shape)
    for corner in product(*(window_starts(n, size, overlap) for n, size in zip(shape, patch, strict=True))):
        place = tuple(slice(c, c + size) for c, size in zip(corner, patch, strict=True))
        total[(slice(None), *place)] += direct(network, array[(slice(None), *place)]) * gauss
        weights[place] += gauss
    return total / weights


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
def test_slabs_equal_sums_over_the_whole_image(overlap: float) -> None:
    array, network = image(1, 21, 12, 15), Local(1, 3, 3)
    exp = experiment(size=(6, 8, 5), overlap=overlap, batch_size=4)
    np.testing.assert_allclose(
        predict_image([network], array, exp), reference(network, array, (6, 8, 5), overlap), atol=1e-3
    )


def test_sums_in_host_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    array, network = image(1, 21, 12, 15), Local(1, 3, 3)
    before = predict_image([network], array, experiment())
    monkeypatch.setattr(sliding_window, "SLAB_BYTES", 0)
    np.testing.assert_array_equal(predict_image([network], array, experiment()), before)


def test_memory_is_one_slab_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    zeros = torch.zeros

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(zeros(*args, **kwargs).numel())
        return zeros(*args, **kwargs)

    monkeypatch.setattr(sliding_window.torch, "zeros", watched)
    predict_image([Pointwise(1, 3, 3)], image(1, 200, 9, 8), experiment())
    assert max(made) == 3 * 8 * 9 * 8


@pytest.mark.parametrize(
    ("length", "patch", "overlap"),
    [
        (100, 32, 0.5),
        (33, 32, 0.5),
        (32, 32, 0.9),
        (5, 32, 0.5),
        (64, 32, 0.0),
        (65, 32, 0.0),
        (31, 1, 0.5),
        (40, 7, 0.99),
    ],
)
def test_windows_cover_an_axis_and_their_weights_sum_to_one(length: int, patch: int, overlap: float) -> None:
    firsts = window_starts(length, patch, overlap)
    assert firsts[0] == 0 and firsts[-1] == max(0, length - patch)
    steps = np.diff(firsts)
    assert (steps > 0).all() and (steps <= max(1, np.ceil(patch * (1 - overlap)))).all()
    total = np.zeros(max(length, patch))
    for first, weights in zip(firsts, window_weights(length, patch, firsts).numpy(), strict=True):
        total[first : first + patch] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_window_weights_are_largest_in_the_middle() -> None:
    firsts = window_starts(48, 32, 0.5)
    left, right = window_weights(48, 32, firsts).numpy()
    assert firsts == [0, 16] and left[20] > 0.9 and right[20 - 16] < 0.1
    np.testing.assert_allclose(left[16:], right[:16][::-1], atol=1e-6)
    ratio = left[30] / right[14]  # voxel 30: 14.5 from the middle of the left window, 1.5 from the right one's
    np.testing.assert_allclose(ratio, np.exp(-0.5 * (14.5**2 - 1.5**2) / 4**2), rtol=1e-3)


class Constant(nn.Module):
    """Network whose logit of class 1 is the mean of the window, so that padding shows."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        mean = batch.mean(dim=tuple(range(1, batch.ndim)), keepdim=True)
        return torch.cat([torch.zeros_like(batch[:, :1]), mean.expand_as(batch[:, :1])], dim=1)


def test_small_volumes_are_padded_with_zero_and_pictures_with_their_edge() -> None:
    one_class = {"classes": ["a"]}
    volume = predict_image([Constant()], np.full((1, 4, 8, 8), 2, np.float32), experiment(comp=one_class))
    np.testing.assert_allclose(volume[1], 1 / (1 + np.exp(-1)), atol=1e-3)  # half of the window is padding
    picture = predict_image([Constant()], np.full((1, 4, 8), 2, np.float32), experiment(2, (8, 8), one_class))
    np.testing.assert_allclose(picture[1], 1 / (1 + np.exp(-2)), atol=1e-3)


def test_neighbours_are_channels_and_edges_repeat() -> None:
    array = np.arange(2 * 3 * 3 * 4).reshape(2, 3, 3, 4)
    found = stack_neighbour_slices(array, 0, 3)
    assert found.shape == (6, 3, 3)
    expected = [array[c, ..., z] for c in range(2) for z in (0, 0, 1)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(stack_neighbour_slices(array, 3, 5)[:5], [array[0, ..., z] for z in (1, 2, 3, 3, 3)])
    np.testing.assert_array_equal(stack_neighbour_slices(array, 2, 1), array[..., 2])


class Centre(nn.Module):
    """Network that uses the slice at `index` of the first channel; its logits are (0, x, -x)."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        value = batch[:, self.index : self.index + 1]
        return torch.cat([torch.zeros_like(value), value, -value], dim=1)


@pytest.mark.parametrize("shape", [(20, 13, 40), (6, 5, 1), (16, 16, 17), (9, 30, 2)])
@pytest.mark.parametrize(("slices", "index", "shift"), [(1, 0, 0), (3, 1, 0), (5, 2, 0), (3, 2, 1), (5, 0, -2)])
def test_slices_with_their_neighbours(shape: tuple[int, ...], slices: int, index: int, shift: int) -> None:
    array = image(2, *shape)
    exp = experiment(3, (16, 12), slices=slices, batch_size=3)
    found = predict_image([Centre(index)], array, exp)
    chosen = np.clip(np.arange(shape[2]) + shift, 0, shape[2] - 1)
    value = torch.from_numpy(array[0][..., chosen])
    expected = torch.stack([torch.zeros_like(value), value, -value]).softmax(0)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_slices_agree_with_the_reference() -> None:
    array, network = image(1, 20, 13, 19), Local(1, 3, 2)
    found = predict_image([network], array, experiment(3, (16, 8), slices=1))
    for z in range(19):
        np.testing.assert_allclose(found[..., z], reference(network, array[..., z], (16, 8), 0.5), atol=1e-3)


def test_networks_are_averaged_as_probabilities() -> None:
    array, networks = image(1, 9, 9, 9), [Pointwise(1, 3, 3, seed) for seed in range(3)]
    expected = np.mean([direct(network, array) for network in networks], axis=0)
    np.testing.assert_allclose(predict_image(networks, array, experiment()), expected, atol=1e-3)


@pytest.mark.parametrize(
    "wrap", [lambda x: [x, x[:, :, ::2]], lambda x: (x,), lambda x: {"out": x, "aux": -x}, lambda x: [x[:, :, ::2], x]]
)
def test_the_full_size_output_counts(wrap: Any) -> None:
    class Wrapped(Pointwise):
        def forward(self, batch: torch.Tensor) -> Any:
            return wrap(super().forward(batch))

    array = image(1, 9, 9, 9)
    np.testing.assert_array_equal(
        predict_image([Wrapped(1, 3, 3)], array, experiment()), predict_image([Pointwise(1, 3, 3)], array, experiment())
    )


def test_softmax_of_bf16_logits_is_taken_in_fp32() -> None:
    array, network = image(1, 9, 9, 9), Pointwise(1, 3, 3)
    found = predict_image([network], array, experiment(), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    sums = found.astype(np.float32).sum(0)
    np.testing.assert_allclose(sums, 1, atol=1.5e-3)  # in bf16 they would be off by up to 1e-2
    np.testing.assert_allclose(found, direct(network, array), atol=2e-2)


def test_evaluation_mode_and_no_gradient_meanwhile_and_afterwards_as_before() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.free = nn.BatchNorm3d(1), Pointwise(1, 3, 3)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            assert not any(module.training for module in self.modules()) and not torch.is_grad_enabled()
            return self.free(self.frozen(batch))

    network = Watching().train()
    network.frozen.eval()
    predict_image([network], image(1, 9, 9, 9), experiment())
    assert network.training and network.free.training and not network.frozen.training


def test_wrong_shapes_and_non_finite_values_are_errors() -> None:
    array = image(1, 9, 9, 9)
    with pytest.raises(MaskfoldError, match=r"expected \(\d+, 3, "):
        predict_image([Pointwise(1, 4, 3)], array, experiment())
    broken = Pointwise(1, 3, 3)
    broken.layer.weight.data.fill_(float("nan"))
    with pytest.raises(MaskfoldError, match="non-finite"):
        predict_image([broken], array, experiment())
    with pytest.raises(ValueError, match="at least one network"):
        predict_image([], array, experiment())


def test_a_read_only_memory_map_is_enough(tmp_path: Any) -> None:
    array = image(1, 20, 9, 9)
    np.save(tmp_path / "image.npy", array)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    network = Local(1, 3, 3)
    np.testing.assert_array_equal(
        predict_image([network], mapped, experiment()), predict_image([network], array, experiment())
    )
