"""The plain U-Net: shapes, parameters, dropout, skip connections, and invalid arguments."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.models.build import build_network, parameter_count, validate_network
from competition.models.unet import UNet
from tests.models import experiment

TARGET = "competition.models.unet.UNet"
SMALL = (3, 4, 5, 6, 7)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (50, 70), (17, 32), (32, 16, 32), (33, 35, 19)])
def test_any_size_from_two_at_the_bottleneck_on(size: tuple[int, ...], norm: Any) -> None:
    network = UNet(len(size), 2, 3, channels=SMALL, norm=norm)
    image = torch.randn(2, 2, *size)
    logits = network(image)
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_number_of_parameters_is_that_of_the_formula() -> None:
    def formula(dims: int, inputs: int, outputs: int, widths: tuple[int, ...]) -> int:
        def block(before: int, width: int) -> int:
            return 3**dims * (before * width + width * width) + 4 * width  # two convolutions, two scales, two shifts

        count = sum(block(a, b) for a, b in zip((inputs, *widths), widths, strict=False))
        for high, low in pairwise(widths):
            count += 2**dims * low * high + high + block(2 * high, high)
        return count + widths[0] * outputs + outputs

    assert parameter_count(UNet(2, 3, 1)) == formula(2, 3, 1, (32, 64, 128, 256, 512))
    assert parameter_count(UNet(3, 1, 6, channels=SMALL)) == formula(3, 1, 6, SMALL)


def test_dropout_is_at_the_bottleneck_and_only_in_training() -> None:
    network = UNet(2, 1, 1, channels=SMALL, dropout=0.5)
    places = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    assert places == ["bottleneck.1"]
    seen: list[torch.Tensor] = []
    network.bottleneck.register_forward_hook(lambda *parts: seen.append(parts[2]))
    image = torch.randn(4, 1, 64, 64)
    inside: list[torch.Tensor] = []
    network.bottleneck[0].register_forward_hook(lambda *parts: inside.append(parts[2]))
    network(image)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * inside[0][kept])
    assert 0.3 < (~kept & (inside[0] != 0)).sum() / (inside[0] != 0).sum() < 0.7
    network.eval()
    torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)
    assert torch.equal(seen[-1], inside[-1])


def test_skip_connections_carry_detail_and_the_bottleneck_carries_context() -> None:
    """One changed pixel reaches all of a 64×64 image; without the bottleneck, it reaches its surroundings only."""
    torch.manual_seed(0)  # a narrow network may be made of dead units
    network = UNet(2, 1, 1, channels=(16, 16, 16, 16, 16), dropout=0).eval()
    image = torch.zeros(1, 1, 64, 64)
    dot = image.clone()
    dot[0, 0, 31, 31] = 10
    reach = (network(dot) - network(image))[0, 0].abs() > 0
    with torch.no_grad():
        for enlarge in network.enlarge:
            enlarge.weight.zero_()
    near = (network(dot) - network(image))[0, 0].abs() > 0
    assert near[31, 31] and not near[:25].any() and not near[:, 40:].any()
    assert reach.sum() > 4 * near.sum()


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("dims", "size"), [(2, [64, 96]), (2, [50, 70]), (3, [32, 32, 16])])
def test_an_experiment_takes_it(dims: int, size: list[int], norm: str) -> None:
    exp = experiment(TARGET, {"channels": [4, 4, 4, 4, 8], "norm": norm, "dropout": 0.2}, dims=dims, size=size)
    validate_network(exp, 3)
    network = build_network(exp, 3)
    assert isinstance(network, UNet) and network(torch.randn(2, 3, *size)).shape == (2, 3, *size)


def test_invalid_settings_are_errors() -> None:
    with pytest.raises(MaskfoldError, match=r"patch\.size: found \[8, 8\].*UNet.*\[16, 16\]"):
        validate_network(experiment(TARGET, {"channels": list(SMALL)}, size=[8, 8]), 1)
    with pytest.raises(MaskfoldError, match="norm: found group"):
        validate_network(experiment(TARGET, {"norm": "group"}), 1)
    with pytest.raises(MaskfoldError, match=r"spatial_dims: found 3, expected 2"):
        validate_network(experiment(TARGET, {"spatial_dims": 3}), 1)
    with pytest.raises(ValueError, match="spatial_dims: found 1"):
        UNet(1, 1, 1)
    with pytest.raises(ValueError, match=r"channels: found \[8\]"):
        UNet(2, 1, 1, channels=(8,))
