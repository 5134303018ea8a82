"""Device and precision of predictions equal those of Fabric."""

from __future__ import annotations

import pytest
import torch

from competition.errors import MaskfoldError
from competition.inference.precision import device_context
from competition.training.distributed import make_fabric


def autocast_state(context) -> tuple[bool, torch.dtype | None]:
    with context():
        inside = torch.is_autocast_enabled("cpu")
        return inside, torch.get_autocast_dtype("cpu") if inside else None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_on_a_cpu_it_is_what_fabric_makes_of_it(tiny, precision):
    exp = tiny(2, f"training.precision={precision}", "run.accelerator=cpu")
    fabric, place = make_fabric(exp)[0], device_context(exp)
    assert place.device == fabric.device and autocast_state(place.autocast) == autocast_state(fabric.autocast)


@pytest.mark.parametrize(
    ("capability", "setting", "expected"),
    [
        ((7, 5), "auto", "fp16"),
        ((6, 0), "auto", "fp16"),
        ((8, 0), "auto", "bf16"),  # T4, P100, A100
        ((7, 5), "bf16", "fp16"),
        ((8, 0), "bf16", "bf16"),
        ((8, 0), "fp16", "fp16"),
        ((7, 5), "fp32", "fp32"),
    ],
)
def test_a_gpu_without_bf16_computes_in_fp16(tiny, monkeypatch, capability, setting, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    place = device_context(tiny(2, f"training.precision={setting}"))
    assert (place.device, place.precision) == (torch.device("cuda", 0), expected)


def test_a_cpu_predicts_in_bf16_what_was_trained_in_fp16(tiny):
    assert device_context(tiny(2, "training.precision=fp16", "run.accelerator=cpu")).precision == "bf16"


def test_a_missing_device_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MaskfoldError, match="run.accelerator: found cuda"):
        device_context(tiny(2, "run.accelerator=cuda"))
