"""A network as onnxruntime runs it, in the place of torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from competition.config import MaskfoldError
from competition.submission.members import Ensemble

SUFFIX = ".onnx"


class OnnxNetwork(nn.Module):
    """Maps (B, C, *patch) float32 to logits (B, P, *patch) float32.

    Args:
        path: a file of `competition.submission.export.onnx`.
        threads: of a CPU.

    Raises:
        MaskfoldError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MaskfoldError("onnxruntime is not installed.", "Install it, or run without --onnx.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        there = onnxruntime.get_available_providers()
        wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's own classes are no stable names
            raise MaskfoldError(
                f"{path} cannot be run: {str(error).splitlines()[0]}.", "Export the bundle again."
            ) from error
        size = self.session.get_inputs()[0].shape[0]
        self.batch: int | None = size if isinstance(size, int) else None

    def forward(self, batch: Tensor) -> Tensor:
        """The logits, on the batch's device."""
        parts = batch.split(self.batch) if self.batch is not None else [batch]
        name = self.session.get_inputs()[0].name
        found = [self.session.run(None, {name: part.detach().float().cpu().contiguous().numpy()})[0] for part in parts]
        return torch.cat([torch.from_numpy(one) for one in found]).to(batch.device)


def take_onnx(ensemble: Ensemble) -> None:
    """Puts the networks' ONNX files, which lie beside their weights, in their place.

    Raises:
        MaskfoldError: a file is missing or cannot be read.
    """
    for part, _ in ensemble.parts:
        paths = [one.path.with_suffix(SUFFIX) for one in part.found]
        for path in paths:
            if not path.exists():
                raise MaskfoldError(f"{path} is missing.", "Export the bundle with --onnx, or run it without.")
        part.networks = [OnnxNetwork(path, torch.get_num_threads()) for path in paths]
