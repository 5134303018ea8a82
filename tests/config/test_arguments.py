"""Arguments of a stranger's YAML: those that select files, addresses, caches or hubs are refused before any work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.config.arguments import (
    ALLOW_VARIABLE,
    NAMES_BY_LIBRARY,
    allow_arguments,
    is_refused_name,
    refused_arguments,
)
from competition.config.construction import ConstructionGuard
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError

UNET = "segmentation_models_pytorch.Unet"


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All attempts to find or reach another machine; each fails, as without a network."""
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    attempts: list[Any] = []

    def refuse(*args: Any, **_kwargs: Any) -> None:
        attempts.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield attempts
    assert attempts == [], "a connection was tried"


def network(args: str, target: str = UNET) -> str:
    return f"model={{target: {target}, args: {{{args}}}}}"


def transform(args: str, target: str) -> str:
    return f"augment.transforms=[{{target: {target}, args: {{{args}}}}}]"


ATTACKS = {
    # words of the command line -> the refused key
    (network("encoder_name: tu-resnet18, cache_dir: site-packages"), "encoder_weights=imagenet"): (
        "model.args.cache_dir"
    ),
    (
        network("encoder_name: tu-resnet18, pretrained_cfg_overlay: {url: 'file:///x.pth', hf_hub_id: null}"),
        "encoder_weights=imagenet",
    ): "model.args.pretrained_cfg_overlay",
    (network("encoder_name: tu-resnet18, checkpoint_path: evil.pth"),): "model.args.checkpoint_path",
    (network("encoder_name: 'tu-hf_hub:x/y'"),): "model.args.encoder_name",
    (network("encoder_name: 'tu-hf-hub:x'"),): "model.args.encoder_name",
    (network("encoder_name: 'tu-local-dir:evil'"),): "model.args.encoder_name",
    (network("encoder_name: 'https://evil/x'"),): "model.args.encoder_name",
    (network("encoder_name: resnet18, aux_params: {a: [1, {b: '../evil'}]}"),): "model.args.aux_params.a.1.b",
    (network("pretrained_url: 'https://evil/x.pth'", "monai.networks.nets.HoVerNet"),): "model.args.pretrained_url",
    (network("weights: DEFAULT", "monai.networks.nets.TorchVisionFCModel"),): "model.args.weights",
    (network("checkpoint: sam.pth", "monai.networks.nets.CellSamWrapper"),): "model.args.checkpoint",
    (network("path_or_repo_id: evil", "monai.networks.nets.Transchex"),): "model.args.path_or_repo_id",
    (network("path: net.onnx, threads: 1", "competition.export.onnx.OnnxNetwork"),): "model.args.path",
    (network("encoder_name: resnet18, encoder_weights: [a.pth]"),): "model.args.encoder_weights",
    ("loss={target: monai.losses.DiceLoss, args: {reduction: ~/evil}}",): "loss.args.reduction",
    (f"loss=[{{target: torch.nn.MSELoss}}, {{target: {UNET}, args: {{encoder_weights: imagenet}}}}]",): (
        "loss.1.args.encoder_weights"
    ),
    ("optimizer={target: torch.optim.AdamW, args: {lr: 0.1, log_dir: evil}}",): "optimizer.args.log_dir",
    (transform("font_path: a.ttf", "albumentations.TextImage"),): "augment.transforms.0.args.font_path",
    (transform("reference_images: [a]", "albumentations.FDA"),): "augment.transforms.0.args.reference_images",
    (
        transform("transforms: [{target: albumentations.FDA, args: {reference_images: [a]}}]", "albumentations.OneOf"),
    ): "augment.transforms.0.args.transforms.0.args.reference_images",
    (transform("keys: image, output_dir: out", "monai.transforms.RandFlipd"),): "augment.transforms.0.args.output_dir",
}


@pytest.mark.parametrize(("words", "key"), ATTACKS.items(), ids=list(ATTACKS.values()))
def test_an_attack_is_refused_while_the_yaml_is_loaded(
    toy: Callable[..., Path], words: tuple[str, ...], key: str
) -> None:
    file = toy()
    before = sorted(Path().rglob("*"))
    with pytest.raises(MaskfoldError) as caught:
        load_experiment(file, words)
    assert caught.value.status == 2
    assert f"{key}: found" in caught.value.message and "may select" in caught.value.message
    assert caught.value.message.startswith("command line: ")
    assert f"--allow {key}" in caught.value.hint
    assert sorted(Path().rglob("*")) == before


def test_the_error_names_file_and_line(toy: Callable[..., Path]) -> None:
    file = toy("optimizer: {target: torch.optim.SGD, args: {lr: 1, cache_dir: x}}\n")
    with pytest.raises(MaskfoldError, match=r"unet\.yaml, line 7: optimizer\.args\.cache_dir: found 'x'"):
        load_experiment(file)


def test_a_file_of_the_working_folder_is_found_under_any_name(toy: Callable[..., Path]) -> None:
    file = toy()
    Path("evil").write_text("x")
    with pytest.raises(MaskfoldError, match="the name of a file in the working folder"):
        load_experiment(file, ["loss={target: torch.nn.MSELoss, args: {reduction: evil}}"])


