"""Presence of a case: maximum over windows, mean over views, combined networks, on the slices of the file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from competition.config.experiment import PreprocessingConfig
from competition.data.geometry import Geometry
from competition.errors import MaskfoldError
from competition.inference.presence import mean_log_odds, presence_on_file_grid
from competition.inference.sliding_window import predict_image, predict_image_with_presence, window_starts
from competition.runs.oof import OofStore
from tests.inference.networks import experiment


class Corner(nn.Module):
    """Network with empty masks whose presence logits depend on the first voxel and the mean, so flips change them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.anchor = factor, nn.Parameter(torch.zeros(()))

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = batch.flatten(1)
        logits = torch.stack([self.factor * values[:, 0], values.mean(1) - self.factor], 1) + self.anchor
        return batch[:, :1].repeat(1, 3, *[1] * (batch.ndim - 2)) * 0, logits


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def expected_presence(window: np.ndarray, factor: float) -> np.ndarray:
    return sigmoid(np.array([factor * window.flat[0], window.mean() - factor]))


def with_gate(exp):
    from competition.config.experiment import PresenceHeadConfig

    return exp.model_copy(update={"gate": PresenceHeadConfig()})


def test_presence_of_an_image_by_hand() -> None:
    exp = with_gate(experiment(2, (8, 8), tta=["flip"], overlap=0.3, batch_size=3))
    image = np.random.default_rng(0).normal(size=(1, 19, 12)).astype(np.float32)
    networks = [Corner(1.0), Corner(-2.0)]
    probabilities, gate = predict_image_with_presence(networks, image, exp)
    rows, columns = window_starts(19, 8, 0.3), window_starts(12, 8, 0.3)
    assert len(rows) * len(columns) > 3  # more than one batch
    expected = []
    for network in networks:
        windows = [image[0, row : row + 8, column : column + 8] for row, column in itertools.product(rows, columns)]
        views = [
            np.mean(
                [expected_presence(view, network.factor) for view in (w, w[::-1], w[:, ::-1], w[::-1, ::-1])], axis=0
            )
            for w in windows
        ]
        expected.append(np.max(views, axis=0))
    np.testing.assert_allclose(gate[:, 0], sigmoid(np.log(expected / (1 - np.array(expected))).mean(0)), rtol=1e-5)
    assert np.array_equal(probabilities, predict_image(networks, image, exp))
    assert gate.shape == (2, 1)


def test_networks_are_combined_by_mean_log_odds() -> None:
    one, two = np.array([[0.8], [0.5]]), np.array([[0.2], [0.9]])
    assert mean_log_odds([one, two]) == pytest.approx(np.array([[0.5], [0.75]]))  # odds 4 and 1/4; 1 and 9: 3
    assert mean_log_odds([one, two], [0.75, 0.25]) == pytest.approx(np.array([[2 / 3], [9**0.25 / (1 + 9**0.25)]]))
    assert np.array_equal(mean_log_odds([np.zeros((1, 1), np.float32)]), [[0.0]])  # a single value is unchanged
    combined = mean_log_odds([np.array([[1e-30]]), *[np.array([[0.9]])] * 3])
    assert 0.3 < combined.item() < 0.6  # one sure network does not outvote three
    slices = np.array([[[0.2, 0.5, 0.8]]])
    assert np.array_equal(
        mean_log_odds([slices, np.array([[[0.5]]])]), mean_log_odds([slices, np.full((1, 1, 3), 0.5)])
    )


def test_a_threshold_keeps_its_meaning_for_combined_networks() -> None:
    draw = np.random.default_rng(0)
    there = draw.normal(2.5, 1.5, (5, 20_000))  # log odds of five networks that err apart, of cases that hold the class
    alone = np.mean(sigmoid(there) >= 0.8)
    assert np.mean(mean_log_odds(list(sigmoid(there))) >= 0.8) > alone + 0.05
    assert np.mean(mean_log_odds(list(sigmoid(there))) >= 0.8) > np.mean(sigmoid(there).mean(0) >= 0.8) + 0.1


