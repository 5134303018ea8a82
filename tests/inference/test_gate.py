"""A case's gate: the windows' largest number of each network, the mean over views, networks together, on the file's own slices."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from competition.config import MaskfoldError
from competition.config.experiment import Prepare
from competition.data.geometry import Geometry
from competition.inference.gate import agreed, on_file_grid
from competition.inference.store import OofStore
from competition.inference.window import predict_gated, predict_prepared, starts
from tests.inference.networks import experiment


class Corner(nn.Module):
    """Masks of nothing, and a gate that looks at the first voxel and the mean: a flip changes what it says."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.anchor = factor, nn.Parameter(torch.zeros(()))

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = batch.flatten(1)
        logits = torch.stack([self.factor * values[:, 0], values.mean(1) - self.factor], 1) + self.anchor
        return batch[:, :1].repeat(1, 3, *[1] * (batch.ndim - 2)) * 0, logits


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def said(window: np.ndarray, factor: float) -> np.ndarray:
    return sigmoid(np.array([factor * window.flat[0], window.mean() - factor]))


def with_gate(exp):
    from competition.config.gate import Gate

    return exp.model_copy(update={"gate": Gate()})


def test_a_pictures_gate_by_hand() -> None:
    exp = with_gate(experiment(2, (8, 8), tta=["flip"], overlap=0.3, batch_size=3))
    image = np.random.default_rng(0).normal(size=(1, 19, 12)).astype(np.float32)
    networks = [Corner(1.0), Corner(-2.0)]
    probabilities, gate = predict_gated(networks, image, exp)
    rows, columns = starts(19, 8, 0.3), starts(12, 8, 0.3)
    assert len(rows) * len(columns) > 3  # more than one batch
    wanted = []
    for network in networks:
        windows = [image[0, row : row + 8, column : column + 8] for row, column in itertools.product(rows, columns)]
        views = [
            np.mean([said(view, network.factor) for view in (w, w[::-1], w[:, ::-1], w[::-1, ::-1])], axis=0)
            for w in windows
        ]
        wanted.append(np.max(views, axis=0))
    np.testing.assert_allclose(gate[:, 0], sigmoid(np.log(wanted / (1 - np.array(wanted))).mean(0)), rtol=1e-5)
    assert np.array_equal(probabilities, predict_prepared(networks, image, exp))
    assert gate.shape == (2, 1)


def test_networks_together_take_the_mean_of_their_log_odds() -> None:
    one, two = np.array([[0.8], [0.5]]), np.array([[0.2], [0.9]])
    assert agreed([one, two]) == pytest.approx(np.array([[0.5], [0.75]]))  # odds 4 and 1/4; 1 and 9: 3
    assert agreed([one, two], [0.75, 0.25]) == pytest.approx(np.array([[2 / 3], [9**0.25 / (1 + 9**0.25)]]))
    assert np.array_equal(agreed([np.zeros((1, 1), np.float32)]), [[0.0]])  # one alone is believed
    assert 0.3 < agreed([np.array([[1e-30]]), *[np.array([[0.9]])] * 3]).item() < 0.6  # but does not outvote three
    slices = np.array([[[0.2, 0.5, 0.8]]])
    assert np.array_equal(agreed([slices, np.array([[[0.5]]])]), agreed([slices, np.full((1, 1, 3), 0.5)]))


def test_networks_together_mean_by_a_threshold_what_each_does() -> None:
    draw = np.random.default_rng(0)
    there = draw.normal(2.5, 1.5, (5, 20_000))  # log odds of five networks that err apart, of cases that hold the class
    alone = np.mean(sigmoid(there) >= 0.8)
    assert np.mean(agreed(list(sigmoid(there))) >= 0.8) > alone + 0.05
    assert np.mean(agreed(list(sigmoid(there))) >= 0.8) > np.mean(sigmoid(there).mean(0) >= 0.8) + 0.1


