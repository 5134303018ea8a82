"""Fixtures of the configuration tests: a small experiment in a temporary folder, which becomes the working folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition.config.loading import load_experiment
from competition.errors import MaskfoldError

COMPETITION = """\
name: toy
root: pictures
dimensions: 2
classes: [cell]
train:
  images: "images/{id}.png"
  masks: "masks/{id}.png"
submission:
  columns: {id: id, class: kind, mask: rle}
"""
EXPERIMENT = """\
competition: competition.yaml
patch: {size: [64, 64]}
model:
  target: torch.nn.Conv2d
  args: {kernel_size: 3}
loss: {target: torch.nn.MSELoss}
"""
LAST = EXPERIMENT.count("\n")  # number of the line after which `toy(...)` adds its text


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`toy("seed: 3")`: write an experiment with these additional lines, and return its path.

    The competition's YAML is in the same folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MASKFOLD_TRUST", raising=False)
    (tmp_path / "competition.yaml").write_text(COMPETITION)

    def make(more: str = "") -> Path:
        (tmp_path / "unet.yaml").write_text(EXPERIMENT + more)
        return Path("unet.yaml")

    return make


@pytest.fixture
def refusal(toy: Callable[[str], Path]) -> Callable[..., str]:
    """`refusal("folds: {k: 1}", "seed=a")`: return the error message for an invalid experiment.

    The arguments are additional lines of the YAML file, and overrides of the command line.
    """

    def load(more: str = "", *words: str) -> str:
        with pytest.raises(MaskfoldError) as caught:
            load_experiment(toy(more), words)
        assert caught.value.status == 2
        return str(caught.value)

    return load