@pytest.mark.parametrize(
    "word",
    [
        network("encoder_name: tu-resnet18.a1_in1k, encoder_depth: 4, decoder_channels: [96, 64, 32, 16]"),
        network("encoder_name: resnet18, encoder_weights: null"),
        network("encoder_name: resnet18, encoder_weights: imagenet"),
        network("encoder_name: tu-resnet18, drop_path_rate: 0.1"),
        network("img_size: [64, 64], use_checkpoint: true, dropout_path_rate: 0.1", "monai.networks.nets.SwinUNETR"),
        network("pretrained: true, model_name: efficientnet-b0", "monai.networks.nets.EfficientNetBN"),
        network("norm: [GROUP, {num_groups: 4}], act: [LeakyReLU, {inplace: true}]", "monai.networks.nets.UNet"),
        network("pretrained_window_size: [7, 7], cache_grid: false, checkpoint: null"),
        "loss={target: monai.losses.DiceCELoss, args: {weight: [1.0, 2.0], class_weights: [1, 2], reduction: mean}}",
        "optimizer={target: torch.optim.AdamW, args: {lr: 0.1, betas: [0.9, 0.99]}}",
        transform("keys: [image, mask], source_key: mask", "monai.transforms.CropForegroundd"),
        transform("fill: 0.5, save_key: replay, p: 0.5", "albumentations.Rotate"),
    ],
)
def test_ordinary_arguments_pass(toy: Callable[..., Path], word: str) -> None:
    load_experiment(toy(), [word])


def test_every_listed_name_is_refused() -> None:
    for names in NAMES_BY_LIBRARY.values():
        assert all(is_refused_name(name) for name in names)
    for name in ("cacheDir", "checkpointPath", "modelpath", "weightsFile", "HF_HUB_ID", "repo-id", "base_urls"):
        assert is_refused_name(name)
    for name in ("direction_range", "bidirectional", "profiling", "huber_delta", "channels", "encoder_name", "keys"):
        assert not is_refused_name(name)


@pytest.mark.parametrize("value", ["x", ["x"], [[1, "x"]], {"a": 1}, b"x", Path("x")])
def test_a_refused_name_may_have_numbers_only(value: Any) -> None:
    assert [found.key for found in refused_arguments({"cache_dir": value}, "loss.args")] == ["loss.args.cache_dir"]


def test_true_starts_a_download_for_some_names_only() -> None:
    keys = [found.key for found in refused_arguments({"download": True, "use_checkpoint": True}, "loss.args")]
    assert keys == ["loss.args.download"]
    assert [found.key for found in refused_arguments({"pretrained": True}, "loss.args")] == ["loss.args.pretrained"]
    assert list(refused_arguments({"pretrained": True}, "model.args")) == []


# What the user allows


def test_an_allowed_key_passes_and_its_neighbour_does_not(
    toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [network("encoder_name: tu-resnet18, checkpoint_path: a.pth")]
    monkeypatch.setenv(ALLOW_VARIABLE, "")
    allow_arguments(["loss.args, model.args.checkpoint_path"])
    assert load_experiment(toy(), words).model.args["checkpoint_path"] == "a.pth"
    with pytest.raises(MaskfoldError, match=r"model\.args\.checkpoint_path_2"):
        load_experiment(toy(), [network("checkpoint_path: a.pth, checkpoint_path_2: b.pth")])
    monkeypatch.setenv(ALLOW_VARIABLE, "model")
    load_experiment(toy(), [network("checkpoint_path: a.pth, cache_dir: b")])


@pytest.mark.parametrize("key", ["checkpoint_path", "training.epochs", "models.args"])
def test_a_key_without_a_target_cannot_be_allowed(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with pytest.raises(MaskfoldError, match=r"--allow: found") as caught:
        allow_arguments([key])
    assert caught.value.status == 2
    monkeypatch.setenv(ALLOW_VARIABLE, key)
    with pytest.raises(MaskfoldError, match=f"{ALLOW_VARIABLE}: found"):
        list(refused_arguments({}, "a")) or allow_arguments(["model"])


def test_the_option_of_the_command_line(
    toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from competition.cli import main

    monkeypatch.setenv(ALLOW_VARIABLE, "")  # restored after the test
    word = network("encoder_name: tu-resnet18, cache_dir: x")
    for option, said in (
        ([], "--allow model.args.cache_dir"),
        (["--allow", "wrong"], "--allow: found `wrong`"),
        (["--allow", "model.args.cache_dir"], "does not exist"),  # the folder of the data
    ):
        monkeypatch.setattr("sys.argv", ["maskfold", "cv", str(toy()), word, *option])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err


def test_classes_of_a_package_that_the_user_trusts_are_not_checked(toy: Callable[..., Path]) -> None:
    word = network("checkpoint_path: a.pth", "own.Net")
    load_experiment(toy(), [word], ["own"])
    word_of_smp = network("encoder_name: tu-resnet18, checkpoint_path: a.pth")
    load_experiment(toy(), [word_of_smp], ["segmentation_models_pytorch"])  # all of a package that is listed anyway
    with pytest.raises(MaskfoldError, match="not in a trusted package"):
        load_experiment(toy(), [word])
    group = transform(
        "transforms: [{target: own.Flip, args: {path: a}}, {target: albumentations.FDA, args: {path: a}}]",
        "albumentations.OneOf",
    )
    with pytest.raises(MaskfoldError, match=r"augment\.transforms\.0\.args\.transforms\.1\.args\.path"):
        load_experiment(toy(), [group], ["own"])


def test_a_key_named_target_does_not_exempt_other_arguments() -> None:
    args = {
        "target": "own.Net",
        "checkpoint_path": "a.pth",
        "head": {"target": "own.Net", "path": "b", "args": {"path": "c"}},
    }
    found = [argument.key for argument in refused_arguments(args, "model.args", ["own"])]
    assert found == ["model.args.checkpoint_path", "model.args.head.path"]


def test_constructors_are_guarded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an experiment that was not loaded from a YAML."""
    import torch

    with (
        pytest.raises(MaskfoldError, match=r"model\.args\.cache_dir"),
        ConstructionGuard(torch.nn.ReLU, {"cache_dir": "x"}, "model.args"),
    ):
        raise AssertionError("the constructor runs")
