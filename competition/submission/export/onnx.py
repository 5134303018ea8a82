"""Networks as ONNX, each held against torch on one patch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from competition.config import Experiment, MaskfoldError
from competition.data.files import write_whole
from competition.model.arguments import one_line
from competition.model.outputs import main_output
from competition.submission.offline.onnx import OnnxNetwork

TOLERANCE = 1e-3  # of probabilities


class Logits(nn.Module):
    """A network that gives what predicts, and nothing else."""

    def __init__(self, network: nn.Module, dims: int, channels: int) -> None:
        super().__init__()
        self.network, self.dims, self.channels = network, dims, channels

    def forward(self, batch: Tensor) -> Tensor:
        """(B, C, *patch) to logits (B, P, *patch)."""
        return main_output(self.network(batch), self.dims, self.channels)


def write_onnx(network: nn.Module, channels: int, exp: Experiment, path: Path) -> float:
    """Writes a network as ONNX, with any number of patches at a time if its code allows it, else with one.

    Args:
        network: on any device.
        channels: of its input.
        exp: the experiment: sizes and labels.
        path: the file.

    Returns:
        The largest difference of a probability from torch's, on one patch of noise; both in float32 on the CPU.

    Raises:
        MaskfoldError: onnx, onnxscript or onnxruntime is not installed, the network has a gate or cannot be written, or
            differs by more than `TOLERANCE`.
    """
    if exp.gate is not None:
        raise MaskfoldError(
            "The network has a gate (`gate` in its YAML), which the ONNX files do not hold.",
            "Export it without --onnx.",
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MaskfoldError(
            f"--onnx needs the package {error.name}, which is not installed.", "pip install 'maskfold[onnx]'"
        ) from error
    whole = Logits(network.cpu().eval(), len(exp.patch.size), exp.outputs).eval()
    program = _exported(whole, (channels, *exp.patch.size), exp)
    content = program.model_proto.SerializeToString()
    write_whole(path, lambda file: file.write(content), len(content))
    difference = _difference(whole, OnnxNetwork(path, torch.get_num_threads()), (channels, *exp.patch.size), exp)
    if not difference <= TOLERANCE:
        path.unlink()
        raise MaskfoldError(
            f"As ONNX, {exp.model.target} gives probabilities that differ from torch's by up to "
            f"{difference:.2g}, more than {TOLERANCE:g}.",
            "Export it without --onnx.",
        )
    return difference


def _exported(whole: nn.Module, shape: tuple[int, ...], exp: Experiment) -> Any:
    """torch's ONNXProgram."""
    dynamic = {"batch": {0: torch.export.Dim("patches")}}
    first: Exception | None = None
    for count, shapes in ((2, dynamic), (1, None)):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.onnx.export(
                    whole, (torch.zeros(count, *shape),), dynamo=True, dynamic_shapes=shapes, verbose=False
                )
        except Exception as error:  # noqa: BLE001 - the exporter passes on whatever a network's code raises
            first = first or error
            logging.getLogger(__name__).info("ONNX of %s with %s patches: %s", exp.model.target, count, one_line(error))
    raise MaskfoldError(
        f"{exp.model.target} cannot be written as ONNX: {one_line(first or Exception())}.", "Export it without --onnx."
    )


def _difference(whole: nn.Module, other: nn.Module, shape: tuple[int, ...], exp: Experiment) -> float:
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pair = [network(noise) for network in (whole, other)]
    soft = [logits.softmax(1) if exp.competition.labels == "exclusive" else logits.sigmoid() for logits in pair]
    return float((soft[0] - soft[1]).abs().max())
