"""Initial weights from a file: what fits is loaded, what does not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from competition.config.experiment import Experiment
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.build import build_network
from competition.models.initial_weights import InitialMatch, check_initial_file, load_initial_weights
from competition.models.pretrained import read_tensors
from competition.runs.identity.contents import run_contents
from competition.runs.identity.hashing import run_hash
from tests.models import experiment

UNET = "monai.networks.nets.UNet"
DYN = "monai.networks.nets.DynUNet"
UNET_ARGS: dict[str, Any] = {"spatial_dims": 3, "channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}
DYN_ARGS: dict[str, Any] = {
    "spatial_dims": 3,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "norm_name": ["INSTANCE", {"affine": True}],
}


def start_from(
    path: Path, target: str, args: dict[str, Any], channels: int = 1, **words: Any
) -> tuple[nn.Module, InitialMatch]:
    exp = experiment(target, args, init_from=str(path), **{"dims": 3, **words})
    network = build_network(exp, channels)
    return network, load_initial_weights(network, exp, channels)


def donor(target: str, args: dict[str, Any], channels: int = 1, **words: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return build_network(experiment(target, args, **{"dims": 3, **words}), channels).state_dict()


def save(tensors: dict[str, Tensor], path: Path, prefix: str = "", key: str | None = None) -> Path:
    named = {prefix + name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save({key: named, "epoch": 3} if key is not None else named, path)
    return path


@pytest.mark.parametrize(
    ("file", "prefix", "key"),
    [
        ("a.safetensors", "", None),
        ("a.pt", "module.", None),
        ("a.pth", "module.network.", "state_dict"),
        ("a.ckpt", "_orig_mod.model.", "state_dict"),
    ],
)
def test_names_are_equal_behind_any_prefix(file: str, prefix: str, key: str | None, tmp_path: Path) -> None:
    weights = donor(DYN, DYN_ARGS, classes=5)
    network, match = start_from(save(weights, tmp_path / file, prefix, key), DYN, DYN_ARGS)
    state = dict(network.named_parameters())
    head = {name for name in state if name.startswith("output_block")}
    assert set(match.pairs) == set(state) - head and set(match.missing["head"]) == head
    assert all(torch.equal(state[name], weights[name]) for name in match.pairs)


def test_the_head_is_left_out_even_if_its_shape_is_equal(tmp_path: Path) -> None:
    weights = donor(DYN, DYN_ARGS)
    network, match = start_from(save(weights, tmp_path / "a.pt"), DYN, DYN_ARGS)
    assert len(match.missing["head"]) == 2 and not any("output_block" in name for name in match.pairs)
    name = match.missing["head"][0]
    assert not torch.equal(network.state_dict()[name], weights[name])


def test_a_head_without_a_name_is_the_last_layer(tmp_path: Path) -> None:
    _, match = start_from(save(donor(UNET, UNET_ARGS), tmp_path / "a.pt"), UNET, UNET_ARGS)
    assert match.missing["head"] == ["model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"]
    assert not match.missing["other shape"] and not match.missing["not in the file"]


@pytest.mark.parametrize(("before", "now"), [(1, 4), (4, 1), (3, 2)])
def test_the_first_layer_is_adapted_to_the_channels(before: int, now: int, tmp_path: Path) -> None:
    path = save(donor(DYN, DYN_ARGS, before), tmp_path / "a.pt")
    network, match = start_from(path, DYN, DYN_ARGS, now)
    assert match.adapted == ["input_block.conv1.conv.weight"]
    weight, old = network.state_dict()[match.adapted[0]], read_tensors(path)[match.adapted[0]]
    assert weight.shape[1] == now
    torch.testing.assert_close(weight.sum(1)[:, :1], (old.sum(1) if now == 1 or before == 1 else weight.sum(1))[:, :1])
    assert "adapted to the number of input channels" in match.lines()[0]


def test_an_encoder_alone_is_loaded_into_the_whole_network(tmp_path: Path) -> None:
    target, args = "segmentation_models_pytorch.Unet", {"encoder_name": "resnet18", "decoder_channels": [8] * 5}
    words: dict[str, Any] = {"dims": 2, "size": [64, 64]}
    weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in donor(target, args, 3, **words).items()
        if name.startswith("encoder.")
    }
    weights["fc.weight"], weights["fc.bias"] = torch.ones(10, 512), torch.ones(10)
    network, match = start_from(save(weights, tmp_path / "resnet.pth", "backbone."), target, args, 1, **words)
    encoder = [name for name in network.state_dict() if name.startswith("encoder.") and not name.endswith("tracked")]
    assert sorted(match.pairs) == sorted(encoder) and match.unused == ["backbone.fc.weight", "backbone.fc.bias"]
    assert match.pairs["encoder.layer1.0.conv1.weight"] == "backbone.layer1.0.conv1.weight"
    counts, names = match.lines()
    assert f"{len(encoder)} of " in counts and "2 other tensors" in counts
    assert "encoder.layer1 (20)" in names and "decoder.blocks (50)" in names.partition("random values: ")[2]


def nnunet_names(convolutions: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """An encoder with the names of nnU-Net: (in, out, stage) of each 3×3×3 convolution, and a decoder."""
    tensors: dict[str, Tensor] = {}
    places: dict[int, int] = {}
    for before, after, stage in convolutions:
        number = places[stage] = places.get(stage, -1) + 1
        name = f"encoder.stages.{stage}.0.convs.{number}"
        weight, bias, scale, shift = torch.randn(after, before, 3, 3, 3), *(torch.randn(after) for _ in range(3))
        for form in (name, f"decoder.{name}"):
            tensors |= {f"{form}.conv.weight": weight, f"{form}.conv.bias": bias}
            tensors |= {f"{form}.norm.weight": scale, f"{form}.norm.bias": shift}
            tensors |= {f"{form}.all_modules.0.weight": weight, f"{form}.all_modules.1.weight": scale}
    tensors["decoder.transpconvs.0.weight"] = torch.randn(32, 16, 2, 2, 2)
    tensors["decoder.seg_layers.0.weight"] = torch.randn(5, 16, 1, 1, 1)
    return tensors


def test_an_nnunet_encoder_is_matched_by_its_order(tmp_path: Path) -> None:
    weights = nnunet_names([(1, 4, 0), (4, 4, 0), (4, 8, 1), (8, 8, 1), (8, 8, 2), (8, 8, 2)])
    path = save(weights, tmp_path / "checkpoint_final.pth", key="network_weights")
    network, match = start_from(path, DYN, DYN_ARGS)
    assert match.by_order and "paired by their order" in match.lines()[0]
    for own, other in [
        ("input_block.conv1.conv", "encoder.stages.0.0.convs.0.conv"),
        ("input_block.conv2.conv", "encoder.stages.0.0.convs.1.conv"),
        ("downsamples.0.conv2.conv", "encoder.stages.1.0.convs.1.conv"),
        ("bottleneck.norm2", "encoder.stages.2.0.convs.1.norm"),
    ]:
        assert match.pairs[f"{own}.weight"] == f"{other}.weight"
        assert torch.equal(network.state_dict()[f"{own}.weight"], weights[f"{other}.weight"])
    assert not any(name.startswith(("upsamples", "output_block")) for name in match.pairs)


def test_stages_of_other_widths_are_not_confused(tmp_path: Path) -> None:
    weights = {}
    for stage in (1, 2):
        for number in range(3):
            weights[f"layer{stage}.{number}.conv.weight"] = torch.full((8 if stage == 2 else 6, 8, 3, 3), float(stage))
    network = nn.Module()
    network.layer1, network.layer2 = (nn.ModuleList(Block() for _ in range(3)) for _ in range(2))
    from competition.models.initial_weights import match_tensors

    match = match_tensors(network, weights, "a.pt", 1, 2)
    assert sorted(match.pairs) == [f"layer2.{number}.conv.weight" for number in range(3)]
    assert len(match.missing["other shape"]) == 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, bias=False)


def test_a_file_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    path = save({"a.weight": torch.ones(3), "b.weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(MaskfoldError, match="fits DynUNet: found the tensors a.weight, b.weight") as caught:
        start_from(path, DYN, DYN_ARGS)
    assert caught.value.status == 2


def test_code_in_a_file_is_refused_in_words(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"network_weights": {"a": torch.ones(2)}, "trainer": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(MaskfoldError, match="contains the Python object .* would execute code") as caught:
        start_from(tmp_path / "trap.pth", DYN, DYN_ARGS)
    assert "init_from" in str(caught.value) and not (tmp_path / "sprung").exists()


def test_a_missing_damaged_or_non_finite_file_is_refused(tmp_path: Path) -> None:
    weights = donor(DYN, DYN_ARGS)
    with pytest.raises(MaskfoldError, match=r"init_from: .*missing.pt does not exist"):
        start_from(tmp_path / "missing.pt", DYN, DYN_ARGS)
    whole = save(weights, tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MaskfoldError, match="cannot be read as weights"):
        start_from(tmp_path / "cut.safetensors", DYN, DYN_ARGS)
    weights["input_block.conv1.conv.weight"].fill_(torch.nan)
    with pytest.raises(MaskfoldError, match=r"the tensor input_block\S+ in .* contains NaN or infinite values"):
        start_from(save(weights, tmp_path / "nan.pt"), DYN, DYN_ARGS)


def test_the_hash_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    def name_of(exp: Experiment) -> str:
        return run_hash(exp, "data", 2, run_contents(exp, None))

    first = save(donor(DYN, DYN_ARGS), tmp_path / "a.pt")
    exp = experiment(DYN, DYN_ARGS, dims=3, init_from=str(first))
    assert exp.initial_weights == str(first) and exp.initial_run is None
    moved = tmp_path / "moved.pt"
    moved.write_bytes(first.read_bytes())
    same = experiment(DYN, DYN_ARGS, dims=3, init_from=str(moved))
    assert name_of(same) == name_of(exp) != name_of(experiment(DYN, DYN_ARGS, dims=3))
    save({"x": torch.ones(2)}, moved)
    assert name_of(same) != name_of(exp)
    assert experiment(DYN, DYN_ARGS, dims=3, init_from="mlruns/runs/a/b").initial_weights is None


def test_the_check_says_what_is_loaded_and_keeps_the_generator(tmp_path: Path) -> None:
    exp = experiment(DYN, DYN_ARGS, dims=3, init_from=str(save(donor(DYN, DYN_ARGS), tmp_path / "a.pt")))
    lines: list[str] = []
    state = torch.random.get_rng_state()
    check_initial_file(exp, 1, Context(say=lines.append))
    assert len(lines) == 2 and " tensors loaded from " in lines[0] and "2 not loaded (head)" in lines[0]
    assert torch.equal(state, torch.random.get_rng_state())
