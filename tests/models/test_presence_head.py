"""The presence head on every family of networks, its target and loss, and invalid settings."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError
from competition.models.build import build_network, validate_network
from competition.models.interface import flatten_tensors, main_output, segmentation_outputs, split_presence
from competition.models.losses import SegmentationLoss
from competition.models.presence_head import WithPresenceHead, find_deepest_feature_map, presence_loss, presence_target
from competition.runs.identity.hashing import run_hash
from tests.models import experiment

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
    ("competition.models.unet.UNet", {"channels": [4, 8, 12], "dropout": 0.0}, "bottleneck"),
    (NETS + "UNet", SHALLOW, "model.1.submodule"),
    (NETS + "BasicUNet", {"features": [4, 4, 8, 8, 8, 4]}, "down_4"),
    (NETS + "DynUNet", DYN, "bottleneck"),
    (NETS + "SegResNet", {"init_filters": 8}, "down_layers.3"),
    (NETS + "SegResNetDS", {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}, "encoder.layers.2"),
]
GATE = {"weight": 0.5, "pooling": "max", "dropout": 0.25}


def outputs_of(network: nn.Module, image: torch.Tensor) -> tuple[Any, torch.Tensor]:
    outputs, gate = split_presence(network(image))
    assert gate is not None
    return outputs, gate


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("target", "args", "place"), FAMILIES, ids=[name.split(".")[-1] for name, _, _ in FAMILIES])
def test_any_encoder_decoder_gets_a_head_on_its_deepest_map(
    target: str, args: dict[str, Any], place: str, dims: int
) -> None:
    sections = {"dims": dims, "size": [32, 16, 16][:dims]}
    gated, plain = experiment(target, args, gate=GATE, **sections), experiment(target, args, **sections)
    validate_network(gated, 1)
    network, bare = build_network(gated, 1), build_network(plain, 1)
    assert isinstance(network, WithPresenceHead) and network.module_name.startswith(place)
    network.network.load_state_dict(bare.state_dict())
    image = torch.randn(2, 1, *gated.patch.size)
    with torch.no_grad():
        masks, expected = main_output(network.eval()(image), dims, 3), main_output(bare.eval()(image), dims, 3)
    assert torch.equal(masks, expected)
    _, gate = outputs_of(network.train(), image)
    assert gate.shape == (2, 2)
    gate.sum().backward()  # presence alone: the head and the encoder get gradients, the decoder does not
    reached = {name for name, one in network.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert {"head.1.weight", "head.1.bias"} < reached
    first = next(name for name, _ in network.network.named_parameters())
    assert f"network.{first}" in reached and len(reached) < len(list(network.parameters()))


@pytest.mark.parametrize("name", ["Unet", "FPN"])
def test_networks_of_smp_use_their_own_head(name: str) -> None:
    target, args = f"segmentation_models_pytorch.{name}", {"encoder_name": "resnet18"}
    network = build_network(experiment(target, args, gate=GATE), 1)
    validate_network(experiment(target, args, gate=GATE), 1)
    bare = build_network(experiment(target, args), 1)
    assert not isinstance(network, WithPresenceHead) and network.classification_head[2].p == 0.25
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
    exp = experiment("competition.models.unet.UNet", {"channels": [4, 8, 12]}, gate={"pooling": pooling})
    network = build_network(exp, 1).eval()
    image, net = torch.randn(3, 1, 32, 32), network.network
    with torch.no_grad():
        deep = net.bottleneck(net.halve(net.down[1](net.halve(net.down[0](image)))))
        pooled = deep.mean((2, 3)) if pooling == "avg" else deep.amax((2, 3))
        expected = pooled @ network.head[1].weight.T + network.head[1].bias
        assert torch.allclose(network(image)[1], expected, atol=1e-6)


def test_a_copied_network_has_its_own_presence_head() -> None:
    network = build_network(experiment("competition.models.unet.UNet", {"channels": [4, 8]}, gate={}), 1).eval()
    image = torch.randn(1, 1, 32, 32)
    duplicate = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
        assert duplicate(image)[1].abs().sum() == 0 and network(image)[1].abs().sum() > 0


class Squeezed(nn.Module):
    """Network that halves once, with a squeeze and excitation, whose pooled values are not a feature map."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.inwards, self.squeeze = nn.Conv2d(1, 6, 3, stride=1 + deep, padding=1), nn.AdaptiveAvgPool2d(1)
        self.excite, self.outwards = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)
        self.enlarge = nn.Upsample(scale_factor=1 + deep)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.inwards(image)
        return self.enlarge(self.outwards(values * self.excite(self.squeeze(values)).sigmoid()))


