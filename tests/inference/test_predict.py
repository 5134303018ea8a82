"""Prediction of a case on the grid of its file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from competition.config.experiment import Experiment, PreprocessingConfig
from competition.data import preprocessing
from competition.data.cache import PreprocessedCase
from competition.data.preprocessing import preprocess_case
from competition.errors import MaskfoldError
from competition.inference.masks import to_masks
from competition.inference.predict import predict_case
from tests.inference.networks import Pointwise, experiment


def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: np.ndarray, exp: Experiment, spacing: tuple[float, ...]
) -> PreprocessedCase:
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0]) if len(spacing) == 3 else None
    picture = SimpleNamespace(array=array, spacing=spacing, affine=affine)
    monkeypatch.setattr(preprocessing, "load_image", lambda comp, row: picture)
    monkeypatch.setattr(preprocessing, "unchanged_files", lambda *_, **__: nullcontext())
    row: Any = SimpleNamespace(id="one", split="test", hash="h")
    return PreprocessedCase.open(preprocess_case(row, exp, tmp_path))


class Bright(nn.Module):
    """Network that predicts class 1 where a normalised value is above a threshold, class 2 nowhere."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        value = 5 * (batch[:, :1] - self.threshold)
        return torch.cat([-value, value, torch.full_like(value, -50)], dim=1)


@pytest.mark.parametrize(
    "prepare",
    [
        {},
        {"orientation": "PIR"},
        {"orientation": "SRA", "spacing": [1.0, 1.0, 1.0]},
        {"crop": "nonzero", "spacing": [1.0, 0.8, 1.5]},
        {"resize": [36, 36, 36]},
    ],
)
def test_a_bright_ball_is_predicted_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: dict[str, Any]
) -> None:
    at = np.meshgrid(np.arange(30), np.arange(26), np.arange(12) * 2, indexing="ij")
    ball = (at[0] - 12) ** 2 + (at[1] - 15) ** 2 + (at[2] - 11) ** 2 < 7**2
    array = np.where(ball, 800, 0).astype(np.int16)[None]
    values = PreprocessingConfig(intensity="window", window=[400.0, 800.0], **prepare)
    exp = experiment(size=(12, 16, 12)).model_copy(update={"prepare": values})
    case = prepared(tmp_path, monkeypatch, array, exp, (1.0, 1.0, 2.0))
    found = predict_case([Bright(0.5)], case, exp)
    assert found.dtype == np.float16 and found.shape == (3, 30, 26, 12)
    masks = to_masks(found, exp.competition)
    dice = 2 * (masks[0] & ball).sum() / (masks[0].sum() + ball.sum())
    assert dice == 1 if case.geometry.lossless else dice > 0.98


def test_2d_images_are_normalised_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.full((1, 20, 30), 50, np.uint8)
    array[0, 5:12, 8:20] = 180
    exp = experiment(2, (16, 16)).model_copy(update={"prepare": PreprocessingConfig(resize=[20, 40])})
    case = prepared(tmp_path, monkeypatch, array, exp, (1.0, 1.0))
    masks = to_masks(predict_case([Bright(0.0)], case, exp), exp.competition)
    np.testing.assert_array_equal(masks[0], array[0] == 180)


def test_errors_name_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prepared(tmp_path, monkeypatch, np.ones((1, 5, 5, 5), np.int16), experiment(), (1.0, 1.0, 1.0))
    with pytest.raises(MaskfoldError, match=r"Case one .*returned \(\d, 7, "):
        predict_case([Pointwise(1, 7, 3)], case, experiment())
