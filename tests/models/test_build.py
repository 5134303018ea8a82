"""Every network that README names is built from config, in 2D, 2.5D and 3D, and trains one step."""

from __future__ import annotations

import builtins
import warnings
from typing import Any

import pytest
import torch

from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.build import PatchSizeProbe, build_network, parameter_count, validate_network
from competition.models.interface import main_output, segmentation_outputs
from competition.models.losses import SegmentationLoss
from tests.models import experiment

SMP = "segmentation_models_pytorch."
NETS = "monai.networks.nets."
SHALLOW = {"channels": [4, 8, 8], "strides": [2, 2]}
BASIC = {"features": [4, 4, 8, 8, 8, 4]}
DYN = {"kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2], "filters": [4, 8, 8, 8]}
DEEP = {**DYN, "deep_supervision": True, "deep_supr_num": 2}
MONAI_NETS = [
    ("UNet", SHALLOW),
    ("BasicUNet", BASIC),
    ("DynUNet", DYN),
    ("DynUNet", DEEP),
    ("SegResNet", {"init_filters": 8}),
    ("SegResNetDS", {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}),
    ("AttentionUnet", SHALLOW),
    ("BasicUNetPlusPlus", {**BASIC, "deep_supervision": True}),
]


def one_step(exp: Any, channels: int) -> torch.nn.Module:
    """Check, build, one training batch, one evaluation; every parameter gets a gradient."""
    validate_network(exp, channels)
    torch.manual_seed(0)
    network = build_network(exp, channels)
    comp, size = exp.competition, exp.patch.size
    mask_channels, top = (1, len(comp.classes) + 1) if comp.labels == "exclusive" else (len(comp.classes), 2)
    mask = torch.randint(0, top, (2, mask_channels, *size), dtype=torch.uint8)
    total, parts = SegmentationLoss(exp)(network(torch.randn(2, channels, *size)), mask)
    total.backward()
    assert torch.isfinite(total) and parts
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not without, without
    with torch.no_grad():
        logits = main_output(network.eval()(torch.randn(1, channels, *size)), len(size), comp.output_channels)
    assert logits.shape == (1, comp.output_channels, *size)
    return network


@pytest.mark.parametrize("network", ["Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus"])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0", "mobilenet_v2"])
def test_smp(network: str, encoder: str) -> None:
    exp = experiment(SMP + network, {"encoder_name": encoder}, size=[32, 64])
    one_step(exp, 1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "args"), MONAI_NETS, ids=lambda value: value if isinstance(value, str) else "")
def test_monai(name: str, args: dict[str, Any], dims: int) -> None:
    one_step(experiment(NETS + name, args, dims=dims, size=[32, 16, 16][:dims] if dims == 3 else [32, 48]), 2)


def test_two_and_a_half_dimensions() -> None:
    exp = experiment(
        SMP + "Unet",
        {"encoder_name": "resnet18", "decoder_channels": [32, 16, 8, 8, 8]},
        dims=3,
        patch={"size": [32, 32], "slices": 3},
    )
    network = one_step(exp, channels=3 * 1)
    assert network.encoder.conv1.in_channels == 3


def test_overlapping_classes_need_no_background() -> None:
    exp = experiment(NETS + "UNet", SHALLOW, labels="overlapping", loss={"target": "monai.losses.DiceLoss"})
    one_step(exp, 1)


def test_deep_supervision_weights() -> None:
    exp = experiment(NETS + "DynUNet", DEEP)
    outputs = build_network(exp, 1)(torch.randn(2, 1, 32, 32))
    assert outputs.ndim == 5
    levels = segmentation_outputs(outputs, 2, 3)
    assert [weight for _, weight in levels] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert all(torch.equal(level, outputs[:, place]) for place, (level, _) in enumerate(levels))


def test_lists_are_weighted_by_size_and_the_last_of_the_largest_is_main() -> None:
    small, first, last = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    levels = segmentation_outputs([small, first, last], 2, 3)
    assert levels[0][0] is last and levels[1][0] is first and levels[2][0] is small
    assert [weight for _, weight in levels] == pytest.approx([0.4, 0.4, 0.2])


def test_auxiliary_outputs_are_left_out_and_dictionaries_keep_their_order() -> None:
    logits, other = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert [w for _, w in segmentation_outputs((logits, torch.zeros(1, 5), torch.zeros(1, 64, 8, 8)), 2, 3)] == [1.0]
    assert main_output({"out": logits, "aux": other}, 2, 3) is logits
    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        segmentation_outputs((torch.zeros(1, 5),), 2, 3)


def test_auxiliary_classifier_of_smp() -> None:
    exp = experiment(SMP + "Unet", {"encoder_name": "resnet18", "aux_params": {"classes": 4}})
    validate_network(exp, 3)


