"""The gate's head on every family of networks, what it learns from, and what makes no sense."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from competition.config import MaskfoldError
from competition.config.experiment import Experiment
from competition.model.gate import Gated, deepest_map, gate_loss, presence
from competition.model.loss import SegmentationLoss
from competition.model.network import build_network, check_network
from competition.model.outputs import main_output, output_levels, split_gate, tensors_of
from competition.training.runs import run_hash
from tests.model import experiment

NETS = "monai.networks.nets."
SHALLOW = {"channels": [4, 8, 8], "strides": [2, 2]}
DYN = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "deep_supervision": True,
    "deep_supr_num": 1,
}
FAMILIES = [
    ("competition.model.unet.UNet", {"channels": [4, 8, 12], "dropout": 0.0}, "bottleneck"),
    (NETS + "UNet", SHALLOW, "model.1.submodule"),
    (NETS + "BasicUNet", {"features": [4, 4, 8, 8, 8, 4]}, "down_4"),
    (NETS + "DynUNet", DYN, "bottleneck"),
    (NETS + "SegResNet", {"init_filters": 8}, "down_layers.3"),
    (NETS + "SegResNetDS", {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}, "encoder.layers.2"),
]
GATE = {"weight": 0.5, "pooling": "max", "dropout": 0.25}


def outputs_of(network: nn.Module, image: torch.Tensor) -> tuple[Any, torch.Tensor]:
    outputs, gate = split_gate(network(image))
    assert gate is not None
    return outputs, gate


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("target", "args", "place"), FAMILIES, ids=[name.split(".")[-1] for name, _, _ in FAMILIES])
def test_any_encoder_decoder_gets_a_head_on_its_deepest_map(
    target: str, args: dict[str, Any], place: str, dims: int
) -> None:
    sections = {"dims": dims, "size": [32, 16, 16][:dims]}
    gated, plain = experiment(target, args, gate=GATE, **sections), experiment(target, args, **sections)
    check_network(gated, 1)
    network, bare = build_network(gated, 1), build_network(plain, 1)
    assert isinstance(network, Gated) and network.place.startswith(place)
    network.network.load_state_dict(bare.state_dict())
    image = torch.randn(2, 1, *gated.patch.size)
    with torch.no_grad():
        masks, expected = main_output(network.eval()(image), dims, 3), main_output(bare.eval()(image), dims, 3)
    assert torch.equal(masks, expected)
    _, gate = outputs_of(network.train(), image)
    assert gate.shape == (2, 2)
    gate.sum().backward()  # the gate alone: its head and the way down learn, the way up does not
    reached = {name for name, one in network.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert {"head.1.weight", "head.1.bias"} < reached
    first = next(name for name, _ in network.network.named_parameters())
    assert f"network.{first}" in reached and len(reached) < len(list(network.parameters()))


@pytest.mark.parametrize("name", ["Unet", "FPN"])
def test_networks_of_smp_use_their_own_head(name: str) -> None:
    target, args = f"segmentation_models_pytorch.{name}", {"encoder_name": "resnet18"}
    network = build_network(experiment(target, args, gate=GATE), 1)
    check_network(experiment(target, args, gate=GATE), 1)
    bare = build_network(experiment(target, args), 1)
    assert not isinstance(network, Gated) and network.classification_head[2].p == 0.25
    assert isinstance(network.classification_head[0], nn.AdaptiveMaxPool2d)
    network.load_state_dict({**network.state_dict(), **bare.state_dict()})
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        masks, gate = outputs_of(network.eval(), image)
        assert gate.shape == (2, 2) and torch.equal(masks, bare.eval()(image))
    outputs_of(network.train(), image)[1].sum().backward()
    assert (
        network.encoder.conv1.weight.grad.abs().sum() > 0 and network.decoder.blocks[0].conv1[0].weight.grad is None
        if name == "Unet"
        else network.encoder.conv1.weight.grad.abs().sum() > 0
    )


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_the_head_is_a_linear_layer_on_the_pooled_map(pooling: str) -> None:
    exp = experiment("competition.model.unet.UNet", {"channels": [4, 8, 12]}, gate={"pooling": pooling})
    network = build_network(exp, 1).eval()
    image, net = torch.randn(3, 1, 32, 32), network.network
    with torch.no_grad():
        deep = net.bottleneck(net.halve(net.down[1](net.halve(net.down[0](image)))))
        pooled = deep.mean((2, 3)) if pooling == "avg" else deep.amax((2, 3))
        wanted = pooled @ network.head[1].weight.T + network.head[1].bias
        assert torch.allclose(network(image)[1], wanted, atol=1e-6)


def test_a_copy_of_a_network_has_a_gate_of_its_own() -> None:
    network = build_network(experiment("competition.model.unet.UNet", {"channels": [4, 8]}, gate={}), 1).eval()
    image = torch.randn(1, 1, 32, 32)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert other(image)[1].abs().sum() == 0 and network(image)[1].abs().sum() > 0


class Squeezed(nn.Module):
    """Halved once; with a squeeze and excitation, whose pooled values are no feature map."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.inwards, self.squeeze = nn.Conv2d(1, 6, 3, stride=1 + deep, padding=1), nn.AdaptiveAvgPool2d(1)
        self.excite, self.outwards = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)
        self.enlarge = nn.Upsample(scale_factor=1 + deep)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.inwards(image)
        return self.enlarge(self.outwards(values * self.excite(self.squeeze(values)).sigmoid()))