def test_pooled_values_are_not_a_feature_map_and_a_network_without_one_is_an_error() -> None:
    with torch.device("meta"):
        deep, flat = Squeezed(True), Squeezed(False)
    assert find_deepest_feature_map(deep, lambda: Squeezed(True), 1, (16, 16)) == ("inwards", 6)
    with pytest.raises(MaskfoldError, match="gate .*Squeezed") as error:
        find_deepest_feature_map(flat, lambda: Squeezed(False), 1, (16, 16))
    assert error.value.status == 2 and "gate" in error.value.hint


IGNORES = pytest.mark.parametrize("ignore", [255, None])  # pseudo-labels have ignored pixels in any competition


@IGNORES
def test_presence_target(ignore: int | None) -> None:
    comp = experiment(classes=3, ignore=ignore).competition
    mask = torch.zeros(4, 1, 2, 3, dtype=torch.uint8)
    mask[0, 0, 1, 2], mask[1, 0, 0] = 3, torch.tensor([1, 3, 255])
    mask[2] = 255
    there, known = presence_target(mask, comp)
    assert there.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert known.tolist() == [[True] * 3, [True] * 3, [False] * 3, [True] * 3]


@IGNORES
def test_presence_target_with_overlapping_classes_and_with_a_boundary(ignore: int | None) -> None:
    comp = experiment(classes=2, labels="overlapping", ignore=ignore).competition
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    mask[0, 0, 0, 0], mask[0, 1] = 1, 255
    there, known = presence_target(mask, comp)
    assert there.tolist() == [[1, 0], [0, 0]] and known.tolist() == [[True, False], [True, True]]
    one = experiment(classes=1).competition
    edge = torch.tensor([[[0, 2]], [[0, 0]]], dtype=torch.uint8)[:, None]  # 2 is the boundary of objects of class 1
    assert presence_target(edge, one)[0].tolist() == [[1], [0]]


def test_presence_loss_by_hand() -> None:
    comp = experiment(classes=2, ignore=255).competition
    mask = torch.zeros(3, 1, 1, 2, dtype=torch.uint8)
    mask[0, 0, 0, 0], mask[2] = 2, 255
    logits = torch.tensor([[0.5, 2.0], [-1.0, 0.0], [9.0, -9.0]])
    by_hand = [math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(-1.0)), math.log(2)]
    assert presence_loss(logits, mask, comp).item() == pytest.approx(sum(by_hand) / 4, rel=1e-6)
    nothing = presence_loss(logits[2:].requires_grad_(), mask[2:], comp)
    nothing.backward()
    assert nothing.item() == 0


def test_gate_weight_scales_the_presence_loss() -> None:
    masks, gate = torch.randn(2, 3, 8, 8), torch.randn(2, 2)
    mask = torch.randint(0, 3, (2, 1, 8, 8), dtype=torch.uint8)
    without, parts = SegmentationLoss(experiment())(masks, mask)
    assert "gate" not in parts
    for weight in (0.0, 0.5):
        exp = experiment(gate={"weight": weight})
        total, named = SegmentationLoss(exp)((masks, gate), mask)
        assert named["gate"].item() == pytest.approx(presence_loss(gate, mask, exp.competition).item())
        assert total.item() == pytest.approx(without.item() + weight * named["gate"].item(), rel=1e-6)
    with pytest.raises(ValueError, match="presence logits"):
        SegmentationLoss(exp)(masks, mask)


def test_segmentation_of_any_form_is_split_from_presence_logits() -> None:
    masks, gate = torch.randn(2, 3, 8, 8), torch.randn(2, 2)
    stack = torch.stack([masks, masks], 1)
    for outputs in (masks, stack, [masks, masks], {"main": masks}):
        assert torch.equal(segmentation_outputs((outputs, gate), 2, 3)[0][0], masks)
        assert len(segmentation_outputs((outputs, gate), 2, 3)) == len(segmentation_outputs(outputs, 2, 3))
        assert split_presence(outputs)[1] is None
    assert len(flatten_tensors(({"main": masks, "deep": [masks]}, gate))) == 3


def test_two_heads_or_a_boundary_of_several_classes_are_errors() -> None:
    exp = experiment(
        "segmentation_models_pytorch.Unet", {"encoder_name": "resnet18", "aux_params": {"classes": 2}}, gate={}
    )
    with pytest.raises(MaskfoldError, match="aux_params") as error:
        validate_network(exp, 1)
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


def test_run_hash_without_presence_head_is_unchanged() -> None:
    assert run_hash(experiment(), "data") == "6372cbd9491d"
    assert run_hash(experiment(gate={}), "data") != run_hash(experiment(), "data")