@pytest.mark.parametrize(
    ("target", "args", "dims", "words"),
    [
        (SMP + "Unet", {"classes": 2}, 2, "model.args.classes: found 2, expected 3"),
        (NETS + "UNet", {**SHALLOW, "out_channels": 2}, 2, "model.args.out_channels: found 2, expected 3"),
        (NETS + "UNet", {**SHALLOW, "in_channels": 3}, 2, "model.args.in_channels: found 3, expected 1"),
        (NETS + "UNet", {**SHALLOW, "spatial_dims": 3}, 2, "model.args.spatial_dims: found 3, expected 2"),
        (SMP + "Unet", {"encoder_nmae": "resnet18"}, 2, "encoder_nmae"),
        (SMP + "Unet", {"encoder_name": "tu-resnet18", "encoder_nmae": 1}, 2, "encoder_nmae"),
        (SMP + "Unet", {"encoder_name": "resnet81"}, 2, "Did you mean resnet18"),
        (SMP + "Unet", {"encoder_name": "tu-resnt18"}, 2, "Did you mean tu-resnet18"),
        (SMP + "Unet", {"activation": "sigmoid"}, 2, "model.args.activation"),
        (SMP + "Unet", {}, 3, "monai.networks.nets.DynUNet"),
        (NETS + "UNet", {"channels": [4, 8, 8]}, 2, "strides"),
        (NETS + "UNet", {"channels": [4], "strides": []}, 2, "model.args"),
        (NETS + "DynUNet", {**DYN, "upsample_kernel_size": [2]}, 2, "model.args"),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_key(target: str, args: dict[str, Any], dims: int, words: str) -> None:
    with pytest.raises(MaskfoldError, match=words) as caught:
        validate_network(experiment(target, args, dims=dims), 1)
    assert caught.value.status == 2 and "model." in str(caught.value) and "\n" not in str(caught.value)


def test_patch_that_does_not_fit_names_the_nearest_sizes() -> None:
    args = {"channels": [4, 8, 8, 8], "strides": [2, 2, 2]}
    with pytest.raises(MaskfoldError, match=r"patch\.size: found \[36, 32, 20\]") as caught:
        validate_network(experiment(NETS + "UNet", args, dims=3, size=[36, 32, 20]), 1)
    assert "[32, 32, 16] or [40, 32, 24]" in caught.value.hint
    for size in ([32, 32, 16], [40, 32, 24]):
        validate_network(experiment(NETS + "UNet", args, dims=3, size=size), 1)


def test_each_axis_has_its_own_multiple() -> None:
    args = {
        "kernel_size": [3, 3, 3],
        "strides": [1, [2, 2, 1], [2, 2, 1]],
        "filters": [4, 8, 8],
        "upsample_kernel_size": [[2, 2, 1], [2, 2, 1]],
    }
    with pytest.raises(MaskfoldError) as caught:
        validate_network(experiment(NETS + "DynUNet", args, dims=3, size=[18, 16, 5]), 1)
    assert "[16, 16, 5] or [20, 16, 5]" in caught.value.hint


def test_patch_too_small_for_the_network() -> None:
    with pytest.raises(MaskfoldError, match=r"patch\.size: found \[16, 16\]") as caught:
        validate_network(experiment(SMP + "PAN", {"encoder_name": "resnet18"}, size=[16, 16]), 1)
    assert "[128, 128]" in caught.value.hint


def test_batch_of_one_is_an_error_if_batch_statistics_need_two() -> None:
    exp = experiment(SMP + "DeepLabV3Plus", {"encoder_name": "resnet18"}, training={"batch_size": 1})
    with pytest.raises(MaskfoldError, match=r"training\.batch_size: found 1"):
        validate_network(exp, 1)


def test_networks_that_read_values_are_checked_too() -> None:
    validate_network(experiment(SMP + "Unet", {"encoder_name": "mit_b0"}, size=[64, 64]), 3)  # in its constructor
    probe = PatchSizeProbe(ReadsValues(), 1, 3, ReadsValues)  # in its forward pass
    assert probe.failure((8, 8), batch=2) is None and probe.device == "cpu"
    assert "odd" in str(probe.failure((8, 7), batch=2))


class ReadsValues(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] % 2 == 0, "odd"
        return x.expand(-1, 3, -1, -1) * (1 if x.max().item() > 0 else 2)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = experiment(NETS + "SwinUNETR", {"feature_size": 12, "depths": [1, 1, 1, 1]}, size=[64, 64])

    def missing(*_: object) -> None:
        raise ImportError("from einops import rearrange (No module named 'einops').")

    monkeypatch.setattr("monai.networks.nets.swin_unetr.rearrange", missing)
    with pytest.raises(MaskfoldError, match="pip install einops"):
        validate_network(exp, 1)


class Warns(torch.nn.Conv2d):
    """Network that warns that it ignores an argument."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 0, category: str = "UserWarning") -> None:
        warnings.warn(f"`width={width}` is ignored", getattr(builtins, category), stacklevel=2)
        super().__init__(in_channels, out_channels, 1)


def test_an_argument_that_the_library_ignores_is_an_error() -> None:
    trusted = Context((__name__.split(".")[0],))
    with pytest.raises(MaskfoldError, match=r"model\.args\.width .*Warns"):
        validate_network(experiment(f"{__name__}.Warns", {"width": 3}), 1, trusted)
    validate_network(experiment(f"{__name__}.Warns", {}), 1, trusted)  # the user did not set it
    validate_network(experiment(f"{__name__}.Warns", {"width": 3, "category": "FutureWarning"}), 1, trusted)
    validate_network(experiment(SMP + "Unet", {"encoder_name": "timm-efficientnet-b0"}), 1)  # deprecated, and works


def test_loss_and_optimiser_are_checked_too() -> None:
    with pytest.raises(MaskfoldError, match=r"optimizer\.args\.lr"):
        validate_network(experiment(optimizer={"target": "torch.optim.AdamW"}), 1)
    with pytest.raises(MaskfoldError, match=r"loss\.target"):
        validate_network(experiment(loss={"target": "torch.nn.BCELoss"}), 1)


def test_checking_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    validate_network(experiment(SMP + "Unet", {"encoder_name": "mit_b0"}, size=[64, 64]), 3)
    assert torch.equal(torch.rand(3), expected)


def test_same_seed_same_weights() -> None:
    exp = experiment(NETS + "UNet", SHALLOW)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_network(exp, 1).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_parameter_count() -> None:
    network = torch.nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    assert parameter_count(network) == 6