def test_pooled_values_are_no_feature_map_and_a_flat_network_is_refused() -> None:
    with torch.device("meta"):
        deep, flat = Squeezed(True), Squeezed(False)
    assert deepest_map(deep, lambda: Squeezed(True), 1, (16, 16)) == ("inwards", 6)
    with pytest.raises(MaskfoldError, match="smaller than the patch") as error:
        deepest_map(flat, lambda: Squeezed(False), 1, (16, 16))
    assert error.value.status == 2 and "gate" in error.value.cure


IGNORES = pytest.mark.parametrize("ignore", [255, None])  # pseudo-labels have ignored pixels in any competition


@IGNORES
def test_the_truth_of_a_patch(ignore: int | None) -> None:
    comp = experiment(classes=3, ignore=ignore).competition
    mask = torch.zeros(4, 1, 2, 3, dtype=torch.uint8)
    mask[0, 0, 1, 2], mask[1, 0, 0] = 3, torch.tensor([1, 3, 255])
    mask[2] = 255
    there, known = presence(mask, comp)
    assert there.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert known.tolist() == [[True] * 3, [True] * 3, [False] * 3, [True] * 3]


@IGNORES
def test_the_truth_of_a_patch_with_overlapping_classes_and_with_a_boundary(ignore: int | None) -> None:
    comp = experiment(classes=2, labels="overlapping", ignore=ignore).competition
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    mask[0, 0, 0, 0], mask[0, 1] = 1, 255
    there, known = presence(mask, comp)
    assert there.tolist() == [[1, 0], [0, 0]] and known.tolist() == [[True, False], [True, True]]
    one = experiment(classes=1).competition
    edge = torch.tensor([[[0, 2]], [[0, 0]]], dtype=torch.uint8)[:, None]  # 2 is the boundary of objects of class 1
    assert presence(edge, one)[0].tolist() == [[1], [0]]


def test_the_gates_loss_by_hand() -> None:
    comp = experiment(classes=2, ignore=255).competition
    mask = torch.zeros(3, 1, 1, 2, dtype=torch.uint8)
    mask[0, 0, 0, 0], mask[2] = 2, 255
    logits = torch.tensor([[0.5, 2.0], [-1.0, 0.0], [9.0, -9.0]])
    by_hand = [math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(-1.0)), math.log(2)]
    assert gate_loss(logits, mask, comp).item() == pytest.approx(sum(by_hand) / 4, rel=1e-6)
    nothing = gate_loss(logits[2:].requires_grad_(), mask[2:], comp)
    nothing.backward()
    assert nothing.item() == 0


def test_the_weight_says_how_much_of_it_is_in_the_total() -> None:
    masks, gate = torch.randn(2, 3, 8, 8), torch.randn(2, 2)
    mask = torch.randint(0, 3, (2, 1, 8, 8), dtype=torch.uint8)
    without, parts = SegmentationLoss(experiment())(masks, mask)
    assert "gate" not in parts
    for weight in (0.0, 0.5):
        exp = experiment(gate={"weight": weight})
        total, named = SegmentationLoss(exp)((masks, gate), mask)
        assert named["gate"].item() == pytest.approx(gate_loss(gate, mask, exp.competition).item())
        assert total.item() == pytest.approx(without.item() + weight * named["gate"].item(), rel=1e-6)
    with pytest.raises(ValueError, match="without a gate"):
        SegmentationLoss(exp)(masks, mask)


def test_masks_are_found_beside_a_gate_in_whatever_form() -> None:
    masks, gate = torch.randn(2, 3, 8, 8), torch.randn(2, 2)
    stack = torch.stack([masks, masks], 1)
    for outputs in (masks, stack, [masks, masks], {"main": masks}):
        assert torch.equal(output_levels((outputs, gate), 2, 3)[0][0], masks)
        assert len(output_levels((outputs, gate), 2, 3)) == len(output_levels(outputs, 2, 3))
        assert split_gate(outputs)[1] is None
    assert len(tensors_of(({"main": masks, "deep": [masks]}, gate))) == 3


def test_two_heads_and_a_boundary_of_several_classes_are_refused() -> None:
    exp = experiment(
        "segmentation_models_pytorch.Unet", {"encoder_name": "resnet18", "aux_params": {"classes": 2}}, gate={}
    )
    with pytest.raises(MaskfoldError, match="aux_params") as error:
        check_network(exp, 1)
    assert error.value.status == 2
    plain = experiment(gate={}).model_dump()
    plain["competition"]["instances"], plain["prepare"]["boundary"] = True, 2
    with pytest.raises(ValueError, match="boundary"):
        Experiment.model_validate(plain)
    plain["competition"]["classes"] = ["one"]
    assert Experiment.model_validate(plain).gate is not None
    with pytest.raises(ValueError, match="section `gate`"):
        experiment(postprocess={"steps": [{"gate": 0.5}]})
    with pytest.raises(ValueError, match="weight"):
        experiment(gate={"weight": -1.0})


def test_a_run_without_a_gate_keeps_its_name() -> None:
    assert run_hash(experiment(), "data") == "6372cbd9491d"
    assert run_hash(experiment(gate={}), "data") != run_hash(experiment(), "data")