def test_a_flat_network_says_it_of_each_slice() -> None:
    exp = with_gate(experiment(3, (8, 8), slices=3, overlap=0.5, batch_size=3))
    image = (
        np.random.default_rng(1).normal(size=(1, 8, 13, 21)).astype(np.float32)
    )  # more slices than are read together
    _, gate = predict_gated([Corner(1.0)], image, exp)
    wanted = np.empty((2, 21))
    for z in range(21):
        stack = image[0][..., np.clip([z - 1, z, z + 1], 0, 20)].transpose(2, 0, 1)
        wanted[:, z] = np.max([said(stack[:, :, column : column + 8], 1.0) for column in starts(13, 8, 0.5)], axis=0)
    np.testing.assert_allclose(gate, wanted, rtol=1e-5)


def test_a_network_without_a_gate_has_none_and_one_that_lacks_it_is_refused() -> None:
    exp, image = experiment(2, (8, 8)), np.zeros((1, 8, 8), np.float32)
    assert predict_gated([Corner(1.0)], image, exp)[1] is None
    bare = nn.Conv2d(1, 3, 1)
    with pytest.raises(MaskfoldError, match="no gate"):
        predict_gated([bare], image, with_gate(exp))
    broken = Corner(float("nan"))
    with pytest.raises(MaskfoldError, match="not finite"):
        predict_gated([broken], image, with_gate(exp))


@pytest.mark.parametrize(
    ("orientation", "spacing", "crop"),
    [
        ("RAS", None, "none"),
        ("LIP", None, "nonzero"),
        ("PSR", [1.0, 1.0, 1.0], "none"),
        ("SAL", [2.0, 1.5, 0.7], "nonzero"),
    ],
)
def test_slices_find_back_to_the_file(orientation: str, spacing: list[float] | None, crop: str) -> None:
    """As a whole volume does that says the same all over a slice."""
    generator = np.random.default_rng(2)
    image = np.zeros((1, 9, 7, 11), np.float32)
    image[:, 2:8, 1:6, 3:9] = 1 + generator.random((1, 6, 5, 6))
    affine = np.diag([1.0, 2.0, 1.5, 1.0])
    prepare = Prepare(orientation=orientation, spacing=spacing, crop=crop)
    geometry = Geometry.plan(image, (1.0, 2.0, 1.5), affine, prepare, background=False)
    gate = generator.random((2, geometry.shape[-1]))
    found = on_file_grid(gate, geometry, by_slice=True)
    whole = geometry.undo(np.broadcast_to(gate[:, None, None].astype(np.float32), (2, *geometry.shape)))
    axis = geometry.axes[-1] + 1
    assert found.shape == tuple(n if place in (0, axis) else 1 for place, n in enumerate(whole.shape))
    others = tuple(place for place in (1, 2, 3) if place != axis)
    np.testing.assert_allclose(found, whole.max(axis=others, keepdims=True), atol=1e-6)
    assert on_file_grid(gate[:, :1], geometry, by_slice=False).shape == (2, 1, 1, 1)


def test_the_store_keeps_it_beside_the_probabilities(tmp_path: Path) -> None:
    store = OofStore(tmp_path / "oof", "uint8")
    probabilities = np.full((3, 4, 5), 0.2, np.float16)
    gate = np.array([0.125, 1 / 3], np.float32).reshape(2, 1, 1)
    store.write("a b", probabilities, gate)
    store.write("plain", probabilities)
    assert np.array_equal(store.gate("a b"), gate) and store.gate("a b").dtype == np.float32
    assert store.gate("plain") is None and np.array_equal(store.read("a b"), store.read("plain"))
    for wrong in (gate.reshape(2, 1), np.full((2, 3, 1), 0.5), gate + 1, np.full((2, 1, 1), np.nan)):
        store.write("wrong", probabilities, wrong)
        with pytest.raises(MaskfoldError, match="damaged"):
            store.gate("wrong")
    with pytest.raises(MaskfoldError, match="No out-of-fold"):
        store.gate("nobody")