def test_a_2d_network_predicts_presence_of_each_slice() -> None:
    exp = with_gate(experiment(3, (8, 8), slices=3, overlap=0.5, batch_size=3))
    # More slices than are read together.
    image = np.random.default_rng(1).normal(size=(1, 8, 13, 21)).astype(np.float32)
    _, gate = predict_image_with_presence([Corner(1.0)], image, exp)
    expected = np.empty((2, 21))
    for z in range(21):
        stack = image[0][..., np.clip([z - 1, z, z + 1], 0, 20)].transpose(2, 0, 1)
        expected[:, z] = np.max(
            [expected_presence(stack[:, :, column : column + 8], 1.0) for column in window_starts(13, 8, 0.5)], axis=0
        )
    np.testing.assert_allclose(gate, expected, rtol=1e-5)


def test_no_presence_without_gate_and_a_missing_head_is_an_error() -> None:
    exp, image = experiment(2, (8, 8)), np.zeros((1, 8, 8), np.float32)
    assert predict_image_with_presence([Corner(1.0)], image, exp)[1] is None
    bare = nn.Conv2d(1, 3, 1)
    with pytest.raises(MaskfoldError, match="gate is set"):
        predict_image_with_presence([bare], image, with_gate(exp))
    broken = Corner(float("nan"))
    with pytest.raises(MaskfoldError, match="non-finite"):
        predict_image_with_presence([broken], image, with_gate(exp))


@pytest.mark.parametrize(
    ("orientation", "spacing", "crop"),
    [
        ("RAS", None, "none"),
        ("LIP", None, "nonzero"),
        ("PSR", [1.0, 1.0, 1.0], "none"),
        ("SAL", [2.0, 1.5, 0.7], "nonzero"),
    ],
)
def test_presence_is_mapped_to_the_slices_of_the_file(orientation: str, spacing: list[float] | None, crop: str) -> None:
    """The result equals that of a volume that is constant in each slice."""
    generator = np.random.default_rng(2)
    image = np.zeros((1, 9, 7, 11), np.float32)
    image[:, 2:8, 1:6, 3:9] = 1 + generator.random((1, 6, 5, 6))
    affine = np.diag([1.0, 2.0, 1.5, 1.0])
    prepare = PreprocessingConfig(orientation=orientation, spacing=spacing, crop=crop)
    geometry = Geometry.plan(image, (1.0, 2.0, 1.5), affine, prepare, background=False)
    gate = generator.random((2, geometry.shape[-1]))
    found = presence_on_file_grid(gate, geometry, by_slice=True)
    whole = geometry.inverse(np.broadcast_to(gate[:, None, None].astype(np.float32), (2, *geometry.shape)))
    axis = geometry.axes[-1] + 1
    assert found.shape == tuple(n if place in (0, axis) else 1 for place, n in enumerate(whole.shape))
    others = tuple(place for place in (1, 2, 3) if place != axis)
    np.testing.assert_allclose(found, whole.max(axis=others, keepdims=True), atol=1e-6)
    assert presence_on_file_grid(gate[:, :1], geometry, by_slice=False).shape == (2, 1, 1, 1)


def test_the_store_keeps_presence(tmp_path: Path) -> None:
    store = OofStore(tmp_path / "oof", "uint8")
    probabilities = np.full((3, 4, 5), 0.2, np.float16)
    gate = np.array([0.125, 1 / 3], np.float32).reshape(2, 1, 1)
    store.write("a b", probabilities, gate)
    store.write("plain", probabilities)
    assert np.array_equal(store.presence("a b"), gate) and store.presence("a b").dtype == np.float32
    assert store.presence("plain") is None and np.array_equal(store.read("a b"), store.read("plain"))
    for wrong in (gate.reshape(2, 1), np.full((2, 3, 1), 0.5), gate + 1, np.full((2, 1, 1), np.nan)):
        store.write("wrong", probabilities, wrong)
        with pytest.raises(MaskfoldError, match="damaged"):
            store.presence("wrong")
    with pytest.raises(MaskfoldError, match="no out-of-fold prediction of the case nobody"):
        store.presence("nobody")
