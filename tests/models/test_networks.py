"""Networks of the libraries that take more than the usual arguments: built, trained for two steps, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from competition.config.experiment import Experiment
from competition.models.build import build_network, validate_network
from competition.models.losses import SegmentationLoss
from competition.models.optim import build_optimizer
from competition.runs.checkpoint import load_weights, save_weights
from tests.models import experiment

SMP, MONAI = "segmentation_models_pytorch.", "monai.networks.nets."
SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
STAGES = [1, 1, 1, 1]
MEDNEXT = {"init_filters": 4, "blocks_down": STAGES, "blocks_bottleneck": 1, "blocks_up": STAGES}
DPT = {
    "encoder_name": "tu-vit_tiny_patch16_224",
    "decoder_intermediate_channels": [8, 8, 8, 8],
    "decoder_fusion_channels": 8,
}
NETWORKS = {
    "SwinUNETR 2D": (MONAI + "SwinUNETR", SWIN, [64, 64]),
    "SwinUNETR 3D": (MONAI + "SwinUNETR", SWIN, [64, 32, 32]),
    "UNETR": (MONAI + "UNETR", UNETR, [32, 32, 32]),
    "MedNeXt": (MONAI + "MedNeXt", MEDNEXT, [32, 32, 32]),
    "SegFormer": (SMP + "Segformer", {"encoder_name": "mit_b0", "decoder_segmentation_channels": 8}, [64, 64]),
    "UPerNet": (SMP + "UPerNet", {"encoder_name": "tu-convnext_atto", "decoder_channels": 8}, [64, 64]),
    "DPT": (SMP + "DPT", DPT, [224, 224]),
}


def network_of(name: str, **sections: Any) -> Experiment:
    target, args, size = NETWORKS[name]
    loss = {"target": "monai.losses.DiceCELoss", "args": {"include_background": False}}
    return experiment(target, args, dims=len(size), size=size, loss=loss, **sections)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_trained_and_stored(name: str, tmp_path: Path) -> None:
    exp = network_of(name)
    channels = 3 if exp.network_dimensions == 2 else 1
    validate_network(exp, channels)
    torch.manual_seed(0)
    network = build_network(exp, channels, pretrained=False).train()
    optimizer, loss_of = build_optimizer(exp, network), SegmentationLoss(exp)
    images = torch.randn(2, channels, *exp.patch.size)
    masks = torch.randint(0, 3, (2, 1, *exp.patch.size), dtype=torch.uint8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        total, _ = loss_of(network(images), masks)
        total.backward()
        optimizer.step()
    assert torch.isfinite(total)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 2
    save_weights(tmp_path / "weights.safetensors", network.state_dict())
    again = build_network(exp, channels, pretrained=False).eval()
    load_weights(again, tmp_path / "weights.safetensors")
    with torch.no_grad():
        logits = network.eval()(images[:1])
        assert logits.shape == (1, 3, *exp.patch.size) and torch.equal(logits, again(images[:1]))


@pytest.mark.slow  # torch's exporter takes 5 to 20 seconds a network
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_exported_as_onnx(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from competition.export.onnx import write_onnx

    exp = network_of(name)
    channels = 3 if exp.network_dimensions == 2 else 1
    torch.manual_seed(0)
    network = build_network(exp, channels, pretrained=False).eval()
    assert write_onnx(network, channels, exp, tmp_path / "network.onnx") < 1e-3
