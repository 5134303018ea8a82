"""Weights from a safetensors file into a network, without executing anything that the file holds."""

from __future__ import annotations

import hashlib
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
        MaskfoldError: the file is missing or damaged, holds values that are not finite, or does not belong to this
            network.
    """
    path = Path(path)
    found = read_weights(path)
    problem = _misfit(network.state_dict(), found)
    if problem:
        raise MaskfoldError(
            f"The weights {path} do not fit the network: {problem}.",
            "Use the `model` section that they were trained with.",
        )
    bad = next(
        (name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None
    )
    if bad is not None:
        raise MaskfoldError(
            f"The weights {path} hold NaN or infinite values in {bad}.",
            "Replace the file by a whole copy, or train the fold again with a lower learning rate.",
        )
    network.load_state_dict(found)


def read_weights(path: Path, cure: str = "Replace the file by a whole copy.") -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        MaskfoldError: the file is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        return _read(path)
    except FileNotFoundError as error:
        raise MaskfoldError(f"The weights {path} do not exist.", "Train the run first, or name another one.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise MaskfoldError(f"The weights {path} cannot be read: {error}.", cure) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, held against the SHA-256 of their bytes where its metadata have one under `sha256`.

    The format itself has no checksum: without that a flipped bit is a somewhat other network.
    """
    from safetensors import safe_open
    from safetensors.torch import load

    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if set(metadata) - {"sha256", "format"}:  # the checksum's own name may be what was damaged
        raise ValueError(f"its metadata hold {', '.join(sorted(metadata))[:100]!r}")
    said, found = metadata.get("sha256"), load(content)
    if (
        said is not None
        and said != hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    ):
        raise ValueError("its checksum is wrong")
    return found


def _misfit(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> str | None:
    """The first difference in words, or None."""
    for name, tensor in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return next((f"{name} is not part of the network" for name in found if name not in wanted), None)
