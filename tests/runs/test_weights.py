"""Weights must all match; otherwise the error names the first that does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from competition.errors import MaskfoldError
from competition.runs.checkpoint import load_weights


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_loaded_exactly(file: Path) -> None:
    a, b = network(), network()
    load_weights(a, file)
    load_weights(b, file)
    assert all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())


def test_a_missing_or_damaged_file(file: Path) -> None:
    with pytest.raises(MaskfoldError, match="do not exist"):
        load_weights(network(), file.with_name("other.safetensors"))
    whole = file.read_bytes()
    for broken in (whole[:-8], whole[:20], b"", b"pickle" * 10):
        file.write_bytes(broken)
        with pytest.raises(MaskfoldError, match="cannot be read"):
            load_weights(network(), file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("1.bias"), "1.bias is missing"),
        (lambda s: s.update({"2.extra": torch.zeros(1)}), "2.extra is not part of the network"),
        (lambda s: s.update({"0.weight": torch.zeros(5, 1, 1, 1)}), r"0.weight: found \(5, 1, 1, 1\), expected \(4, "),
    ],
)
def test_a_mismatch_is_named_and_nothing_is_loaded(file: Path, change: object, words: str) -> None:
    state = {name: value + 1 for name, value in network().state_dict().items()}
    change(state)  # type: ignore[operator]
    save_file(state, file)
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(MaskfoldError, match=words):
        load_weights(target, file)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
