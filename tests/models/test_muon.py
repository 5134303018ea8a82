"""`competition.models.muon.Muon`: orthogonal updates of matrices, AdamW for the rest, and resuming."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from competition.models.muon import Muon, orthogonalize, uses_muon
from competition.models.optim import build_optimizer
from tests.models import experiment


@pytest.mark.parametrize("shape", [(8, 8), (16, 144), (144, 16), (64, 3456), (2, 2)])
def test_singular_values_become_nearly_equal(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))
    matrix = left @ torch.diag(torch.logspace(0, -2, min(shape))) @ right.T
    found = orthogonalize(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    # The directions stay: the result is the sum of the same pairs of singular vectors, with positive weights.
    weights = left.T @ found @ right
    torch.testing.assert_close(weights, torch.diag(weights.diagonal()), atol=2e-3, rtol=0)
    assert (weights.diagonal() > 0).all()


def test_the_short_iteration_equals_the_iteration_of_the_matrix() -> None:
    """The published form multiplies the matrix itself in each iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = torch.randn(24, 270, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = matrix / matrix.norm()
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalize(matrix), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(orthogonalize(matrix.float()).double(), expected, atol=2e-3, rtol=0)
    assert not orthogonalize(torch.zeros(3, 5)).any()


def test_which_parameters_are_matrices() -> None:
    network = nn.Sequential(
        nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 4, 3, groups=4), nn.ConvTranspose3d(4, 2, 2)
    )
    chosen = {name for name, parameter in network.named_parameters() if uses_muon(parameter)}
    assert chosen == {"0.weight", "3.weight"}  # not: biases, normalisation, the depthwise kernel
    assert not uses_muon(nn.Conv2d(8, 1, 1).weight) and uses_muon(nn.Linear(3, 2).weight)


def test_other_parameters_follow_torch_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.LayerNorm(6), nn.LayerNorm(6)
    first = Muon(ours.parameters(), lr=1e-2, weight_decay=0.1)
    second = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(5):
        for network, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            network(torch.arange(12.0).view(2, 6) ** 0.5 + step).pow(3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_resumed_optimiser_takes_the_same_steps() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    image = torch.randn(2, 1, 12, 12)

    def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(image).square().mean().backward()
            optimizer.step()

    optimizer = Muon(network.parameters(), lr=1e-2)
    take_steps(network, optimizer, 3)
    other = copy.deepcopy(network)
    resumed = Muon(other.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(network, optimizer, 3)
    take_steps(other, resumed, 3)
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_an_experiment_may_name_it() -> None:
    optimizer = {"target": "competition.models.muon.Muon", "args": {"lr": 4e-3, "betas": [0.9, 0.99]}}
    built = build_optimizer(experiment(optimizer=optimizer), nn.Conv2d(2, 3, 3))
    assert isinstance(built, Muon) and built.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("args", [{"lr": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_arguments_out_of_range(args: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(args))}.*: found .*, expected"):
        Muon(nn.Linear(2, 2).parameters(), **args)
