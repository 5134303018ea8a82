"""Any optimiser by its import path, with its arguments checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.models.optim import build_optimizer
from tests.models import experiment


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("torch.optim.AdamW", {"lr": 1e-3, "weight_decay": 1e-4, "betas": [0.9, 0.95]}),
        ("torch.optim.SGD", {"lr": 1e-2, "momentum": 0.99, "nesterov": True}),
        ("torch.optim.RAdam", {"lr": 1e-3}),
        ("monai.optimizers.Novograd", {"lr": 1e-3}),
        ("timm.optim.Lamb", {"lr": 1e-3}),
    ],
)
def test_every_trainable_parameter_moves(target: str, args: dict[str, Any]) -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    optimizer = build_optimizer(experiment(optimizer={"target": target, "args": args}), network)
    before = network.weight.detach().clone()
    assert optimizer.param_groups[0]["lr"] == args["lr"] and optimizer.param_groups[0]["params"] == [network.weight]
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert (network.weight != before).all()


def test_the_encoder_has_its_own_rate() -> None:
    network = nn.Sequential(nn.Module())
    network[0].encoder, network[0].head = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizer = {"target": "torch.optim.SGD", "args": {"lr": 0.1}, "encoder_rate": 0.25}
    others, encoder = build_optimizer(experiment(optimizer=optimizer), network).param_groups
    assert (others["lr"], encoder["lr"]) == (0.1, 0.025)
    assert others["params"] == list(network[0].head.parameters())
    assert encoder["params"] == list(network[0].encoder.parameters())
    with pytest.raises(
        MaskfoldError, match="optimizer.encoder_rate is set, but Linear has no module with the name encoder"
    ):
        build_optimizer(experiment(optimizer=optimizer), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        ("torch.optim.AdamW", {}, "optimizer.args.lr"),
        ("torch.optim.AdamW", {"lr": 0}, "optimizer.args.lr: found 0"),
        ("torch.optim.AdamW", {"lr": 1e-3, "weigth_decay": 0.1}, "weigth_decay"),
        ("torch.optim.AdamW", {"lr": 1e-3, "betas": [1.5, 0.9]}, "beta"),
        ("torch.optim.AdamW", {"lr": 1e-3, "betas": 0.9}, "optimizer.args: torch.optim.AdamW rejects these arguments"),
        ("torch.optim.SGD", {"lr": 1e-3, "nesterov": True}, "(?i)nesterov"),
        ("torch.optim.LBFGS", {"lr": 1.0}, "LBFGS"),
    ],
)
def test_wrong_arguments_are_errors(target: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(MaskfoldError, match=words) as caught:
        build_optimizer(experiment(optimizer={"target": target, "args": args}), nn.Linear(3, 2))
    assert caught.value.status == 2 and "optimizer." in str(caught.value)
