"""Export networks as ONNX files, check them against torch on patches of noise, and predict with onnxruntime."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from competition.config.experiment import Experiment
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.io import atomic_write
from competition.models.execution import set_layout
from competition.models.interface import error_in_one_line, main_output

ONNX_SUFFIX = ".onnx"
TOLERANCE = 1e-3  # maximum difference between the probabilities of ONNX and torch

# Prediction


class OnnxNetwork(nn.Module):
    """Run a network from an ONNX file with onnxruntime, as a torch module.

    The input is images (B, C, *patch) float32. The output is logits (B, P, *patch) float32 of P output channels.

    Args:
        path: a file that `write_onnx` has written.
        threads: number of CPU threads.

    Raises:
        MaskfoldError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MaskfoldError(
                "onnxruntime is not installed.", "Install onnxruntime (pip install onnxruntime), or run without --onnx."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's exception classes are no stable API
            raise MaskfoldError(
                f"onnxruntime cannot run {path}: {str(error).splitlines()[0]}.", "Export the bundle again."
            ) from error
        size = self.session.get_inputs()[0].shape[0]
        self.batch: int | None = size if isinstance(size, int) else None  # None: any batch size

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits of a batch, on the device of the batch."""
        parts = batch.split(self.batch) if self.batch is not None else [batch]
        name = self.session.get_inputs()[0].name
        outputs = [
            self.session.run(None, {name: part.detach().float().cpu().contiguous().numpy()})[0] for part in parts
        ]
        return torch.cat([torch.from_numpy(output) for output in outputs]).to(batch.device)


def use_onnx_networks(predictor: EnsemblePredictor) -> None:
    """Replace each network of a predictor by the ONNX file next to its weights.

    Args:
        predictor: the predictor; it is changed in place.

    Raises:
        MaskfoldError: a file is missing or cannot be read.
    """
    for run_networks, _ in predictor.weighted_runs:
        paths = [run_networks.run.weights(*member).with_suffix(ONNX_SUFFIX) for member in run_networks.members]
        for path in paths:
            if not path.exists():
                raise MaskfoldError(
                    f"{path} is missing.", "Export the bundle again with --onnx, or run it without --onnx."
                )
        run_networks.networks = [OnnxNetwork(path, torch.get_num_threads()) for path in paths]


# Export


class MainOutputNetwork(nn.Module):
    """Wrap a network that may have several outputs, and return only its main output.

    Args:
        network: the network.
        dims: number of spatial axes.
        channels: number of channels of the main output.
    """

    def __init__(self, network: nn.Module, dims: int, channels: int) -> None:
        super().__init__()
        self.network, self.dims, self.channels = network, dims, channels

    def forward(self, batch: Tensor) -> Tensor:
        """Map images (B, C, *patch) to logits of P output channels, (B, P, *patch)."""
        return main_output(self.network(batch), self.dims, self.channels)


def write_onnx(network: nn.Module, channels: int, exp: Experiment, path: Path) -> float:
    """Write a network as an ONNX file, and check that onnxruntime and torch predict the same probabilities.

    The file accepts any batch size if the code of the network allows this. Otherwise, it accepts only the batch size 1.

    Args:
        network: the network, on any device; it is moved to the CPU.
        channels: number of input channels.
        exp: the experiment, which defines the patch size and the kind of labels.
        path: path of the file.

    Returns:
        The largest difference between the probabilities of onnxruntime and torch on three patches of noise, computed in
        float32 on the CPU.

    Raises:
        MaskfoldError: onnx, onnxscript or onnxruntime is not installed, the network has a presence head or cannot be
            exported, or the difference exceeds `TOLERANCE`.
    """
    if exp.gate is not None:
        raise MaskfoldError(
            "The network has a presence head (`gate` in its YAML), which cannot be exported to ONNX.",
            "Export without --onnx.",
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MaskfoldError(
            f"--onnx requires the package {error.name}, which is not installed.", "Run: pip install 'maskfold[onnx]'."
        ) from error
    set_layout(network, torch.contiguous_format)  # ONNX requires channels first
    reference = MainOutputNetwork(network.cpu().eval(), len(exp.patch.size), exp.network_channels).eval()
    program = _export_program(reference, (channels, *exp.patch.size), exp)
    content = program.model_proto.SerializeToString()
    atomic_write(path, lambda file: file.write(content), len(content))
    exported = OnnxNetwork(path, torch.get_num_threads())
    difference = _max_difference(reference, exported, (channels, *exp.patch.size), exp)
    if not difference <= TOLERANCE:
        path.unlink()
        raise MaskfoldError(
            f"The ONNX file of {exp.model.target} predicts other probabilities than torch: the largest difference is "
            f"{difference:.2g}, expected at most {TOLERANCE:g}.",
            "Export without --onnx.",
        )
    return difference


def _export_program(network: nn.Module, shape: tuple[int, ...], exp: Experiment) -> Any:
    """Return torch's ONNXProgram of a network, with a variable batch size if possible.

    Args:
        network: the network, on the CPU.
        shape: shape (C, *patch) of the network's input without the batch axis.
        exp: the experiment.

    Raises:
        MaskfoldError: the network cannot be exported.
    """
    dynamic = {"batch": {0: torch.export.Dim("patches")}}
    first_error: Exception | None = None
    for count, shapes in ((2, dynamic), (1, None)):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.onnx.export(
                    network, (torch.zeros(count, *shape),), dynamo=True, dynamic_shapes=shapes, verbose=False
                )
        except Exception as error:  # noqa: BLE001 - the exporter passes on any exception of a network's code
            first_error = first_error or error
            logging.getLogger(__name__).info(
                "The ONNX export of %s with the batch size %s failed: %s",
                exp.model.target,
                count,
                error_in_one_line(error),
            )
    raise MaskfoldError(
        f"{exp.model.target} cannot be exported to ONNX: {error_in_one_line(first_error or Exception())}.",
        "Export without --onnx.",
    )


def _max_difference(reference: nn.Module, exported: nn.Module, shape: tuple[int, ...], exp: Experiment) -> float:
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [network(noise) for network in (reference, exported)]
    exclusive = exp.competition.labels == "exclusive"
    probabilities = [logits.softmax(1) if exclusive else logits.sigmoid() for logits in outputs]
    return float((probabilities[0] - probabilities[1]).abs().max())
