"""Weights from a safetensors file into a network, without executing anything that the file holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from competition.config.errors import MaskfoldError


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Loads weights whose names and shapes must all fit; a network that they do not fit stays as it is.

    Args:
        network: on any device.
        path: a .safetensors file.

    Raises:
        MaskfoldError: the file is missing or damaged, or does not belong to this network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        found = load_file(path)
    except FileNotFoundError as error:
        raise MaskfoldError(f"The weights {path} do not exist.", "Train the run first, or name another one.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise MaskfoldError(f"The weights {path} cannot be read: {error}.",
                            "Replace the file by a whole copy.") from error
    problem = _misfit(network.state_dict(), found)
    if problem:
        raise MaskfoldError(f"The weights {path} do not fit the network: {problem}.",
                            "Use the `model` section that they were trained with.")
    network.load_state_dict(found)


def _misfit(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> str | None:
    """The first difference in words, or None."""
    for name, tensor in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return next((f"{name} is not part of the network" for name in found if name not in wanted), None)
