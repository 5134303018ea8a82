"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from competition.models.ema import ExponentialMovingAverage


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def change_weights(net: nn.Module, seed: int) -> None:
    """Change weights and batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    net(torch.randn(2, 1, 5, 5, generator=generator))


def test_parameters_are_averaged_and_buffers_copied() -> None:
    net = network()
    ema = ExponentialMovingAverage(net, 0.3)
    expected = net[0].weight.detach().clone()
    for step in range(6):
        change_weights(net, step)
        ema.update(net)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    weights = ema.weights()
    assert torch.allclose(weights["0.weight"], expected, atol=1e-6)
    assert not torch.equal(weights["0.weight"], net[0].weight)
    assert torch.equal(weights["1.running_mean"], net[1].running_mean)
    assert weights["1.num_batches_tracked"] == 6
    network(9).load_state_dict(weights)


def test_decay_warms_up() -> None:
    net = network()
    ema = ExponentialMovingAverage(net, 0.999)
    change_weights(net, 1)
    ema.update(net)
    start = network()[0].weight
    assert torch.allclose(ema.weights()["0.weight"], 0.1 * start + 0.9 * net[0].weight, atol=1e-6)


def test_update_does_not_change_the_network_or_share_its_tensors() -> None:
    net = network()
    ema = ExponentialMovingAverage(net, 0.9)
    kept = {name: tensor.clone() for name, tensor in ema.weights().items()}
    change_weights(net, 1)
    assert all(torch.equal(kept[name], tensor) for name, tensor in ema.weights().items())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ema.update(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(tensor.requires_grad for tensor in ema.weights().values())


def test_shared_parameters() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    ema = ExponentialMovingAverage(net, 0.5)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    ema.update(net)
    assert torch.equal(ema.weights()["0.weight"], ema.weights()["1.weight"])
    assert not torch.equal(ema.weights()["0.weight"], net[0].weight)


def test_resuming_gives_the_same_bits() -> None:
    net = network()
    straight, broken = ExponentialMovingAverage(net, 0.99), ExponentialMovingAverage(net, 0.99)
    for step in range(8):
        change_weights(net, step)
        straight.update(net)
        broken.update(net)
        state = {
            "updates": broken.state_dict()["updates"],
            "weights": {name: tensor.clone() for name, tensor in broken.state_dict()["weights"].items()},
        }
        broken = ExponentialMovingAverage(network(step), 0.99)
        broken.load_state_dict(state)
    assert all(torch.equal(tensor, broken.weights()[name]) for name, tensor in straight.weights().items())


class WithCounter(nn.Module):
    """A network with an integer parameter, two dtypes, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.wide = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.counter = nn.Parameter(torch.tensor([0, 5]), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(image))


def test_every_bit_is_that_of_the_formula_and_the_keys_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    net = WithCounter()
    ema = ExponentialMovingAverage(net, 0.9)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    averaged = {name for name, parameter in net.named_parameters() if parameter.is_floating_point()}
    for update in range(100):
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter))
                else:
                    parameter.add_(1)
        net(torch.randn(2, 1, 5, 5))
        ema.update(net)
        decay = min(0.9, (1 + update) / (10 + update))
        for name, tensor in net.state_dict().items():
            if name in averaged:
                expected[name].lerp_(tensor, 1.0 - decay)
            else:
                expected[name].copy_(tensor)
    state = ema.state_dict()
    assert list(state) == ["updates", "weights"] and state["updates"] == 100
    assert list(state["weights"]) == list(net.state_dict()) and "scratch" not in state["weights"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state["weights"].items())


def test_average_of_another_network_is_an_error() -> None:
    with pytest.raises(KeyError, match="network"):
        ExponentialMovingAverage(network(), 0.9).load_state_dict(
            ExponentialMovingAverage(nn.Linear(2, 2), 0.9).state_dict()
        )
